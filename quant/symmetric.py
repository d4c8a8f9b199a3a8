"""Q4_0 and Q5_0: 32 weights as an f16 scale and signed codes, weight = scale * quant.

The same numbers as `quantize_row_q4_0_ref`, `quantize_row_q5_0_ref` and their `dequantize_row`s
of ggml-quants.c.
"""

from __future__ import annotations

import gguf
import numpy as np
from numpy.typing import NDArray

from llmkit.quant.blocks import F16_OVERFLOW, reciprocal
from llmkit.quant.nibbles import BLOCK_SIZE, register_nibbles
from llmkit.quant.types import BlockFields, BlockLayout, FloatRows, PackedRows


def _quantize(layout: BlockLayout, rows: FloatRows) -> PackedRows:
    """Round to the nearest of `layout.levels`, the extreme of each block being the lowest."""
    weights = rows.reshape(len(rows), -1, BLOCK_SIZE)  # (n_rows, n_blocks, 32)
    lowest, highest = layout.levels[0], layout.levels[-1]
    with np.errstate(under="ignore"):
        # `+ 0.0`: ggml starts its search at 0.0, so a block of -0.0 has the extreme +0.0.
        scale = (_extremes(weights) + np.float32(0)) / np.float32(lowest)
        inverse = reciprocal(scale)
        # Two roundings, as in ggml built for x86-64. Where a compiler contracts C's
        # `x*id + 8.5f` into a fused multiply-add (on ARM, say), a code may differ at a tie.
        scaled = weights * inverse[..., np.newaxis]
        scaled += np.float32(0.5 - lowest)
        stored_scale = scale.astype(np.float16)
    codes = scaled.astype(np.uint8)  # towards zero
    np.minimum(codes, np.uint8(highest - lowest), out=codes)
    # The extreme may be too small for a reciprocal. ggml on x86-64 then converts infinity or
    # NaN to an integer, with a low byte of 0. The scale is 0, so all these weights are 0.
    codes[(inverse == 0) & (scale != 0)] = 0
    quants = codes.astype(np.int8) + np.int8(lowest)
    return layout.pack(BlockFields(quants, stored_scale))


def _extremes(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the value of largest magnitude in each block, the first of them on a tie."""
    first = np.abs(weights).argmax(axis=-1, keepdims=True)
    extremes: NDArray[np.float32] = np.take_along_axis(weights, first, axis=-1)[..., 0]
    return extremes


Q4_0, Q5_0 = (
    register_nibbles(
        name,
        levels,
        _quantize,
        limit=F16_OVERFLOW * -levels[0],
        dot_type=gguf.GGMLQuantizationType.Q8_0,
        is_repacked=is_repacked,
    )
    for name, levels, is_repacked in (("Q4_0", range(-8, 8), True), ("Q5_0", range(-16, 16), False))
)
