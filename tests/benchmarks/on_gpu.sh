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
"$bin/python" - <<'PYTHON'
import statistics, time
import torch
from llmkit.architectures.registry import model_config, new_model
config = model_config("gpt2", 50257)
model = new_model(config).cuda()
ids = torch.randint(50257, (8, 1024), device="cuda")
seconds = []
for _ in range(10):
    started = time.perf_counter()
    with torch.autocast("cuda", torch.bfloat16):
        torch.nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()
    torch.cuda.synchronize()
    seconds.append(time.perf_counter() - started)
n = sum(weight.numel() for weight in model.parameters())
flops = ids.numel() * (6 * n + 12 * config.n_layer * config.n_embd * 1024)
print(f"training step: {flops / statistics.median(seconds) / 1e12:.1f} TFLOP/s in bfloat16")
PYTHON
