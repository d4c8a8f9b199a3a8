"""llm.c's `.bin`: a header of 256 integers, then the tensors of each kind for all layers in turn.

From write_model and write_tensors of llm.c's train_gpt2.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from llmkit.errors import CheckpointError
from llmkit.importing.source.source import Source

_HEADER_BYTES = 1024
_DTYPES = {3: torch.float32, 5: torch.bfloat16}  # by the format's version


def open_llmc(path: Path) -> Source:
    """Map the tensors, under the names that nanoGPT gives them."""
    header = np.fromfile(path, "<i4", 256)
    if len(header) < 256:
        raise CheckpointError(f"{path} is truncated; copy it again")
    version, context, vocab, n_layer, n_head, n_embd, rows = (int(n) for n in header[1:8])
    if version not in _DTYPES:
        raise CheckpointError(f"{path} has version {version} of llm.c's format; 3 and 5 are known")
    if min(context, vocab, n_layer, n_head, n_embd) < 1 or rows < vocab:
        raise CheckpointError(f"{path} has a damaged header; copy it again")
    dtype = _DTYPES[version]
    kinds = list(_kinds(rows, context, n_embd))
    n_numbers = sum(prod(shape) * (n_layer if "{}" in name else 1) for name, shape in kinds)
    wanted = _HEADER_BYTES + n_numbers * dtype.itemsize
    if path.stat().st_size != wanted:
        raise CheckpointError(
            f"{path} has {path.stat().st_size:,} bytes, but its header needs {wanted:,}; "
            "copy it again"
        )
    storage = torch.UntypedStorage.from_file(str(path), False, wanted)
    numbers = torch.empty(0, dtype=dtype)
    numbers.set_(storage)  # type: ignore[arg-type]
    numbers = numbers[_HEADER_BYTES // dtype.itemsize :]
    tensors: dict[str, Tensor] = {}
    start = 0
    for name, shape in kinds:
        for layer in range(n_layer if "{}" in name else 1):
            tensors[name.format(layer)] = numbers[start : start + prod(shape)].view(shape)
            start += prod(shape)
    settings = {
        "block_size": context,
        "vocab_size": vocab,
        "n_layer": n_layer,
        "n_head": n_head,
        "n_embd": n_embd,
    }
    kind = f"llm.c file, version {version} ({'float32' if version == 3 else 'bfloat16'})"
    return Source(path, path.parent, kind, tensors, settings, boxes=frozenset(("llm.c",)))


def _kinds(rows: int, context: int, n_embd: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    V, T, C = rows, context, n_embd
    block = "transformer.h.{}."
    yield "transformer.wte.weight", (V, C)
    yield "transformer.wpe.weight", (T, C)
    for name, n_rows, n_columns in (
        ("ln_1", C, 0), ("attn.c_attn", 3 * C, C), ("attn.c_proj", C, C),
        ("ln_2", C, 0), ("mlp.c_fc", 4 * C, C), ("mlp.c_proj", C, 4 * C),
    ):  # fmt: skip
        yield f"{block}{name}.weight", (n_rows, n_columns) if n_columns else (n_rows,)
        yield f"{block}{name}.bias", (n_rows,)
    yield "transformer.ln_f.weight", (C,)
    yield "transformer.ln_f.bias", (C,)
