"""Importance matrices: how much each column of a matrix is used, by the squares of its inputs.

The file format is that of llama.cpp's tools/imatrix/imatrix.cpp: GGUF without an architecture,
and two f32 tensors for each matrix NAME of the model, NAME.in_sum2 and NAME.counts.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from llmkit.architectures.base import LanguageModel
from llmkit.architectures.registry import head_spec, tensor_specs
from llmkit.checkpoint.checkpoint import load_checkpoint
from llmkit.console import progress
from llmkit.errors import GGUFError
from llmkit.export.gguf.reader import GGUFFile, Writer, read_gguf
from llmkit.export.quantization.calibration import calibration_of
from llmkit.files import StrPath, optional_path, written_beside
from llmkit.quant import has_importance

KIND = str(gguf.GGUFType.IMATRIX)
SUMS, COUNTS = ".in_sum2", ".counts"


@dataclass(frozen=True)
class ImportanceStatistics:
    """What went into a matrix of `row_length` columns.

    Several matrices may lie in one tensor (llama.cpp's experts); here `n_matrices` is 1.
    """

    in_sum2: NDArray[np.float32]  # (n_matrices, row_length), sums of squares over tokens
    counts: NDArray[np.float32]  # (n_matrices,), tokens

    @property
    def importance(self) -> NDArray[np.float32]:
        """Mean squares (n_matrices * row_length,), as llama-quantize takes them.

        1 for a matrix that no token reached, like tools/quantize/quantize.cpp.
        """
        counts = self.counts[:, None]
        means = np.divide(self.in_sum2, counts, out=np.ones_like(self.in_sum2), where=counts > 0)
        return means.reshape(-1)

    @property
    def n_without(self) -> int:
        """How many columns have no importance: nothing was measured, or too little for float32."""
        means = np.where(self.counts[:, None] > 0, self.importance.reshape(self.in_sum2.shape), 0)
        return int((~has_importance(means)).sum())


@dataclass(frozen=True)
class ImportanceMatrix:
    """Input statistics of a model's matrices by their GGUF names, and the text they are of."""

    statistics: Mapping[str, ImportanceStatistics]
    datasets: tuple[str, ...]
    chunk_count: int
    chunk_size: int  # tokens

    def importance(self, name: str) -> NDArray[np.float32] | None:
        """Mean squares of a tensor's inputs; None for one that nothing was measured of."""
        found = self.statistics.get(name)
        return None if found is None else found.importance


@dataclass(frozen=True)
class ImportanceFile:
    """An importance matrix and the sha256 of the file that it was read from."""

    matrix: ImportanceMatrix
    sha256: str


@torch.inference_mode()
def collect_importance(model: LanguageModel, tokens: Tensor, dataset: str) -> ImportanceMatrix:
    """Run calibration tokens (n, T) through a model and sum the squares of its matrices' inputs.

    The head's inputs are those of the head, or of the token embedding where the two are
    tied: the columns of an embedding that is also the head matter as the head's do. llama-imatrix
    takes the first with --process-output and has nothing for the second.
    """
    sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), dtype=torch.float64))

    def adder(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def add(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            squares = inputs[0].float().flatten(0, -2).square().sum(dim=0)
            sums[name] = sums[name] + squares.cpu().double()

        return add

    add_head = adder(head_spec(model.config).gguf_name)
    with ExitStack() as stack:
        for gguf_name, module in _matrices(model):
            stack.callback(module.register_forward_pre_hook(adder(gguf_name)).remove)
        with progress("collect importances", len(tokens), "texts") as bar:
            for number, row in enumerate(tokens, start=1):
                hidden = model.hidden_states(row[None].to(model.device))
                add_head(model, (hidden,))
                bar.update(number)
    counts = np.array([tokens.numel()], np.float32)
    return ImportanceMatrix(
        {
            name: ImportanceStatistics(total.float().numpy()[None], counts)
            for name, total in sorted(sums.items())
        },
        (dataset,),
        chunk_count=len(tokens),
        chunk_size=tokens.shape[1],
    )


def _matrices(model: LanguageModel) -> list[tuple[str, nn.Module]]:
    """The layers that run as modules; the head and the embeddings do not."""
    return [
        (entry.gguf_name, model.get_submodule(entry.module))
        for entry in tensor_specs(model.config)
        if entry.is_block_matrix
    ]


class _ImatrixWriter(Writer):
    """Of a file without an architecture."""

    def add_architecture(self) -> None:
        pass


def make_imatrix(
    checkpoint: StrPath, out: StrPath, data: StrPath | None = None
) -> ImportanceMatrix:
    """Collect a checkpoint's importances on `data`, or on its training text, and write them.

    Raises DataError as `calibration_of`.
    """
    source = load_checkpoint(Path(checkpoint))
    text = calibration_of(source, optional_path(data))
    imatrix = collect_importance(source.load_model(), text.tokens, text.source)
    write_imatrix(Path(out), imatrix)
    return imatrix


def write_imatrix(path: Path, imatrix: ImportanceMatrix) -> None:
    """Write an importance matrix as llama-imatrix does. Raises LlmkitError for a full disk."""
    writer = _ImatrixWriter(None, "")
    writer.add_type(KIND)
    writer.add_array(gguf.Keys.IMatrix.DATASETS, list(imatrix.datasets))
    writer.add_uint32(gguf.Keys.IMatrix.CHUNK_COUNT, imatrix.chunk_count)
    writer.add_uint32(gguf.Keys.IMatrix.CHUNK_SIZE, imatrix.chunk_size)
    for name, found in imatrix.statistics.items():
        counts = found.counts[:, None]
        one = len(counts) == 1  # ggml writes no dimensions of 1 at the end
        writer.add_tensor(name + SUMS, found.in_sum2[0] if one else found.in_sum2)
        writer.add_tensor(name + COUNTS, counts[0] if one else counts)
    with written_beside(path) as beside, closing(writer):
        writer.write_header_to_file(beside)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()


def read_imatrix(path: Path) -> ImportanceMatrix:
    """Read a file of llama-imatrix or of `write_imatrix`.

    Raises GGUFError where it is damaged or something else, the old `.dat` format included.
    """
    file = read_gguf(path)
    if file.metadata.get(gguf.Keys.General.TYPE) != KIND:
        raise GGUFError(f"{path} is not an importance matrix: its general.type is not {KIND}")
    names = [name.removesuffix(SUMS) for name in file.tensors if name.endswith(SUMS)]
    return ImportanceMatrix(
        {name: _statistics(file, name) for name in names},
        tuple(map(str, _value(file, gguf.Keys.IMatrix.DATASETS, list))),
        _value(file, gguf.Keys.IMatrix.CHUNK_COUNT, int),
        _value(file, gguf.Keys.IMatrix.CHUNK_SIZE, int),
    )


def read_importance_file(path: Path) -> ImportanceFile:
    """Read an importance matrix with the hash of its file.

    Raises GGUFError as `read_imatrix`, and where no tensor has importances.
    """
    matrix = read_imatrix(path)
    if all(found.n_without == found.in_sum2.size for found in matrix.statistics.values()):
        raise GGUFError(
            f"{path}: all importances are zero or too small for float32; collect them again"
        )
    return ImportanceFile(matrix, hashlib.sha256(path.read_bytes()).hexdigest())


def _statistics(file: GGUFFile, name: str) -> ImportanceStatistics:
    if name + COUNTS not in file.tensors:
        raise GGUFError(f"{file.path} has {name}{SUMS} but not {name}{COUNTS}; collect it again")
    sums, counts = file.tensors[name + SUMS], file.tensors[name + COUNTS]
    for tensor in (sums, counts):
        if tensor.ggml_type != gguf.GGMLQuantizationType.F32:
            raise GGUFError(f"{file.path}: {tensor.name} is {tensor.ggml_type.name}, not F32")
    of_each = counts.dequantized().reshape(-1)
    in_sum2 = sums.dequantized()
    if not len(of_each) or in_sum2.size != len(of_each) * in_sum2.shape[-1]:
        raise GGUFError(
            f"{file.path}: {sums.name} has shape {sums.shape}, which does not match "
            f"{len(of_each)} counts; collect it again"
        )
    if not (np.isfinite(in_sum2).all() and np.isfinite(of_each).all() and in_sum2.min() >= 0):
        raise GGUFError(f"{file.path}: {name} has negative or infinite sums; collect it again")
    return ImportanceStatistics(in_sum2.reshape(len(of_each), -1), of_each)


def _value(file: GGUFFile, key: str, kind: type) -> Any:
    value = file.metadata.get(key)
    if not isinstance(value, kind):
        raise GGUFError(f"{file.path} has no {key}; collect it again")
    return value
