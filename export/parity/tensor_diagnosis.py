"""What a tensor looks like that is not the checkpoint's: where it differs and the likely cause."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmkit.errors import QuantizationError
from llmkit.export.parity.row_order import row_order
from llmkit.quant import dequantize, quant_names, quant_type, quantize
from llmkit.quant.types import FloatRows, PackedRows, QuantType

_PROBED_ROWS = 16  # on which a costly guess is tried before it is tried on all rows


@dataclass(frozen=True)
class WantedTensor:
    """What the file has to hold under a name."""

    name: str
    source: str  # the checkpoint's name
    shape: tuple[int, ...]
    stored: QuantType
    pack: Callable[[QuantType], PackedRows]  # the checkpoint's tensor in any type
    is_trained: bool = False  # the checkpoint holds the very blocks

    def blocks(self) -> PackedRows:
        """The blocks that the file has to hold, (n_rows, row_bytes)."""
        return self.pack(self.stored)

    def weights(self) -> FloatRows:
        """The checkpoint's numbers, (n_rows, row_length)."""
        f32 = quant_type("f32")
        return dequantize(self.pack(f32), f32)


@dataclass(frozen=True)
class Suspect:
    """Blocks (n_rows, row_bytes) of the right shape and type that are not the wanted ones."""

    wanted: WantedTensor
    found: PackedRows

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return self.wanted.shape

    @property
    def stored(self) -> QuantType:
        """The blocks' type."""
        return self.wanted.stored

    @property
    def unit(self) -> str:
        """What the first dimension counts."""
        return "row" if len(self.shape) == 2 else "element"


@dataclass(frozen=True)
class Diagnosis:
    """What a tensor looks like. `is_known`: a way to get there from the checkpoint's is known."""

    text: str
    is_known: bool = True


def rounded(weights: FloatRows, stored: QuantType) -> PackedRows:
    """Weights (n_rows, row_length) to the nearest that the blocks can hold.

    Types that need importances have no rounding without; all alike are as good to compare with.
    """
    alike = np.ones(weights.shape[-1], np.float32) if stored.needs_importance else None
    return quantize(weights, stored, "a guess", alike)


def looks_like(suspect: Suspect) -> Diagnosis:
    """Where a tensor differs from the checkpoint's and what was done to it, as far as it shows."""
    wanted = suspect.wanted.blocks()
    values, wanted_values = (dequantize(b, suspect.stored) for b in (suspect.found, wanted))
    if not values.any():
        is_bias = len(suspect.shape) == 1
        return Diagnosis("all zeros: the bias was dropped" if is_bias else "all zeros")
    weights = suspect.wanted.weights()
    if _is_transposed(suspect, weights):
        return Diagnosis("transposed")
    if order := _order(suspect, wanted):
        return Diagnosis(order)
    if way := _way(suspect, weights):
        return Diagnosis(f"quantized twice, by way of {way}")
    return _by_rows(suspect, wanted, values, wanted_values, weights)


def _by_rows(
    suspect: Suspect,
    wanted: PackedRows,
    values: FloatRows,
    wanted_values: FloatRows,
    weights: FloatRows,
) -> Diagnosis:
    n = suspect.shape[0]  # a vector's elements are its rows here
    found, wanted = suspect.found.reshape(n, -1), wanted.reshape(n, -1)
    differing = np.flatnonzero((found != wanted).any(axis=1))
    place = _place(differing, n, suspect.unit)
    a, b, exact = (array.reshape(n, -1)[differing] for array in (values, wanted_values, weights))
    if len(differing) == 1:
        row = int(differing[0])
        if how := _in_one_row(suspect, found[row], wanted[row], a[0], b[0]):
            return Diagnosis(place + how)
    if how := _arithmetic(a, b, exact):
        return Diagnosis(place + how)
    error = relative_error(a, b)
    return Diagnosis(f"{place}other numbers (relative RMS error {error:.2g})", is_known=False)


def _is_transposed(suspect: Suspect, weights: FloatRows) -> bool:
    """Whether the numbers lie there column by column, square or not."""
    if len(suspect.shape) != 2:
        return False
    columns = np.ascontiguousarray(weights.T).reshape(weights.shape)
    return all(_is_packed(columns[:n], suspect, n) for n in (_PROBED_ROWS, len(columns)))


def _is_packed(weights: FloatRows, suspect: Suspect, n: int) -> bool:
    """Whether the first n found rows are these numbers in the stored type."""
    return np.array_equal(rounded(weights, suspect.stored), suspect.found[:n])


def _order(suspect: Suspect, wanted: PackedRows) -> str:
    """Rows in another order, or whole blocks of columns."""
    n = suspect.shape[0]
    order = row_order(suspect.found.reshape(n, -1), wanted.reshape(n, -1), suspect.unit)
    if order or len(suspect.shape) == 1:
        return order
    n_bytes = suspect.stored.block_bytes
    found_columns, wanted_columns = (
        blocks.reshape(n, -1, n_bytes).transpose(1, 0, 2).reshape(-1, n * n_bytes)
        for blocks in (suspect.found, wanted)
    )
    return row_order(found_columns, wanted_columns, "column", suspect.stored.block_size)


