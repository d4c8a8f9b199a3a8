#!/bin/sh
# llmkit on a CUDA GPU, in about 8 minutes: the demo, proofs on the GPU, GPTQ, good and damaged
# files, and the speed of a training step. Prints tables for docs/parity.md and docs/training.md.
#
#     tests/benchmarks/on_gpu.sh FOLDER
#
# Builds llama.cpp with CUDA in FOLDER/cuda if it is not there. This needs nvcc, and takes half an
# hour on two cores. PYTHON is the Python that has llmkit; otherwise that of .venv.
set -eu
tests=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$(dirname "$tests")/.venv/bin/python}
mkdir -p "$1"
PYTHON=$python "$tests/tools/build_backends.sh" "$1" cuda
export PYTHONPATH="$1/cuda${PYTHONPATH:+:$PYTHONPATH}"
started=$(date +%s)
step() { echo "== $1 ($(($(date +%s) - started)) s)"; }

step doctor
"$python" -P -m llmkit doctor || true
step "training step"
"$python" -P "$tests/benchmarks/bench_gpu_step.py"
step demo
"$python" -P -m llmkit demo --out "$1/demo"
for file in "$1"/demo/export/*.gguf; do
    step "verify $(basename "$file")"
    "$python" -P -m llmkit verify "$1/demo/checkpoint" "$file" --backend gpu
done
step gptq
"$python" -P -m llmkit export "$1/demo/checkpoint" --quant q4_0 --method gptq --out "$1/gptq"
step "good files"
"$python" -P "$tests/tools/check_backends.py" --files "$1/files" --json "$1/backends.json" "$1/demo/base"
step "damaged files"
"$python" -P "$tests/tools/check_damages.py"
step end
