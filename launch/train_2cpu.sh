#!/usr/bin/env bash
# Two CPU ranks over gloo:  launch/train_2cpu.sh launch/recipes/digits_reinforce.yaml [memdiff train options]
set -euo pipefail
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(( $(nproc) / 2 > 0 ? $(nproc) / 2 : 1 ))}
# deepspeed would give its ranks cards 0, 1, ...; memdiff gives them those that CUDA_VISIBLE_DEVICES names here.
if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
  export MEMDIFF_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES
  unset CUDA_VISIBLE_DEVICES
fi
exec deepspeed --num_gpus 2 --module memdiff train "$@"
