#!/bin/sh
# The demo, a proof, GPTQ and a training step on a CUDA GPU, in under 8 minutes. Prints tables for
# docs/parity.md. Needs nvcc and an installed llmkit in .venv.
#
#     tests/benchmarks/on_gpu.sh FOLDER
set -eu
tools=$(cd "$(dirname "$0")/../tools" && pwd)
bin=$(dirname "$(dirname "$tools")")/.venv/bin
mkdir -p "$1"
"$tools/build_backends.sh" "$1" cuda
export PYTHONPATH="$1/cuda"
"$bin/llmkit" doctor || true
time "$bin/llmkit" demo --out "$1/demo"
for file in "$1"/demo/export/*.gguf; do
    time "$bin/llmkit" verify "$1/demo/checkpoint" "$file" --backend gpu
done
time "$bin/llmkit" export "$1/demo/checkpoint" --quant q4_0 --method gptq --out "$1/gptq"
"$bin/python" "$tools/check_backends.py" --sets 5 "$1/demo/base"
"$bin/python" "$tools/../benchmarks/bench_gpu_step.py"
