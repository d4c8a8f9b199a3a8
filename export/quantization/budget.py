"""A size to keep to, and the types that make the best file of it."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
from torch import Tensor

from llmkit.architectures.base import LanguageModel, TensorSpec
from llmkit.architectures.registry import tensor_specs
from llmkit.checkpoint.checkpoint import Checkpoint
from llmkit.errors import ConfigError
from llmkit.export.evaluation.divergence import joined
from llmkit.export.evaluation.eval_data import TextSequence
from llmkit.export.evaluation.file_divergence import divergences
from llmkit.export.gguf.adapter import adapter_arrays
from llmkit.export.gguf.memory_need import bytes_beside_weights, loaded_bytes
from llmkit.export.gguf.metadata import ChosenBlocks
from llmkit.export.gguf.reader import read_gguf
from llmkit.export.gguf.writer import n_header_bytes, n_tensor_bytes, write_gguf
from llmkit.export.quantization.calibration import Calibration
from llmkit.export.quantization.knapsack import Option, allocate
from llmkit.export.quantization.prequantized import Method, open_model, stored_types
from llmkit.export.quantization.sensitivity import Sensitivity, measure_sensitivity, squared_error
from llmkit.quant import quantize
from llmkit.quant.types import PackedRows, QuantType, quant_names, quant_type
from llmkit.quantization.tensor_types import CUSTOM, Quantization, quantization
from llmkit.quantization.walk import error_feedback

REFERENCE = "q4_0"  # the type in which sensitivities are measured: it fits most rows
MEASURED_PART = 4  # of the calibration text a quarter is measured on, the rest calibrates
_LONGEST_NAME = 255  # bytes, on most file systems
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30}


@dataclass(frozen=True)
class Budget:
    """What a file may take: on disk, in bits for each weight, or in memory while it runs."""

    limit: float  # bytes, or bits per weight
    of: Literal["file", "weights", "memory"]
    context: int | None = None  # tokens that the memory has room for; None: as the model

    def for_matrices(self, source: Checkpoint, n_header_bytes: int, *, merged: bool) -> int:
        """Bytes that are left for the matrices; an adapter that is not `merged` takes memory too.

        Raises ConfigError where those are too few.
        """
        table = tensor_specs(source.config)
        beside = sum(n_tensor_bytes(e, quant_type("f32")) for e in table if not e.is_matrix)
        unit = 1.0
        if self.of == "weights":
            unit = sum(int(np.prod(entry.shape)) for entry in table) / 8
        elif self.of == "file":
            beside += n_header_bytes
        else:
            context = self.context or source.config.context_length
            beside += bytes_beside_weights(source.config, context)
            if not merged:
                beside += sum(array.nbytes for array in adapter_arrays(source).values())
        smallest = beside + sum(
            min(self.bytes_of(entry, qtype) for qtype in types_for(entry))
            for entry in table
            if entry.is_matrix
        )
        if self.limit * unit < smallest:
            step = 0.001 if self.of == "weights" else 1e4  # as it is shown: rounded up it is enough
            least = replace(self, limit=math.ceil(smallest / unit / step) * step)
            raise ConfigError(f"{self} is too small; the smallest types need {least}")
        return int(self.limit * unit) - beside

    def bytes_of(self, entry: TensorSpec, qtype: QuantType) -> int:
        """What a matrix takes of it."""
        if self.of == "memory":
            return loaded_bytes(entry, qtype)
        return n_tensor_bytes(entry, qtype)

    def __str__(self) -> str:
        if self.of == "weights":
            return f"{self.limit:g} bits per weight"
        return f"{self.limit / 1e6:.2f} MB of {self.of}"


@dataclass(frozen=True)
class TypePlan:
    """The types that keep to a budget, and the KL that is to be expected of them."""

    budget: Budget
    matrices: Mapping[str, Option]  # by checkpoint name
    predicted_kl: float  # of the whole file, activations rounded too

    def quantization(self) -> Quantization:
        """These types, named after the one that most bytes are in."""
        n_bytes: Counter[str] = Counter()
        for option in self.matrices.values():
            n_bytes[option.type] += option.n_bytes
        base = quant_type(n_bytes.most_common(1)[0][0])
        types = {name: quant_type(option.type) for name, option in self.matrices.items()}
        return Quantization(CUSTOM, base.file_type, base, chosen=types)


def budget_of(
    size: str | None, bits_per_weight: float | None, memory: str | None, context: int | None
) -> Budget | None:
    """The budget that is given, if one is. Raises ConfigError for more than one, or for no size."""
    if sum(given is not None for given in (size, bits_per_weight, memory)) > 1:
        raise ConfigError("use only one of --target-size, --target-bpw and --fit-memory")
    if context is not None and memory is None:
        raise ConfigError("--context needs --fit-memory; give both")
    if size is not None:
        return Budget(parse_bytes(size), "file")
    if bits_per_weight is not None:
        return Budget(bits_per_weight, "weights")
    if memory is not None:
        return Budget(parse_bytes(memory), "memory", context)
    return None


def parse_bytes(text: str) -> int:
    """A size such as 60MB, 1.5G or 4GiB in bytes. Raises ConfigError for another text."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]I?)?B?\s*", text.upper())
    if found is None:
        raise ConfigError(f"{text!r} is not a size; write it as 60MB or 4GiB")
    return int(float(found[1]) * _UNITS[found[2] or ""])


