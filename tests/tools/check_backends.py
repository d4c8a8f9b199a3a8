"""`layers` and `logits` on the installed llama.cpp's backend: good files, and damage of known size.

    make test-backends
    PYTHONPATH=FOLDER/vulkan python tests/tools/check_backends.py [--sets N] [CHECKPOINT...]

FOLDER is what build_backends.sh made. Prints two tables for docs/parity.md. The exit code is 1 if a
good file fails. Without checkpoints a tiny model is trained.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from llmkit.checkpoint.checkpoint import load_checkpoint
from llmkit.data.tales import tales
from llmkit.export.convert import export
from llmkit.export.evaluation.eval_data import TextSequence
from llmkit.export.llamacpp.devices import devices, uses_gpu
from llmkit.export.llamacpp.runtime import LlamaCpp
from llmkit.export.quantization.config import QuantConfig
from llmkit.export.verify.arithmetic import CPU, GPU
from llmkit.export.verify.file_tensors import FileTensors
from llmkit.export.verify.layers_check import LIMIT, layers_check
from llmkit.export.verify.logits_check import compare_logits, nearest_comparison
from llmkit.export.verify.target import VerifyTarget, open_target
from llmkit.training import train

CONFIGS = {
    "rtn": QuantConfig(("f32", "f16", "q8_0", "q4_0", "q4_k_m")),
    "gptq": QuantConfig(("q4_0",), method="gptq"),
}
N_TOKENS = 62  # two micro-batches
DAMAGES = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


def main() -> int:
    """Run both tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoints", nargs="*", type=Path)
    parser.add_argument("--sets", type=int, default=20, help="sets of tokens for each good file")
    options = parser.parse_args()
    gpu = uses_gpu("auto")
    print("devices:", ", ".join(map(str, devices())), flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoints = options.checkpoints or [_tiny(folder)]
        files = [
            (f"{checkpoint.name} {method} {file.quant}", open_target(loaded, file.path))
            for number, checkpoint in enumerate(checkpoints)
            for method, config in CONFIGS.items()
            for loaded in [load_checkpoint(checkpoint)]
            for file in export(checkpoint, folder / f"{number}-{method}", config, prove=False).files
        ]
        n_alarms = sum(_good(label, target, options.sets, gpu) for label, target in files)
        for label, target in files[:5]:
            _power(label, target, gpu)
    return int(n_alarms > 0)


def _tiny(folder: Path) -> Path:
    text = folder / "tales.txt"
    text.write_text("<|endoftext|>".join(itertools.islice(tales(5), 300)), encoding="utf-8")
    sizes = {"n_layer": 2, "n_head": 4, "n_embd": 256, "context_length": 64}
    train(text, folder / "tiny", vocab_size=512, model=sizes, training={"steps": 30})
    return folder / "tiny"


def _texts(target: VerifyTarget, n_sets: int) -> Iterator[TextSequence]:
    config = target.checkpoint.config
    n = min(N_TOKENS, config.context_length - 1)
    for seed in range(n_sets):
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(config.vocab_size, (n + 1,), generator=generator)
        yield TextSequence(ids.numpy(), np.ones(n, np.bool_))


def _good(label: str, target: VerifyTarget, n_sets: int, gpu: bool) -> int:
    """Alarms of a good file: a line with the largest values."""
    layers, logits, without, explained = [], [], [], Counter[str]()
    n_alarms = 0
    with LlamaCpp(target.file.path, gpu=gpu) as llama:
        for text in _texts(target, n_sets):
            layers.append(layers_check(target, text.inputs, gpu=gpu).value)
            found = nearest_comparison(llama, target, [text], GPU if gpu else (CPU,))
            logits.append(found.value)
            n_alarms += layers[-1] > LIMIT or found.value > found.limit
            explained[found.arithmetic.name] += 1
            if gpu:
                without.append(compare_logits(llama, target, [text]).value)
    cells = [label, f"{max(layers):.2f}", f"{max(logits):.2f}", str(n_alarms)]
    cells.append(", ".join(f"{name} {n}" for name, n in explained.items()))
    cells.append(f"{max(without):.3g}" if gpu else "")
    print("|", " | ".join(cells), "|", flush=True)
    return n_alarms


def _scaled(part: Callable[[Tensor], Tensor]) -> Callable[[Tensor, float], None]:
    return lambda weight, size: part(weight).mul_(1 + size)  # type: ignore[return-value]


PARTS = {
    "matrix": _scaled(lambda weight: weight),
    "row": _scaled(lambda weight: weight[3]),
    "scale": _scaled(lambda weight: weight[3, :32]),
}


@contextmanager
def _damaged(name: str, part: str, size: float) -> Iterator[None]:
    """The reference sees a tensor that is off, so that llama.cpp's is."""
    tensor = FileTensors.tensor

    def seen(self: FileTensors, wanted: str) -> Tensor:
        found = tensor(self, wanted)
        if wanted == name:
            found = found.clone()
            PARTS[part](found, size)
        return found

    FileTensors.tensor = seen  # type: ignore[method-assign]
    try:
        yield
    finally:
        FileTensors.tensor = tensor  # type: ignore[method-assign]


def _power(label: str, target: VerifyTarget, gpu: bool) -> None:
    """The smallest damage that `layers` finds in each of three parts of one matrix."""
    (text,) = _texts(target, 1)
    name = "blk.1.ffn_up.weight"
    found = []
    for part in PARTS:
        for size in DAMAGES:
            with _damaged(name, part, size):
                if not layers_check(target, text.inputs, gpu=gpu).passed:
                    found.append(f"{part} {100 * size:g} %")
                    break
        else:
            found.append(f"{part} not found")
    print("|", label, "|", " | ".join(found), "|", flush=True)


if __name__ == "__main__":
    sys.exit(main())
