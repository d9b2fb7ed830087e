#!/usr/bin/env bash
# Four NVIDIA T4:  launch/train_4xt4.sh launch/recipes/celebahq_reinforce.yaml [memdiff train options]
# T4s have no NVLink and often no peer access over PCIe; NCCL finds that out by itself, and falls back to host memory.
set -euo pipefail
# deepspeed would give its ranks cards 0, 1, ...; memdiff gives them those that CUDA_VISIBLE_DEVICES names here.
if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
  export MEMDIFF_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES
  unset CUDA_VISIBLE_DEVICES
fi
exec deepspeed --num_gpus 4 --module memdiff train "$@"