def plan(
    source: Checkpoint, budget: Budget, method: Method, text: Calibration, *, merged: bool
) -> TypePlan:
    """Measure what each matrix costs in one type, and choose the types of the least predicted KL.

    Raises ConfigError where no types are small enough.
    """
    entries = {e.checkpoint_name: e for e in tensor_specs(source.config) if e.is_matrix}
    room = budget.for_matrices(source, _header_bytes(source, entries), merged=merged)
    model = open_model(source, quantization(REFERENCE), merged=merged)
    sensitivity = _sensitivity(source, model, method, text)
    weights = {name: p.detach().numpy() for name, p in model.named_parameters()}
    options = {
        name: [
            Option(
                qtype.name,
                budget.bytes_of(entry, qtype),
                sensitivity.predicted(name, squared_error(weights[name], qtype, name)),
            )
            for qtype in types_for(entry)
        ]
        for name, entry in entries.items()
    }
    chosen = allocate(options, room)
    predicted = sensitivity.floor + sum(option.kl for option in chosen.values())
    return TypePlan(budget, chosen, predicted)


def _header_bytes(source: Checkpoint, names: Iterable[str]) -> int:
    """Of a file that says how the blocks of all matrices were chosen."""
    nothing = ChosenBlocks("gptq", "0" * 64, {}, dict.fromkeys(names, "0" * 64))
    types = Quantization(CUSTOM, quantization(REFERENCE).file_type, quant_type(REFERENCE))
    return n_header_bytes(source, types, "-" * _LONGEST_NAME, "-" * _LONGEST_NAME, nothing)


def _sensitivity(
    source: Checkpoint, model: LanguageModel, method: Method, text: Calibration
) -> Sensitivity:
    n = max(1, len(text.tokens) // MEASURED_PART)
    measured = text.tokens[-n:]
    calibrating = text.tokens[:-n] if len(text.tokens) > n else measured

    def choose(types: Mapping[str, QuantType]) -> Mapping[str, PackedRows]:
        if method == "gptq":
            return error_feedback(model, types, calibrating)
        weights = dict(model.named_parameters())
        return {
            name: quantize(weights[name].detach().numpy(), qtype, name)
            for name, qtype in types.items()
        }

    table = tensor_specs(source.config)
    types = stored_types(table, source.config, quantization(REFERENCE))
    reference = {name: qtype for name, qtype in types.items() if qtype.supports_gptq}
    return measure_sensitivity(model, reference, measured, choose, _floor(source, measured))


def _floor(source: Checkpoint, tokens: Tensor) -> float:
    """The KL of a q8_0 file in llama.cpp, whose weights cost nothing beside its activations.

    Over the whole vocabulary, as the sensitivities that it is added to, of a classifier too.
    """
    sequences = [TextSequence(row.numpy(), np.ones(len(row) - 1, bool)) for row in tokens]
    # Where an error holds the file, Windows does not remove it; the error is what is to be said.
    with TemporaryDirectory(prefix="llmkit-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "q8_0.gguf"
        write_gguf(source, path, quantization("q8_0"), "floor")
        (parts,) = divergences(source, [read_gguf(path)], sequences, among=None)
    return joined(parts).mean_kl


def types_for(entry: TensorSpec) -> list[QuantType]:
    """Those that a matrix's rows fit and of which the rest is a matter of bits alone."""
    return [
        qtype
        for qtype in map(quant_type, quant_names())
        if qtype.fits(entry.shape[-1]) and (qtype.name == "f16" or qtype.supports_gptq)
    ]
