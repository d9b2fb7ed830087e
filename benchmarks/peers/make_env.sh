#!/bin/sh
# Makes the peers' environment and the pipeline that all of them train: sh benchmarks/peers/make_env.sh [VENV] [PIPELINE]
# About 1.5 GB with torch's CPU build. What is there and complete is left alone.
set -eu
cd "$(dirname "$0")/../.."
venv=${1:-.cache/peers-venv}
pipeline=${2:-.cache/peers-pipeline}
wanted=benchmarks/peers/requirements.txt
if ! cmp -s "$wanted" "$venv/installed.txt"; then
    "${PYTHON:-python3}" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$wanted"
    cp "$wanted" "$venv/installed.txt"
fi
if [ ! -f "$pipeline/model_index.json" ]; then
    "$venv/bin/python" -m benchmarks.peers.make_pipeline "$pipeline"
fi
