"""Blocks chosen with a calibration text or with importances, instead of plain rounding."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from llmkit.architectures.base import LanguageModel, Layers, TensorSpec
from llmkit.architectures.registry import in_llama_cpp
from llmkit.checkpoint.checkpoint import Checkpoint
from llmkit.checkpoint.tensors import build_model
from llmkit.console import say
from llmkit.device import device_with_float64
from llmkit.errors import ConfigError, QuantizationError
from llmkit.export.gguf.metadata import ChosenBlocks, hash_of_choice
from llmkit.export.gguf.writer import open_weights
from llmkit.export.quantization.calibration import Calibration
from llmkit.export.quantization.imatrix import ImportanceFile, ImportanceStatistics
from llmkit.files import StrPath
from llmkit.quant import quantize
from llmkit.quant.types import FloatRows, PackedRows, QuantType
from llmkit.quantization.tensor_types import Quantization
from llmkit.quantization.walk import error_feedback

Method = Literal["rtn", "gptq"]
_PROBED_ROWS = 8  # of which a costly rounding is tried before all are


def check_inputs(method: str, calibration: StrPath | None, imatrix: StrPath | None) -> None:
    """Raise ConfigError for a text or an importance matrix that the method does not use."""
    if calibration is not None and method != "gptq":
        raise ConfigError(
            f"--calibration needs --method gptq; {method} does not use a calibration text"
        )
    if imatrix is not None and method != "rtn":
        raise ConfigError(
            f"--imatrix needs --method rtn; {method} does not use an importance matrix"
        )


def check_error_feedback(several: Sequence[Mapping[str, QuantType]]) -> None:
    """Raise QuantizationError where GPTQ can choose no block of a file with these types.

    Files of floats may stand beside files that it can.
    """
    refused = [
        types for types in several if not any(qtype.supports_gptq for qtype in types.values())
    ]
    names = dict.fromkeys(qtype for types in refused for qtype in types.values())
    if len(refused) == len(several) or any(qtype.block_size > 1 for qtype in names):
        raise QuantizationError(
            f"--method gptq does not support {', '.join(qtype.name for qtype in names)}: "
            "choose q8_0 or types of 4 to 6 bits with --quant"
        )


def by_error_feedback(
    model: LanguageModel, types: Mapping[str, QuantType], text: Calibration
) -> ChosenBlocks | None:
    """GPTQ of every matrix in `types` whose type has numbers to choose; None where none has."""
    choosable = {name: qtype for name, qtype in types.items() if qtype.supports_gptq}
    if not choosable:
        return None
    model = model.eval().to(device_with_float64())
    weights = dict(model.named_parameters())
    blocks = error_feedback(model, choosable, text.tokens)
    hashes = {
        name: hash_of_choice(weights[name].detach().cpu().numpy(), packed)
        for name, packed in blocks.items()
    }
    return ChosenBlocks("gptq", text.sha256, blocks, hashes)


def by_importance(
    matrices: Iterable[tuple[str, FloatRows, QuantType]],
    table: Iterable[TensorSpec],
    importances: ImportanceFile,
) -> ChosenBlocks | None:
    """Ggml's rounding with the squared error of each column weighed, as llama-quantize does.

    `matrices`: name in the checkpoint, weights and type. None where importances change no block.
    Columns without importance are rounded as if all were equal, which one line says.
    Raises QuantizationError for importances of another width, or of a matrix whose type needs them
    and that has none.
    """
    names = {entry.checkpoint_name: entry.gguf_name for entry in table}
    if not importances.matrix.statistics.keys() & names.values():
        raise QuantizationError(
            f"the importance matrix has no tensor of this model, but for example "
            f"{next(iter(importances.matrix.statistics))}; collect it from this model"
        )
    blocks, hashes, lacking = {}, {}, []
    for name, weights, qtype in matrices:
        found = importances.matrix.statistics.get(names[name])
        packed = _packed(weights, qtype, names[name], _usable(found, qtype))
        if qtype.needs_importance or not _is_rounded(packed, weights, qtype):
            blocks[name], hashes[name] = packed, hash_of_choice(weights, packed)
        n_columns = weights.shape[-1] if found is None else found.in_sum2.size
        n_without = n_columns if found is None else found.n_without
        if n_without:
            lacking.append(f"{names[name]} ({n_without} of {n_columns} columns)")
    if not blocks:
        return None
    if lacking:
        say(f"no importances, rounded with equal weights instead: {', '.join(lacking)}")
    return ChosenBlocks("imatrix", importances.sha256, blocks, hashes)


def _usable(found: ImportanceStatistics | None, qtype: QuantType) -> NDArray[np.float32] | None:
    """None for a matrix to be rounded plainly: one without importances, if its type needs none."""
    if found is None or (found.n_without == found.in_sum2.size and not qtype.needs_importance):
        return None
    return found.importance


def _packed(
    weights: FloatRows, qtype: QuantType, name: str, importance: NDArray[np.float32] | None
) -> PackedRows:
    """Blocks of a matrix, or of experts (n, rows, columns), each with importances of its own."""
    if importance is None or weights.ndim < 3 or importance.size % len(weights):
        return quantize(weights, qtype, name, importance)
    experts = zip(weights, importance.reshape(len(weights), -1), strict=True)
    return np.concatenate([quantize(expert, qtype, name, own) for expert, own in experts])


def _is_rounded(packed: PackedRows, weights: FloatRows, qtype: QuantType) -> bool:
    """Whether blocks are those of rounding without importances: f16 and q8_0 pass them over."""
    weights = weights.reshape(-1, weights.shape[-1])
    return all(
        np.array_equal(packed[:n], quantize(weights[:n], qtype, "rounded"))
        for n in (_PROBED_ROWS, len(weights))
    )


def open_model(source: Checkpoint, quantization: Quantization, *, merged: bool) -> LanguageModel:
    """The model that llama.cpp will run, before its weights are rounded; in evaluation mode."""
    config, _ = in_llama_cpp(source.config, lambda spec: quantization.base.name)
    with open_weights(source, quantization, merged=merged) as tensors:
        weights = {name: tensors.get_tensor(name).float() for name in tensors.keys()}  # noqa: SIM118
    return build_model(config, weights, str(source.folder)).eval()


def stored_types(
    table: Iterable[TensorSpec], model: Layers, quantization: Quantization
) -> dict[str, QuantType]:
    """The type of every matrix, by its name in the checkpoint."""
    return {
        entry.checkpoint_name: quantization.type_of(entry, model)
        for entry in table
        if entry.is_matrix
    }
