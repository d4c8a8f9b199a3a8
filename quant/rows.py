"""Whole arrays of any shape into blocks and back, checked, in chunks of rows on all cores."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmkit.errors import QuantizationError
from llmkit.quant.ggml import has_library, quantize_rows
from llmkit.quant.types import FloatRows, PackedRows, QuantType
from llmkit.threads import n_cores

# Weights in one chunk, which bounds the copies. Of fewer, the calls take longer than what they read
# from cache saves: unpacking q4_0 at 64 Ki runs at two thirds of the speed (bench_quant.py).
_CHUNK_WEIGHTS = 384 * 1024
# Importances that ggml computes with in float32: measured, its search degrades from 1e-16 of the
# largest on, and where all are above 1e12 or below 1e-12.
_LEAST_SHARE, _MOST_EXPONENT = 1e-15, 32


def quantize(
    weights: NDArray[Any],
    qtype: QuantType,
    tensor_name: str,
    importance: NDArray[np.float32] | None = None,
) -> PackedRows:
    """Pack floats of shape (..., row_length) into (n_rows, row_bytes), rounded as ggml does.

    `importance` (row_length,) weighs the squared error of each column; columns without any count as
    much as the mean. It is ggml's own function
    that packs; where its library is missing, types whose rounding is to nearest get the same
    bytes from NumPy. Raises QuantizationError naming the tensor: for rows that are not whole
    blocks, and, with the row, for NaN, infinity and values that the format cannot hold.
    """
    if weights.ndim == 0 or weights.dtype.kind != "f":
        raise QuantizationError(
            f"{tensor_name}: expected rows of floating-point numbers, found {weights.dtype}"
            f" of shape {weights.shape}"
        )
    row_length = weights.shape[-1]
    try:
        row_bytes = qtype.row_bytes(row_length)
    except QuantizationError as error:
        raise QuantizationError(f"{tensor_name}: {error}") from error
    if importance is None and qtype.needs_importance:
        raise QuantizationError(
            f"{tensor_name}: {qtype.name} needs an importance for each column; give an importance"
            " matrix or choose another type"
        )
    if importance is not None:
        importance = _checked_importance(importance, row_length, tensor_name)
    rows = weights.reshape(-1, row_length)
    packed = np.empty((len(rows), row_bytes), dtype=np.uint8)
    ggml_packs = has_library() or importance is not None or qtype.round is None

    def pack_chunk(chunk: slice) -> None:
        with np.errstate(over="ignore", under="ignore"):  # of float64; infinity is refused
            floats = np.ascontiguousarray(rows[chunk], dtype=np.float32)
        if not _all_below(floats, qtype.limit):
            raise QuantizationError(_why_refused(rows, chunk.start, floats, qtype, tensor_name))
        if ggml_packs or qtype.round is None:
            quantize_rows(floats, qtype, importance, packed[chunk])
        else:
            packed[chunk] = qtype.round(floats)

    _for_each_chunk(len(rows), row_length, pack_chunk)
    return packed


def _all_below(floats: FloatRows, limit: float) -> bool:
    """Whether every magnitude is below a limit; not if one is NaN."""
    flat = floats.reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):
        # Reads the numbers once, where the two below read them twice. NaN stays in the sum.
        squares = float(np.dot(flat, flat))
    if squares < limit**2 / 2:  # far enough from it for any rounding of the sum
        return True
    return bool(-limit < floats.min() and floats.max() < limit)


def _checked_importance(
    importance: NDArray[np.float32], row_length: int, tensor_name: str
) -> NDArray[np.float32]:
    if importance.shape != (row_length,):
        raise QuantizationError(
            f"{tensor_name}: expected {row_length} importances, one per column, found shape"
            f" {importance.shape}; collect them from this model"
        )
    if not (importance.min() >= 0 and importance.max() < np.inf):
        raise QuantizationError(
            f"{tensor_name}: some importances are negative or not finite; collect them again"
        )
    return _evened(np.ascontiguousarray(importance, dtype=np.float32))


def has_importance(importance: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which columns count: not those of zero, nor what underflows, alone or beside the largest.

    Ggml sums weighted squares in float32 and erases the weights of blocks where these vanish.
    """
    tiny = float(np.finfo(np.float32).tiny)
    return importance >= max(tiny, float(importance.max()) * _LEAST_SHARE)


