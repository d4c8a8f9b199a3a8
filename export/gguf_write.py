"""A checkpoint's tensors as one GGUF file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError

from llmkit.checkpoint import CONFIG_FILE, Checkpoint, TensorReader, open_tensors
from llmkit.console import progress
from llmkit.errors import CheckpointError
from llmkit.export.gguf_file import Writer
from llmkit.export.metadata import ARCHITECTURE, MetadataEntry, metadata_of
from llmkit.export.names import TensorEntry, tensor_table
from llmkit.files import written_beside
from llmkit.model.storage import is_matrix, stored_type
from llmkit.quant import quantize
from llmkit.quant.types import QuantType, quant_type


@dataclass(frozen=True)
class ExportedFile:
    """A GGUF file and what is in it."""

    path: Path
    quant: str
    n_bytes: int
    bits_per_weight: float
    kept_f16: tuple[str, ...] = ()  # tensors whose rows the type cannot hold
    kept_f16_bytes: int = 0  # what they take beyond the type's own size


def write_gguf(
    checkpoint: Checkpoint, path: Path, qtype: QuantType, name: str, adapter: str | None = None
) -> ExportedFile:
    """Write one model file, a tensor at a time, so that memory stays at one tensor.

    With `adapter` the file is the base alone, and says that this file of LoRA matrices belongs
    to it. Without, the checkpoint's adapter, if it has one, is merged into the weights.
    """
    table = tensor_table(checkpoint.config)
    types = [stored_type(entry.checkpoint_name, entry.shape, qtype) for entry in table]
    writer = Writer(None, ARCHITECTURE)
    add_metadata(writer, metadata_of(checkpoint, qtype, name, adapter))
    for entry, stored in zip(table, types, strict=True):
        writer.add_tensor_info(
            entry.gguf_name,
            (*entry.shape[:-1], stored.row_bytes(entry.shape[-1])),
            np.dtype(np.uint8),
            n_tensor_bytes(entry, stored),
            raw_dtype=stored.ggml_type,
        )
    with (
        open_weights(checkpoint, merged=adapter is None) as tensors,
        written_beside(path) as beside,
        closing(writer),
    ):
        _check_names(tensors, table)
        writer.write_header_to_file(beside)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        with progress(f"write {path.name}", len(table), "tensors") as bar:
            for number, (entry, stored) in enumerate(zip(table, types, strict=True), start=1):
                writer.write_tensor_data(pack_tensor(tensors, entry, stored))
                bar.update(number)
    return _summary(path, qtype, table, types)


def open_weights(checkpoint: Checkpoint, *, merged: bool) -> AbstractContextManager[TensorReader]:
    """The weights that a file is made of: the base's as they were given, or with the adapter in.

    The blocks that QLoRA trained on are the given weights' own, so they are packed from those.
    """
    return checkpoint.open_merged() if merged else open_tensors(checkpoint.model_file)


def add_metadata(writer: Writer, entries: Iterable[MetadataEntry]) -> None:
    """Add every entry but the architecture, which the writer has already."""
    for entry in entries:
        if entry.key != "general.architecture":
            writer.add_key_value(entry.key, entry.value, entry.kind)


def pack_tensor(tensors: TensorReader, entry: TensorEntry, stored: QuantType) -> NDArray[np.uint8]:
    """A checkpoint's tensor as blocks (rows, bytes). Raises CheckpointError, QuantizationError."""
    rows = (-1, entry.shape[-1])
    if entry.is_absent:
        return quantize(np.zeros(entry.shape, np.float32).reshape(rows), stored, entry.gguf_name)
    try:
        weights = tensors.get_tensor(entry.checkpoint_name)
    except SafetensorError as error:
        raise CheckpointError(
            f"the checkpoint has no tensor {entry.checkpoint_name}; it is not this model's"
        ) from error
    if tuple(weights.shape) != entry.shape:
        raise CheckpointError(
            f"{entry.checkpoint_name} has shape {tuple(weights.shape)}, {CONFIG_FILE} needs "
            f"{entry.shape}"
        )
    array = weights.to(torch.float32).numpy().reshape(rows)
    return quantize(array, stored, entry.checkpoint_name)


def n_tensor_bytes(entry: TensorEntry, stored: QuantType) -> int:
    """Bytes of a tensor's blocks."""
    return int(np.prod(entry.shape[:-1])) * stored.row_bytes(entry.shape[-1])


def _check_names(tensors: TensorReader, table: Sequence[TensorEntry]) -> None:
    known = {entry.checkpoint_name for entry in table if not entry.is_absent}
    foreign = sorted(set(tensors.keys()) - known)
    if foreign:
        raise CheckpointError(
            f"the checkpoint has a tensor {foreign[0]} that {CONFIG_FILE} gives no place; "
            "it would be left out"
        )


def _summary(
    path: Path, qtype: QuantType, table: Sequence[TensorEntry], types: Sequence[QuantType]
) -> ExportedFile:
    pairs = list(zip(table, types, strict=True))
    kept = [
        entry
        for entry, stored in pairs
        if is_matrix(entry.checkpoint_name, entry.shape) and stored is not qtype
    ]
    n_weights = sum(int(np.prod(entry.shape)) for entry in table)
    n_bytes = sum(n_tensor_bytes(entry, stored) for entry, stored in pairs)
    f16 = quant_type("f16")
    extra_bits = sum(
        int(np.prod(entry.shape)) * (f16.bits_per_weight - qtype.bits_per_weight) for entry in kept
    )
    return ExportedFile(
        path=path,
        quant=qtype.name,
        n_bytes=path.stat().st_size,
        bits_per_weight=8 * n_bytes / n_weights,
        kept_f16=tuple(entry.gguf_name for entry in kept),
        kept_f16_bytes=round(extra_bits / 8),
    )
