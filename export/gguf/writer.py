"""A checkpoint's tensors as one GGUF file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import gguf
import numpy as np
import torch
from numpy.typing import NDArray

from llmkit.architectures.base import ModelConfig, TensorSpec
from llmkit.architectures.registry import in_llama_cpp, tensor_specs
from llmkit.checkpoint.checkpoint import Checkpoint
from llmkit.checkpoint.tensors import (
    TensorReader,
    check_tensor,
    open_tensors,
    scaled_tensors,
    unexpected_tensor,
)
from llmkit.console import progress
from llmkit.export.gguf.metadata import ChosenBlocks, MetadataEntry, metadata_of
from llmkit.export.gguf.reader import Writer
from llmkit.files import written_beside
from llmkit.quant import quantize
from llmkit.quant.types import QuantType
from llmkit.quantization.tensor_types import Quantization


@dataclass(frozen=True)
class ExportedFile:
    """A GGUF file and what is in it."""

    path: Path
    quant: str
    n_bytes: int
    bits_per_weight: float
    fallbacks: tuple[str, ...] = ()  # tensors whose rows their type cannot hold, and what can
    fallback_bytes: int = 0  # what they take beyond the type's own size


def write_gguf(
    checkpoint: Checkpoint,
    path: Path,
    quantization: Quantization,
    name: str,
    adapter: str | None = None,
    chosen: ChosenBlocks | None = None,
    *,
    merged: bool = True,
) -> ExportedFile:
    """Write one model file, a tensor at a time, so that memory stays at one tensor.

    With `merged` the checkpoint's adapter, if it has one, is merged into the weights; without,
    the file is the base alone. `adapter` names the file of LoRA matrices that belongs to it.
    Matrices that are not in `chosen` are rounded.
    """
    table = tensor_specs(checkpoint.config)
    types = [quantization.type_of(entry, checkpoint.config) for entry in table]
    entries = metadata_of(checkpoint, quantization, name, adapter, chosen)
    writer = _writer(entries, table, types)
    with (
        open_weights(checkpoint, quantization, merged=merged) as tensors,
        written_beside(path) as beside,
        closing(writer),
    ):
        _check_names(tensors, table)
        write_header(writer, beside)
        with progress(f"write {path.name}", len(table), "tensors") as bar:
            for number, (entry, stored) in enumerate(zip(table, types, strict=True), start=1):
                blocks = chosen.blocks.get(entry.checkpoint_name) if chosen else None
                if blocks is None:
                    blocks = pack_tensor(tensors, entry, stored)
                writer.write_tensor_data(blocks)
                bar.update(number)
    return _summary(path, quantization, checkpoint.config, table, types)


def _writer(
    entries: Sequence[MetadataEntry], table: Sequence[TensorSpec], types: Sequence[QuantType]
) -> Writer:
    architecture = next(e.value for e in entries if e.key == gguf.Keys.General.ARCHITECTURE)
    writer = Writer(None, str(architecture))
    add_metadata(writer, entries)
    for entry, stored in zip(table, types, strict=True):
        writer.add_tensor_info(
            entry.gguf_name,
            (*entry.shape[:-1], stored.row_bytes(entry.shape[-1])),
            np.dtype(np.uint8),
            n_tensor_bytes(entry, stored),
            raw_dtype=stored.ggml_type,
        )
    return writer


def write_header(writer: Writer, path: Path) -> None:
    """Write all that comes before the blocks: metadata, and each tensor's name, type and place."""
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()


def n_header_bytes(
    checkpoint: Checkpoint,
    quantization: Quantization,
    name: str,
    adapter: str | None = None,
    chosen: ChosenBlocks | None = None,
) -> int:
    """Bytes of a file that are not its tensors', at most."""
    table = tensor_specs(checkpoint.config)
    types = [quantization.type_of(entry, checkpoint.config) for entry in table]
    entries = metadata_of(checkpoint, quantization, name, adapter, chosen)
    with TemporaryDirectory(prefix="llmkit-") as folder:
        path = Path(folder) / "header"
        with closing(_writer(entries, table, types)) as writer:
            write_header(writer, path)
        return path.stat().st_size + len(table) * gguf.GGUF_DEFAULT_ALIGNMENT


@contextmanager
def open_weights(
    checkpoint: Checkpoint, quantization: Quantization, *, merged: bool
) -> Iterator[TensorReader]:
    """The weights that a file is made of: the base's as they were given, or with the adapter in.

    The blocks that QLoRA trained on are the given weights' own, so they are packed from those.
    """
    config = checkpoint.config
    _, scales = in_llama_cpp(config, lambda spec: quantization.type_of(spec, config).name)
    opened = checkpoint.open_merged() if merged else open_tensors(checkpoint.model_file)
    with opened as tensors:
        yield scaled_tensors(tensors, scales)


def add_metadata(writer: Writer, entries: Iterable[MetadataEntry]) -> None:
    """Add every entry but the architecture, which the writer has already."""
    for entry in entries:
        if entry.key != gguf.Keys.General.ARCHITECTURE:
            writer.add_key_value(entry.key, entry.value, entry.kind)


def pack_tensor(tensors: TensorReader, entry: TensorSpec, stored: QuantType) -> NDArray[np.uint8]:
    """A checkpoint's tensor as blocks (rows, bytes). Raises CheckpointError, QuantizationError."""
    rows = (-1, entry.shape[-1])
    if entry.is_absent:
        return quantize(np.zeros(entry.shape, np.float32).reshape(rows), stored, entry.gguf_name)
    weights = tensors.get_tensor(entry.checkpoint_name)
    check_tensor(tensors.path, entry.checkpoint_name, weights, entry.shape)
    array = weights.to(torch.float32).numpy().reshape(rows)
    return quantize(array, stored, entry.checkpoint_name)


def n_tensor_bytes(entry: TensorSpec, stored: QuantType) -> int:
    """Bytes of a tensor's blocks."""
    return int(np.prod(entry.shape[:-1])) * stored.row_bytes(entry.shape[-1])


def _check_names(tensors: TensorReader, table: Sequence[TensorSpec]) -> None:
    known = {entry.checkpoint_name for entry in table if not entry.is_absent}
    foreign = sorted(set(tensors.keys()) - known)
    if foreign:
        raise unexpected_tensor(tensors.path, foreign[0])


def _summary(
    path: Path,
    quantization: Quantization,
    config: ModelConfig,
    table: Sequence[TensorSpec],
    types: Sequence[QuantType],
) -> ExportedFile:
    n_weights = n_bytes = 0
    fallbacks, fallback_bits = [], 0.0
    for entry, stored in zip(table, types, strict=True):
        n = int(np.prod(entry.shape))
        n_weights += n
        n_bytes += n_tensor_bytes(entry, stored)
        wanted = quantization.wanted(entry, config)
        if entry.is_matrix and stored is not wanted:
            fallbacks.append(f"{entry.gguf_name}: {stored.name}")
            fallback_bits += n * (stored.bits_per_weight - wanted.bits_per_weight)
    return ExportedFile(
        path=path,
        quant=quantization.name,
        n_bytes=path.stat().st_size,
        bits_per_weight=8 * n_bytes / n_weights,
        fallbacks=tuple(fallbacks),
        fallback_bytes=round(fallback_bits / 8),
    )
