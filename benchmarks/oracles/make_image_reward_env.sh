#!/bin/sh
# Makes the environment of the oracle: sh benchmarks/oracles/make_image_reward_env.sh FOLDER [PYTHON]
# About 6 GB: torch 2.2.2 of the package index is a CUDA build, and does not import without its libraries.
set -eu
folder=$1
here=$(dirname "$0")
"${2:-python3.11}" -m venv "$folder"
"$folder/bin/pip" install --no-deps -r "$here/requirements_image_reward.txt"