def _evened(importance: NDArray[np.float32]) -> NDArray[np.float32]:
    """Importances that ggml can compute with: columns without any count as much as the mean."""
    counts = has_importance(importance)
    if not counts.any():
        return np.ones_like(importance)
    if not counts.all():
        importance = np.where(counts, importance, importance[counts].mean(dtype=np.float64))
        importance = importance.astype(np.float32)
    _, exponent = np.frexp(importance.max())
    if abs(exponent) > _MOST_EXPONENT:  # squares of such sums overflow or vanish
        importance = np.ldexp(importance, -exponent)  # exact, and changes no ratio
    return importance


def dequantize(
    blocks: PackedRows, qtype: QuantType, shape: Sequence[int] | None = None
) -> FloatRows:
    """Unpack bytes to float32 of `shape`, or to (n_rows, row_length) from (..., row_bytes).

    Raises QuantizationError if the bytes are not that many whole rows.
    """
    if shape is None:
        row_length = blocks.shape[-1] // qtype.block_bytes * qtype.block_size
        shape = (math.prod(blocks.shape[:-1]), row_length)
    n_rows, row_length = math.prod(shape[:-1]), shape[-1]
    row_bytes = qtype.row_bytes(row_length)
    if blocks.dtype != np.uint8 or blocks.size != n_rows * row_bytes:
        raise QuantizationError(
            f"{n_rows} rows of {row_length} {qtype.name} weights take {n_rows * row_bytes} bytes,"
            f" found {blocks.size} of {blocks.dtype}; the tensor is damaged"
        )
    packed = blocks.reshape(n_rows, row_bytes)
    weights = np.empty((n_rows, row_length), dtype=np.float32)

    def unpack_chunk(chunk: slice) -> None:
        weights[chunk] = qtype.dequantize(np.ascontiguousarray(packed[chunk]))

    _for_each_chunk(n_rows, row_length, unpack_chunk)
    return weights.reshape(shape)


def _for_each_chunk(n_rows: int, row_length: int, work: Callable[[slice], None]) -> None:
    """Call `work` for every chunk of rows; of several errors the one of the first row is raised.

    Each core has a run of rows: a queue of chunks wakes a thread for each of them.
    """
    step = max(1, _CHUNK_WEIGHTS // row_length)
    n_shares = max(1, min(n_cores(), math.ceil(n_rows / step)))
    share = max(1, math.ceil(n_rows / n_shares))

    failed: list[int] = []

    def work_from(first: int) -> None:
        end = min(first + share, n_rows)
        try:
            for start in range(first, end, step):
                if any(earlier < first for earlier in failed):
                    return
                work(slice(start, min(start + step, end)))
        except BaseException:
            failed.append(first)
            raise

    firsts = range(0, n_rows, share)
    if len(firsts) <= 1:
        work_from(0)
        return
    with ThreadPoolExecutor(len(firsts) - 1) as pool:  # NumPy and ggml work without the GIL
        others = pool.map(work_from, firsts[1:])
        work_from(0)
        for _ in others:
            pass


def _why_refused(
    rows: NDArray[Any], start: int, floats: FloatRows, qtype: QuantType, tensor_name: str
) -> str:
    """Where the first row stands that cannot be held, and why. `floats`: rows from `start` on."""
    row = int((np.abs(floats) < qtype.limit).all(axis=1).argmin())
    values, finite = rows[start + row], np.isfinite(floats[row])
    place = f"{tensor_name}: row {start + row}"
    if finite.all():
        column = int(np.abs(values).argmax())
        return (
            f"{place}, column {column} is {values[column]:g}, too large for {qtype.name};"
            " choose f32"
        )
    column = int(finite.argmin())
    return (
        f"{place}, column {column} is {values[column]:g}, which no type can store;"
        " check the training run"
    )
