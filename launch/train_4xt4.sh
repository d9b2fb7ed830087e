#!/usr/bin/env bash
# Four NVIDIA T4:  launch/train_4xt4.sh launch/recipes/celebahq_reinforce.yaml [memdiff train options]
# T4s have no NVLink and often no peer access over PCIe; NCCL finds that out by itself, and falls back to host memory.
set -euo pipefail
exec deepspeed --num_gpus 4 --module memdiff train "$@"
