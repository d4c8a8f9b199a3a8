"""`layers` and `logits` on the installed llama.cpp's backend: good files, and damage of known size.

    make test-backends
    PYTHONPATH=FOLDER/vulkan python tests/tools/check_backends.py [--sets N] [CHECKPOINT...]

FOLDER is what build_backends.sh made. The first checkpoint is also tried as a classifier and with
an adapter; without checkpoints a tiny model is trained. Prints tables for docs/parity.md. The exit
code is 1 if a good file fails.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "export"))

from finetuned import with_adapter

from llmkit.checkpoint.checkpoint import load_checkpoint
from llmkit.data.tales import tales
from llmkit.errors import LlmkitError
from llmkit.export.convert import export
from llmkit.export.evaluation.divergence import Divergence
from llmkit.export.evaluation.eval_data import TextSequence
from llmkit.export.llamacpp.devices import devices, uses_gpu
from llmkit.export.llamacpp.runtime import LlamaCpp
from llmkit.export.quantization.config import QuantConfig
from llmkit.export.verify.arithmetic import CPU, Arithmetic
from llmkit.export.verify.file_tensors import FileTensors
from llmkit.export.verify.layers_check import LIMIT, compare_layers, layers_check
from llmkit.export.verify.logits_check import NOISE_MULTIPLE, LogitsComparison, compare_logits
from llmkit.export.verify.target import VerifyTarget, open_target
from llmkit.finetuning.classify import finetune_classify
from llmkit.finetuning.config import FinetuneConfig
from llmkit.training import train

CONFIGS = {
    "rtn": QuantConfig(("f32", "f16", "q8_0", "q4_0", "q4_k_m")),
    "gptq": QuantConfig(("q4_0",), method="gptq"),
}
N_TOKENS = 62  # two micro-batches
DAMAGES = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
COLUMNS = ("model", "type", "backend", "sets", "layers", "logits", "alarms", "with_cpu")
COLUMNS += ("arithmetic", "seconds")


def main() -> int:
    """Check all files, and find the smallest damage."""
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoints", nargs="*", type=Path)
    parser.add_argument("--sets", type=int, default=20, help="sets of tokens for each good file")
    parser.add_argument("--files", type=Path, help="folder that keeps the models and their files")
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--no-power", action="store_true", help="skip the table of damages")
    options = parser.parse_args()
    gpu = uses_gpu("auto")
    print("devices:", ", ".join(map(str, devices())), flush=True)
    print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = options.files or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        files = [
            (checkpoint, method, path)
            for checkpoint in _models(options.checkpoints, folder)
            for method, config in CONFIGS.items()
            for path in _exported(checkpoint, folder / "files" / checkpoint.name, method, config)
        ]
        rows = [_good(*file, options.sets, gpu) for file in files]
        for file in [] if options.no_power else files[:5]:
            _power(*file, gpu)
    if options.json:
        found = {"devices": list(map(str, devices())), "rows": rows}
        options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    n_alarms = sum(row["alarms"] for row in rows)
    print(f"{len(rows)} files, {sum(row['sets'] for row in rows)} sets, {n_alarms} alarms")
    return int(n_alarms > 0)


def _models(checkpoints: Sequence[Path], folder: Path) -> list[Path]:
    """The checkpoints, a classifier and an adapter of the first."""
    if not checkpoints and not (folder / "tiny").exists():
        text = folder / "tales.txt"
        text.write_text("<|endoftext|>".join(itertools.islice(tales(5), 300)), encoding="utf-8")
        sizes = {"n_layer": 2, "n_head": 4, "n_embd": 256, "context_length": 64}
        train(text, folder / "tiny", vocab_size=512, model=sizes, training={"steps": 30})
    checkpoints = checkpoints or [folder / "tiny"]
    classifier, adapter = folder / "classifier", folder / "adapter"
    if not classifier.exists():
        texts = folder / "texts.tsv"
        lines = [f"{'good' if n % 2 else 'bad'}\tword {n} and {n * n}" for n in range(80)]
        texts.write_text("\n".join(lines), encoding="utf-8")
        config = FinetuneConfig(epochs=1, add_tokens=True)
        finetune_classify(checkpoints[0], texts, classifier, config=config)
    if not adapter.exists():
        with_adapter(load_checkpoint(checkpoints[0]), adapter)
    return [*checkpoints, classifier, adapter]


def _exported(checkpoint: Path, folder: Path, method: str, config: QuantConfig) -> list[Path]:
    if not (folder / method).exists():
        export(checkpoint, folder / method, config, prove=False)
    name = checkpoint.resolve().name
    return [folder / method / f"{name}-{quant}.gguf" for quant in config.quants]


def token_sets(target: VerifyTarget, n_sets: int) -> list[TextSequence]:
    """Sets of random tokens, the same in every run."""
    config = target.checkpoint.config
    n = min(N_TOKENS, config.context_length - 1)
    seeds = (torch.Generator().manual_seed(seed) for seed in range(n_sets))
    ids = (torch.randint(config.vocab_size, (n + 1,), generator=seed) for seed in seeds)
    return [TextSequence(some.numpy(), np.ones(n, np.bool_)) for some in ids]


def compared(
    llama: LlamaCpp,
    target: VerifyTarget,
    texts: Sequence[TextSequence],
    arithmetic: Arithmetic,
) -> list[LogitsComparison]:
    """What `logits` compares, of each text. The reference takes all texts at once."""
    found = compare_logits(llama, target, texts, arithmetic)
    ends = np.cumsum([len(text.inputs) for text in texts])
    return [
        _part(found, slice(end - len(text.inputs), end))
        for text, end in zip(texts, ends, strict=True)
    ]


def _part(found: LogitsComparison, positions: slice) -> LogitsComparison:
    conversion, noise = (
        Divergence(**{name: values[positions] for name, values in vars(divergence).items()})
        for divergence in (found.conversion, found.noise)
    )
    return replace(found, conversion=conversion, noise=noise)


def _good(checkpoint: Path, method: str, path: Path, n_sets: int, gpu: bool) -> dict[str, Any]:
    """Largest values of a good file over all sets, as a row that is printed."""
    started = time.monotonic()
    target = open_target(load_checkpoint(checkpoint), path)
    quant = target.file.quant + (" by GPTQ" if method == "gptq" else "")
    row = {"model": checkpoint.name, "type": quant, "backend": devices()[0].name, "sets": n_sets}
    try:
        sets = token_sets(target, n_sets)
        compared_layers = [compare_layers(target, text.inputs, gpu=gpu) for text in sets]
        layers = [one.outcome.value for one in compared_layers]
        names = Counter(one.arithmetics[0] for one in compared_layers)
        with LlamaCpp(path, gpu=gpu) as llama:
            logits, with_cpu = (
                [one.value for one in compared(llama, target, sets, arithmetic)]
                for arithmetic in (names.most_common(1)[0][0], CPU)
            )
        wrong = np.greater(logits, NOISE_MULTIPLE) | np.greater(layers, LIMIT)
        row |= {"layers": max(layers), "logits": max(logits)}
        row |= {"alarms": int(wrong.sum()), "with_cpu": max(with_cpu)}
        row["arithmetic"] = ", ".join(f"{one.name} {n}" for one, n in names.items())
    except LlmkitError as error:
        row |= {"alarms": n_sets, "arithmetic": f"error: {error}"}
    row["seconds"] = time.monotonic() - started
    cells = (row.get(name, "") for name in COLUMNS)
    cells = (f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells)
    print(f"| {' | '.join(cells)} |", flush=True)
    return row


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


def _power(checkpoint: Path, _method: str, path: Path, gpu: bool) -> None:
    """The smallest damage that `layers` finds in each of three parts of one matrix."""
    target = open_target(load_checkpoint(checkpoint), path)
    (text,) = token_sets(target, 1)
    name = "blk.1.ffn_up.weight"

    def finds(size: float, part: str) -> bool:
        with _damaged(name, part, size):
            return not layers_check(target, text.inputs, gpu=gpu).passed

    found = []
    for part in PARTS:
        at = bisect_left(DAMAGES, True, key=partial(finds, part=part))
        found.append(
            f"{part} {100 * DAMAGES[at]:g} %" if at < len(DAMAGES) else f"{part} not found"
        )
    print("|", path.stem, "|", " | ".join(found), "|", flush=True)


if __name__ == "__main__":
    sys.exit(main())
