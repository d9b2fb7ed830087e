#!/usr/bin/env bash
# One GPU:  launch/train_1gpu.sh RECIPE [memdiff train options]
set -euo pipefail
exec deepspeed --num_gpus 1 --module memdiff train "$@"
