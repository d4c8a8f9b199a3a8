"""How a tensor that differs from the checkpoint's looks: transposed, quantized twice, or where."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmkit.errors import QuantizationError
from llmkit.quant import dequantize, quant_names, quant_type, quantize
from llmkit.quant.types import FloatRows, PackedRows, QuantType

_PROBED_ROWS = 16  # compared first, because quantizing all rows takes long
# Chosen blocks hold a row of weights if the error is at most half of its length; rows of different
# weights are farther apart.
_SAME_ROW = 0.5


@dataclass(frozen=True)
class WantedTensor:
    """A tensor that the file must hold."""

    name: str
    source: str  # the checkpoint's name
    shape: tuple[int, ...]
    stored: QuantType
    pack: Callable[[QuantType], PackedRows]  # the checkpoint's tensor in any type
    is_trained: bool = False  # the checkpoint holds the blocks themselves

    def blocks(self) -> PackedRows:
        """The blocks that the file must hold, (n_rows, row_bytes)."""
        return self.pack(self.stored)

    def weights(self) -> FloatRows:
        """The checkpoint's numbers, (n_rows, row_length)."""
        f32 = quant_type("f32")
        return dequantize(self.pack(f32), f32)


@dataclass(frozen=True)
class Suspect:
    """Blocks (n_rows, row_bytes) of the right shape and type that are not the wanted ones.

    `far`: the rows that are too far from the weights, if the blocks were chosen for them; None if
    the blocks must be equal.
    """

    wanted: WantedTensor
    found: PackedRows
    far: NDArray[np.int64] | None = None

    def holds(self, weights: FloatRows) -> bool:
        """Whether the blocks are those of these weights (n_rows, row_length)."""
        return self.starts_with(weights[:_PROBED_ROWS]) and self.starts_with(weights)

    def starts_with(self, weights: FloatRows) -> bool:
        """Whether the first blocks are those of these rows, of which there may be fewer."""
        found, stored = self.found[: len(weights)], self.wanted.stored
        if self.far is None:
            return np.array_equal(rounded(weights, stored), found)
        with np.errstate(over="ignore", invalid="ignore"):
            error = np.square(dequantize(found, stored) - weights).sum(axis=1)
        return bool((error <= _SAME_ROW**2 * np.square(weights).sum(axis=1)).all())


def rounded(weights: FloatRows, stored: QuantType) -> PackedRows:
    """Weights (n_rows, row_length) rounded to a type.

    Types that need an importance of each column get the same for all.
    """
    alike = np.ones(weights.shape[-1], np.float32) if stored.needs_importance else None
    return quantize(weights, stored, "weights", alike)


def known_cause(suspect: Suspect) -> str:
    """What was done to the checkpoint's tensor; empty if it is neither of two things."""
    weights = suspect.wanted.weights()
    columns = np.ascontiguousarray(weights.T).reshape(weights.shape)
    if len(suspect.wanted.shape) == 2 and suspect.holds(columns):
        return "is transposed"
    first_type = "" if suspect.far is not None else _first_type(suspect, weights)
    return first_type and f"was quantized twice, first to {first_type}"


def difference(suspect: Suspect) -> str:
    """How many rows differ, the first one, and the largest difference."""
    shape, stored = suspect.wanted.shape, suspect.wanted.stored
    n, unit = shape[0], "row" if len(shape) == 2 else "element"
    values = dequantize(suspect.found, stored).reshape(n, -1)
    if suspect.far is None:
        blocks = suspect.wanted.blocks()
        wanted = dequantize(blocks, stored).reshape(n, -1)
        is_other = suspect.found.reshape(n, -1) != blocks.reshape(n, -1)
        rows = np.flatnonzero(is_other.any(axis=1))
    else:
        wanted, rows = suspect.wanted.weights(), suspect.far
    with np.errstate(over="ignore", invalid="ignore"):
        errors = np.abs(values[rows] - wanted[rows])
    errors[np.isnan(errors)] = np.inf
    at, column = np.unravel_index(errors.argmax(), errors.shape)
    there = rows[at], column
    return (
        f"{len(rows)} of {n} {unit}s differ, first {unit} {rows[0]}; largest difference "
        f"{errors[at, column]:.3g} in {unit} {rows[at]}: {values[there]:.6g} instead of "
        f"{wanted[there]:.6g}"
    )


def _first_type(suspect: Suspect, weights: FloatRows) -> str:
    """The type that the weights were rounded to before; empty if there was none."""

    def is_first(qtype: QuantType, n: int) -> bool:
        return suspect.starts_with(dequantize(quantize(weights[:n], qtype, "weights"), qtype))

    for qtype in map(quant_type, quant_names()):
        is_slow = qtype.layout is None and qtype.block_size > 1  # seconds, for some
        if qtype is suspect.wanted.stored or is_slow or not qtype.fits(weights.shape[-1]):
            continue
        try:
            if is_first(qtype, _PROBED_ROWS) and is_first(qtype, len(weights)):
                return qtype.name
        except QuantizationError:  # numbers too large for this type
            continue
    return ""
