"""What the block formats share: bit planes, scales, and numbers back into weights."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llmkit.quant.types import BlockFields, BlockLayout, FloatRows, PackedRows

F16_OVERFLOW = 65520.0  # the smallest magnitude that rounds to infinity; f16 ends at 65504


def split_planes(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Return the values of `bits` bits in bytes (..., n): all the lowest, then all the next.

    The shape is (..., n * 8 // bits). It is the order in which ggml lays values over bytes.
    """
    mask = np.uint8(2**bits - 1)
    planes = [packed >> np.uint8(shift) & mask for shift in range(0, 8, bits)]
    return np.concatenate(planes, axis=-1)


def join_planes(values: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Return the bytes that `split_planes` takes apart into `values`."""
    planes = np.split(values, 8 // bits, axis=-1)
    packed = planes[0].copy()
    for place, plane in enumerate(planes[1:], start=1):
        packed |= plane << np.uint8(place * bits)
    return packed


def reciprocal(scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """1 / scale; 0 where that is infinite, which includes scales that are not 0 but < 2**-128."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse: NDArray[np.float32] = np.float32(1) / scale
    inverse[np.isinf(inverse)] = 0
    return inverse


def dequantize_blocks(layout: BlockLayout, packed: PackedRows) -> FloatRows:
    """Return the float32 weights of blocks, each operation rounded as ggml's C rounds it."""
    fields = layout.unpack(packed)
    step = steps(fields)
    weights = fields.quants.astype(np.float32).reshape(*step.shape, -1)
    weights *= step[..., np.newaxis]
    offset = offsets(fields)
    if offset is not None:
        weights += offset[..., np.newaxis]
    return weights.reshape(len(packed), -1)


def steps(fields: BlockFields) -> NDArray[np.float32]:
    """Return what quants are multiplied with: (n_rows, n_blocks, sub-blocks or 1)."""
    step = fields.scale.astype(np.float32)[..., np.newaxis]
    return step if fields.sub_scales is None else step * fields.sub_scales


def offsets(fields: BlockFields) -> NDArray[np.float32] | None:
    """Return what is added to the weights: (n_rows, n_blocks, sub-blocks or 1), if anything."""
    if fields.minimum is None:
        return None
    minimum = fields.minimum.astype(np.float32)[..., np.newaxis]
    return minimum if fields.sub_minima is None else -(minimum * fields.sub_minima)
