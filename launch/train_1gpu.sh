#!/usr/bin/env bash
# One GPU:  launch/train_1gpu.sh RECIPE [memdiff train options]
set -euo pipefail
# deepspeed would give its ranks cards 0, 1, ...; memdiff gives them those that CUDA_VISIBLE_DEVICES names here.
if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
  export MEMDIFF_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES
  unset CUDA_VISIBLE_DEVICES
fi
exec deepspeed --num_gpus 1 --module memdiff train "$@"
