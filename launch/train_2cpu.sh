#!/usr/bin/env bash
# Two CPU ranks over gloo:  launch/train_2cpu.sh launch/recipes/digits_reinforce.yaml [memdiff train options]
set -euo pipefail
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(( $(nproc) / 2 > 0 ? $(nproc) / 2 : 1 ))}
exec deepspeed --num_gpus 2 --module memdiff train "$@"
