"""The files that llama-quantize would make of a checkpoint, with the types that a file has.

Once llama-quantize has chosen a tensor's type, all it does is ggml_quantize_chunk on the f32
weights, with a row of importances where the importance matrix has one (src/llama-quant.cpp).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from llmkit.architectures.base import TensorSpec
from llmkit.architectures.registry import tensor_specs
from llmkit.checkpoint.checkpoint import Checkpoint
from llmkit.checkpoint.tensors import TensorReader
from llmkit.console import progress
from llmkit.export.evaluation.file_divergence import different_models
from llmkit.export.gguf.adapter import adapter_of
from llmkit.export.gguf.reader import GGUFFile, read_gguf
from llmkit.export.gguf.writer import open_weights
from llmkit.export.quantization.imatrix import ImportanceMatrix
from llmkit.quant import quant_type_of, quantize

PLAIN, WITH_IMATRIX = "llama.cpp", "llama.cpp imatrix"  # methods, as `compare` names them


@dataclass(frozen=True)
class PeerFile:
    """A file of llama-quantize's with the same type for every tensor as others."""

    file: GGUFFile
    method: str
    like: tuple[GGUFFile, ...]


def write_peers(
    checkpoint: Checkpoint, files: Sequence[GGUFFile], imatrix: ImportanceMatrix, folder: Path
) -> list[PeerFile]:
    """For each distinct choice of types among `files` two files: without and with importances.

    Where nothing is quantized there is none; where a type needs importances, only the second.
    Raises GGUFError for a file that is not of this checkpoint.
    """
    alike: dict[object, list[GGUFFile]] = {}
    for file in files:
        if any(tensor.is_quantized for tensor in file.tensors.values()):
            alike.setdefault(_types(file), []).append(file)
    peers = []
    with progress("quantize as llama.cpp", len(alike), "files") as bar:
        for number, like in enumerate(alike.values(), start=1):
            for method in (PLAIN, WITH_IMATRIX):
                if method == PLAIN and _needs_importance(like[0]):
                    continue
                path = folder / str(number) / f"{method}.gguf"
                write_like(like[0], checkpoint, path, imatrix if method == WITH_IMATRIX else None)
                peers.append(PeerFile(read_gguf(path), method, tuple(like)))
            bar.update(number)
    return peers


def write_like(
    file: GGUFFile, checkpoint: Checkpoint, path: Path, imatrix: ImportanceMatrix | None
) -> None:
    """Copy `file`, and its adapter, to `path` and pack the checkpoint's weights into every tensor.

    Types, metadata and the number of bytes are the same. Raises GGUFError where the tensors are
    not the checkpoint's.
    """
    table = {entry.gguf_name: entry for entry in tensor_specs(checkpoint.config)}
    shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
    if shapes != {name: entry.shape for name, entry in table.items()}:
        raise different_models(file.path, checkpoint, "tensors")
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file.path, path)
    adapter = adapter_of(file)
    if adapter is not None:
        shutil.copyfile(adapter.path, path.parent / adapter.path.name)
    copy = gguf.GGUFReader(path, "r+")
    with open_weights(checkpoint, file.quantization(), merged=file.adapter_name is None) as tensors:
        for tensor in copy.tensors:
            weights = _weights(tensors, table[tensor.name])
            importance = None if imatrix is None else imatrix.importance(tensor.name)
            blocks = quantize(weights, quant_type_of(tensor.tensor_type), tensor.name, importance)
            tensor.data.view(np.uint8).reshape(-1)[:] = blocks.reshape(-1)
    copy.data.flush()


def _weights(tensors: TensorReader, entry: TensorSpec) -> NDArray[np.float32]:
    if entry.is_absent:
        return np.zeros(entry.shape, np.float32)
    weights: NDArray[np.float32] = tensors.get_tensor(entry.checkpoint_name).float().numpy()
    return weights


def _types(file: GGUFFile) -> object:
    """Equal for files with the same type for every tensor and the same adapter."""
    adapter = adapter_of(file)
    types = frozenset((tensor.name, tensor.ggml_type) for tensor in file.tensors.values())
    return types, adapter and adapter.path


def _needs_importance(file: GGUFFile) -> bool:
    return any(tensor.qtype.needs_importance for tensor in file.tensors.values())
