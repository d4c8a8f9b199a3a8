"""A training step of GPT-2 124M on a GPU: tokens per second, FLOPs per second, memory.

    PYTHONPATH=. python tests/benchmarks/bench_gpu_step.py [--preset NAME] [--sequences N] [--cpu]

The product's own step on random tokens, in bfloat16: without and with torch.compile, with AdamW
and Muon, in micro-batches of 64 sequences and in the largest that fit; then the kernels that take
longest. Model FLOPs utilisation (MFU) is the share of 989 TFLOP/s, what an H100 SXM or H200 is
specified for. Of llmkit's dependencies it needs PyTorch, NumPy and pydantic.
"""

from __future__ import annotations

import argparse
import sys
import time
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

PEAK_FLOPS = 989e12  # H100 SXM and H200, bfloat16 without sparsity
MICRO_BATCH = 64
AUTO = 0  # the largest micro-batch that fits
VOCAB_SIZE = 50257
N_KERNELS = 25
NOT_USED = {"gguf", "rich", "safetensors", "tokenizers"}


class Absent(MetaPathFinder, Loader):
    """Stand-ins for packages that a step does not use, where they are not installed."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        is_unused = name.partition(".")[0] in NOT_USED
        return ModuleSpec(name, self, is_package=True) if is_unused else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return MagicMock(__path__=[])

    def exec_module(self, module: ModuleType) -> None:
        pass


def main() -> None:
    """Print a line for each setting."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--preset", default="gpt2")
    parser.add_argument("--sequences", type=int, default=512, help="per step")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args()
    sys.meta_path.append(Absent())

    import torch

    from llmkit.training.flops import peak_flops

    device = torch.device("cpu" if options.cpu else "cuda")
    name = "CPU" if options.cpu else torch.cuda.get_device_name()
    products = peak_flops(device)
    print(f"{name}, PyTorch {torch.__version__}, products {products / 1e12:.3g} TFLOP/s")
    print("setting | tokens/s | TFLOP/s | MFU | of products | peak GB | first step, s | loss")
    small = min(MICRO_BATCH, options.sequences)
    measure(options, device, products, small, False, "adamw")
    measure(options, device, products, small, True, "adamw")
    for optimizer in ("adamw", "muon"):
        measure(options, device, products, AUTO, True, optimizer)


def measure(  # type: ignore[no-untyped-def]
    options, device, products: float, micro_batch: int, compiled: bool, optimizer: str
) -> None:
    """Time the steps of a setting; print its line and, with Muon, its kernels."""
    import torch

    from llmkit.architectures.registry import model_config
    from llmkit.memory import peak_memory_bytes
    from llmkit.training.config import training_config
    from llmkit.training.flops import flops_per_token
    from llmkit.training.loop import TrainingLoop
    from llmkit.training.micro_batch import RandomTokens, with_micro_batch
    from llmkit.training.run_folder import RunFolder
    from llmkit.training.run_state import RunState

    sizes = model_config(options.preset, VOCAB_SIZE)
    config = training_config(
        options.preset,
        batch_size=options.sequences,
        micro_batch=micro_batch,
        optimizer=optimizer,
        compile=compiled,
    )
    config = with_micro_batch(config, sizes, device)
    task = RandomTokens(config, sizes)
    loop = TrainingLoop(RunFolder(Path()), RunState({}, {}), config, task, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    setting = (
        f"{'compiled' if compiled else 'eager'}, {optimizer}, micro-batch {config.micro_batch}"
    )
    try:
        started = time.perf_counter()
        float(loop.step(0))  # waits for the GPU
        first_s = time.perf_counter() - started
        float(loop.step(1))
        started = time.perf_counter()
        losses = [loop.step(step) for step in range(2, 2 + options.steps)]
        loss = float(losses[-1])
        seconds = (time.perf_counter() - started) / options.steps
    except torch.OutOfMemoryError:
        print(f"{setting} | out of memory", flush=True)
        return
    rate = task.batch_tokens / seconds
    flops = rate * flops_per_token(loop.model.n_parameters(), sizes)
    print(
        f"{setting} | {rate:,.0f} | {flops / 1e12:.4g} | {flops / PEAK_FLOPS:.1%} | "
        f"{flops / products:.1%} | {peak_memory_bytes(device) / 1e9:.1f} | {first_s:.1f} | "
        f"{loss:.2f}",
        flush=True,
    )
    if optimizer == "muon":
        with torch.profiler.profile() as profile:
            float(loop.step(9))
        by = f"self_{'device' if device.type == 'cuda' else 'cpu'}_time_total"
        there = [k for k in profile.key_averages() if k.device_type.name.lower() == device.type]
        kernels = sorted(there, key=lambda kernel: -getattr(kernel, by))
        total = sum(getattr(kernel, by) for kernel in kernels)
        print(f"{setting}, the kernels of a step, {total / 1e3:.1f} ms:")
        for kernel in kernels[:N_KERNELS]:
            took = getattr(kernel, by)
            print(f"{took / 1e3:9.2f} ms {took / total:5.1%} {kernel.count:5} x {kernel.key[:110]}")


if __name__ == "__main__":
    main()