def _way(suspect: Suspect, weights: FloatRows) -> str:
    """The type that the numbers were rounded to before; empty where it was none."""

    def is_way(qtype: QuantType, n: int) -> bool:
        once = dequantize(quantize(weights[:n], qtype, "a guess"), qtype)
        return _is_packed(once, suspect, n)

    for qtype in map(quant_type, quant_names()):
        is_searched_long = qtype.layout is None and qtype.block_size > 1  # seconds, for some
        if qtype is suspect.stored or is_searched_long or not qtype.fits(weights.shape[-1]):
            continue
        try:
            if all(is_way(qtype, n) for n in (_PROBED_ROWS, len(weights))):
                return qtype.name
        except QuantizationError:  # numbers too large for this type: it was not the way
            continue
    return ""


def _place(differing: NDArray[np.int64], n_units: int, unit: str) -> str:
    first, last, n = int(differing[0]), int(differing[-1]), len(differing)
    if n == n_units:
        return ""
    if n == 1:
        return f"{unit} {first} alone differs, "
    if last - first + 1 == n:
        return f"{unit}s {first}..{last} differ, "
    return f"{n} of {n_units} {unit}s differ, first {unit} {first}, "


def _arithmetic(found: FloatRows, wanted: FloatRows, weights: FloatRows) -> str:
    """A factor or a number added, as near as the type can hold it; empty where there is none."""
    a, b, exact = (array.astype(np.float64).ravel() for array in (found, wanted, weights))
    if not np.isfinite(a).all():
        return "numbers that are not finite"
    if not a.any():
        return "all zeros"
    if len(a) < 2 or not b.any():
        return ""
    # What the type rounds off, in both; float32's own rounding where it rounds nothing.
    noise = max(2 * _rms(b - exact), 1e-6 * _rms(b))
    factor = float(a @ b / (b @ b))
    if _rms(a - factor * b) <= noise * max(1.0, abs(factor)) < abs(factor - 1) * _rms(b):
        return f"{factor:.4g} x the checkpoint's"
    added = float(np.mean(a - b))
    if _rms(a - b - added) <= noise < abs(added):
        return f"{abs(added):.4g} {'more' if added > 0 else 'less'} than the checkpoint's"
    return ""


def _in_one_row(
    suspect: Suspect,
    found: PackedRows,
    wanted: PackedRows,
    values: FloatRows,
    wanted_values: FloatRows,
) -> str:
    """Which block of the row differs, and which part of it; empty where several do."""
    qtype = suspect.stored
    blocks = [row.reshape(-1, qtype.block_bytes) for row in (found, wanted)]
    differing = np.flatnonzero((blocks[0] != blocks[1]).any(axis=1))
    if len(differing) > 1:
        return ""
    is_bit = int(np.unpackbits(found ^ wanted).sum()) == 1
    columns = np.flatnonzero(values != wanted_values)
    in_block = f"block {differing[0]}: " if qtype.block_size > 1 else ""
    if len(columns) == 1:
        column = int(columns[0])
        what = "one bit differs" if is_bit else f"one {'quant' if in_block else 'number'} differs"
        place = "" if suspect.unit == "element" else f", at column {column}"
        pair = f"{values[column]:.6g} instead of {wanted_values[column]:.6g}"
        return f"{in_block}{what}{place}: {pair}"
    bit = " (one bit)" if is_bit else ""
    number = _differing_number(qtype, *(block[differing[0]] for block in blocks))
    factor = _one_factor(values[columns], wanted_values[columns])
    if factor is not None:
        return f"{in_block}{number or 'the scale'} differs{bit}, {factor:.4g} x the checkpoint's"
    if number:
        return f"{in_block}{number} differs{bit}"
    return f"{in_block}{len(columns)} quants differ{bit}"


def _differing_number(qtype: QuantType, found: PackedRows, wanted: PackedRows) -> str:
    """Which number of a block other than its quants differs; empty where none or several do."""
    if qtype.layout is None:
        return ""
    a, b = (qtype.layout.unpack(block[np.newaxis].copy()) for block in (found, wanted))
    if not np.array_equal(a.quants, b.quants):
        return ""
    pairs = {
        "the scale": (a.scale, b.scale),
        "a sub-scale": (a.sub_scales, b.sub_scales),
        "the minimum": (a.minimum, b.minimum),
        "a sub-minimum": (a.sub_minima, b.sub_minima),
    }
    names = [
        name
        for name, (of_found, of_wanted) in pairs.items()
        if of_found is not None
        and of_wanted is not None
        and np.count_nonzero(of_found != of_wanted) == 1
    ]
    return names[0] if len(names) == 1 else ""


def _one_factor(found: FloatRows, wanted: FloatRows) -> float | None:
    """What all numbers are multiplied by; None where they are not."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        factors = found / wanted
        if len(factors) and np.allclose(factors, factors[0], rtol=1e-5, atol=0):
            return float(factors[0])
    return None


def relative_error(found: FloatRows, wanted: FloatRows) -> float:
    """RMS of the difference over RMS of what is wanted."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        difference = found.astype(np.float64) - wanted
        return float(np.divide(_rms(difference), _rms(wanted.astype(np.float64))))


def _rms(array: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(np.square(array))))
