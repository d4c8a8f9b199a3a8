"""Damaged files on the installed llama.cpp's backend: which checks see each of them.

    PYTHONPATH=FOLDER/vulkan python tests/tools/check_damages.py

`tensors` and `metadata` read the file. `layers` and `logits` hold what llama.cpp computes from the
damaged file against the good one, as if the file were right and the backend wrong. The exit code
is 1 if no check sees a damage, or if neither `layers` nor `logits` sees one that moves PyTorch's
logits by more than hardware may.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from check_backends import compared, token_sets
from gguf_surgery import Kind, make_checkpoint, with_key, with_numbers, with_tensor
from test_damaged_tensors import NUMBERS, ROWS, UP, VECTORS, xor
from verify_targets import lora_checkpoint, write, write_apart

from llmkit.export.convert import export
from llmkit.export.evaluation.divergence import Distance, divergence
from llmkit.export.evaluation.eval_data import TextSequence
from llmkit.export.llamacpp.devices import devices, uses_gpu
from llmkit.export.llamacpp.runtime import LlamaCpp
from llmkit.export.quantization.config import QuantConfig
from llmkit.export.verify.layers_check import compare_layers
from llmkit.export.verify.logits_check import NOISE_MULTIPLE, spread
from llmkit.export.verify.metadata_check import metadata_check
from llmkit.export.verify.reference import Reference
from llmkit.export.verify.target import VerifyTarget, open_target
from llmkit.export.verify.tensors_check import tensors_check

Damage = Callable[[Path, Path], Path]  # a good file and where to write the bad one
BLOCKS = {  # a bit of a scale, a bit of a code
    "q8_0": {"one bit of a scale": xor(17, 35, 4), "one bit of a code": xor(3, 41, 64)},
    "q4_0": {"one bit of a scale": xor(17, 19, 4), "one bit of a code": xor(3, 25, 64)},
    "gptq": {"one bit of a scale": xor(9, 1, 16), "one bit of a code": xor(3, 25, 64)},
}
KEYS = {
    "one head": ("gpt2.attention.head_count", 1, Kind.UINT32),
    "four heads": ("gpt2.attention.head_count", 4, Kind.UINT32),
    "another eps": ("gpt2.attention.layer_norm_epsilon", 1e-2, Kind.FLOAT32),
}


def main() -> int:
    """A line for each file, with the damages that `layers` and `logits` do not see."""
    gpu = uses_gpu("auto")
    print("devices:", ", ".join(map(str, devices())))
    print("| file | damages | `tensors`, `metadata` | `layers` | `logits` | neither of these two |")
    print("|---|---|---|---|---|---|")
    n_missed = 0
    with tempfile.TemporaryDirectory() as name:
        for kind, good in _good_files(Path(name)):
            texts = token_sets(good, 1)
            apart = max(far.max_difference for far in spread(good, texts).values())
            bad = good.file.path.with_name("bad.gguf")
            found = {
                damage: _seen(good, make(good.file.path, bad), texts, gpu, apart)
                for damage, make in _damages(kind)
            }
            counts = [sum(bool(seen & set(names)) for seen in found.values()) for names in COLUMNS]
            hidden = [damage for damage, seen in found.items() if not seen & {"layers", "logits"}]
            cells = [kind, len(found), *counts, ", ".join(hidden)]
            print("|", " | ".join(map(str, cells)), "|", flush=True)
            n_missed += sum(not seen - {"moves"} for seen in found.values())
            n_missed += sum("moves" in found[damage] for damage in hidden)
    print(f"{n_missed} missed")
    return int(n_missed > 0)


COLUMNS = (("tensors", "metadata"), ("layers",), ("logits",))


def _good_files(folder: Path) -> Iterator[tuple[str, VerifyTarget]]:
    checkpoint = make_checkpoint(folder / "c", tie_embeddings=False)
    for quant in ("f32", "f16", "q8_0", "q4_0"):
        yield quant, open_target(checkpoint, write(checkpoint, folder / f"{quant}.gguf", quant))
    text = folder / "text.txt"
    text.write_text("some words to merge, some more words " * 200, encoding="utf-8")
    config = QuantConfig(["q4_0"], method="gptq", calibration=text)
    file = export(checkpoint.folder, folder / "gptq", config, prove=False).files[0]
    yield "gptq", open_target(checkpoint, file.path)
    tuned = lora_checkpoint(folder / "tuned")
    for quant in ("f16", "q8_0"):
        (folder / quant).mkdir()
        path = write_apart(tuned, folder / quant, quant)
        yield f"{quant} with an adapter", open_target(tuned, path)


def _damages(kind: str) -> Iterator[tuple[str, Damage]]:
    if kind.endswith("adapter"):
        for half in ("lora_a", "lora_b"):
            yield f"{half} 10 % off", partial(_with_adapter, name=f"{UP}.{half}")
        return
    blocks = {name: (UP, change, 0) for name, change in BLOCKS.get(kind, {}).items()}
    for damage, changes in ((with_tensor, ROWS | VECTORS | blocks), (with_numbers, NUMBERS)):
        for name, (tensor, change, _) in changes.items():
            if kind == "f32" or name != "NaN in a matrix":
                yield name, partial(damage, name=tensor, change=change)
    for name, (key, value, value_kind) in KEYS.items():
        yield name, partial(with_key, name=key, value=value, kind=value_kind)


def _with_adapter(source: Path, target: Path, name: str) -> Path:
    """The same file beside a damaged adapter."""
    folder = target.parent / "damaged"
    shutil.copytree(source.parent, folder, dirs_exist_ok=True)
    adapter = source.with_name("adapter.gguf")
    with_tensor(adapter, folder / adapter.name, name, lambda matrix: 1.1 * matrix)
    return folder / source.name


def _seen(
    good: VerifyTarget, path: Path, sets: list[TextSequence], gpu: bool, apart: float
) -> set[str]:
    """The checks that fail; "moves": the damage changes logits by more than `apart`."""
    bad = open_target(good.checkpoint, path)
    computing = replace(good, file=replace(good.file, path=path))  # llama.cpp reads the damaged one
    layers = compare_layers(computing, sets[0].inputs, gpu=gpu)
    with LlamaCpp(path, gpu=gpu) as llama:
        (logits,) = compared(llama, computing, sets, layers.arithmetics[0])
    passed = {
        "tensors": tensors_check(bad).passed,
        "metadata": metadata_check(bad).passed,
        "layers": layers.outcome.passed,
        "logits": logits.value <= NOISE_MULTIPLE,
        "moves": _moved(good, bad, sets) <= apart,
    }
    return {name for name, fine in passed.items() if not fine}


def _moved(good: VerifyTarget, bad: VerifyTarget, sets: list[TextSequence]) -> float:
    """The largest difference of PyTorch's logits of the two files."""
    text = sets[0]
    with torch.inference_mode():
        wanted, found = (
            Reference(target, torch.float64).logits(text.inputs) for target in (good, bad)
        )
    return Distance.of(divergence(wanted, found, text.targets)).max_difference


if __name__ == "__main__":
    sys.exit(main())
