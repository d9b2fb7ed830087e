#!/usr/bin/env bash
# The whole job on the built-in digits model: train, sample before and after, judge both, report. For `make demo`.
#   launch/demo.sh [RUN_FOLDER]
# Two CPU ranks, or every GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
run=${1:-runs/demo}
python=${PYTHON:-.venv/bin/python}
gpus=$("$python" -c 'import torch; print(torch.cuda.device_count() or 2)')
built=$(find "${TORCH_EXTENSIONS_DIR:-$HOME/.cache/torch_extensions}" -name deepspeed_shm_comm.so 2>/dev/null | head -n 1 || true)

echo "The demo trains 25 rounds, samples 800 images and writes a report: four to five minutes on two idle CPU cores."
if [ -z "$built" ]; then
    echo "This is the first start here: before, DeepSpeed compiles an operator, which takes about a minute more."
fi
SECONDS=0

stopped() {
    if [ "$1" = 75 ]; then echo "The demo was stopped as asked; the same command goes on with it (make calls that Error 75)."; fi
    exit "$1"
}
"$python" -m memdiff train launch/recipes/digits_reinforce.yaml --gpus "$gpus" --out "$run" || stopped $?
"$python" -m memdiff sample digits --num-images 400 --steps 25 --gpus "$gpus" --out "$run/images_before"
"$python" -m memdiff sample "$run" --num-images 400 --gpus "$gpus" --out "$run/images_after"
"$python" -m memdiff.digits.judge "$run/images_before" "$run/images_after" --json "$run/judge.json"
"$python" -m memdiff report "$run"
echo "It took $((SECONDS / 60)) min $((SECONDS % 60)) s. Open $run/report.html in a browser."
