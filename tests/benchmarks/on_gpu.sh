#!/bin/sh
# llmkit on a CUDA GPU, in less than 8 minutes: damaged files, the demo, good files, proofs on the
# GPU, GPTQ, and the speed of a training step. Prints tables for docs/parity.md and
# docs/training.md. The exit code is 1 if a step fails; the others still run.
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
failed=0
step() { # its name, and what Python runs
    echo "== $1 ($(($(date +%s) - started)) s)"
    shift
    "$python" "$@" || failed=1
}

step doctor -P -m llmkit doctor
step "damaged files" "$tests/tools/check_damages.py"
step demo -P -m llmkit demo --out "$1/demo"
step "good files" "$tests/tools/check_backends.py" --sets 3 --files "$1/files" --json "$1/backends.json" "$1/demo/base"
for file in "$1"/demo/export/*.gguf; do
    step "verify $(basename "$file")" -P -m llmkit verify "$1/demo/checkpoint" "$file" --backend gpu
done
step gptq -P -m llmkit export "$1/demo/checkpoint" --quant q4_0 --method gptq --out "$1/gptq"
step "training step" "$tests/benchmarks/bench_gpu_step.py"
echo "== end ($(($(date +%s) - started)) s)"
exit $failed
