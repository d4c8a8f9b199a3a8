"""Q4_0: 32 weights as an f16 scale and 32 codes of 4 bits, weight = scale * (code - 8).

The same numbers as `quantize_row_q4_0_ref` and `dequantize_row_q4_0` of ggml-quants.c.
"""

from __future__ import annotations

import gguf
import numpy as np
from numpy.typing import NDArray

from llmkit.quant.blocks import F16_OVERFLOW, block_columns, reciprocal
from llmkit.quant.types import (
    FloatRows,
    PackedRows,
    QuantType,
    refuse_unless_below,
    register,
)

BLOCK_SIZE = 32
HALF = BLOCK_SIZE // 2  # byte i holds weight i in its low bits, weight i + 16 in its high bits
BLOCK = np.dtype([("scale", "<f2"), ("nibbles", "u1", HALF)])


def _pack(rows: FloatRows) -> PackedRows:
    columns = block_columns(rows, BLOCK_SIZE)  # (32, n_blocks)
    with np.errstate(under="ignore"):
        # `+ 0.0`: ggml starts its search at 0.0, so a block of -0.0 has the extreme +0.0.
        scale = (_extremes(columns) + np.float32(0)) / np.float32(-8)  # (n_blocks,)
        refuse_unless_below(F16_OVERFLOW, np.abs(scale).reshape(len(rows), -1))
        inverse = reciprocal(scale)
        # Two roundings, as in ggml built for x86-64. Where a compiler contracts C's
        # `x*id + 8.5f` into a fused multiply-add (on ARM, say), a code may differ at a tie.
        columns *= inverse
        columns += np.float32(8.5)
        blocks = np.empty(scale.size, dtype=BLOCK)
        blocks["scale"] = scale
    codes = columns.astype(np.uint8)  # towards zero, 0 to 16
    codes -= codes >> np.uint8(4)  # 16 to 15; np.minimum on bytes takes seven times as long
    # The extreme may be too small for a reciprocal. ggml on x86-64 then converts infinity or
    # NaN to an integer, with a low byte of 0. The scale is 0, so all these weights are 0.
    codes[:, (inverse == 0) & (scale != 0)] = 0
    blocks["nibbles"] = (codes[:HALF] | codes[HALF:] << np.uint8(4)).T
    return blocks.view(np.uint8).reshape(len(rows), -1)


def _extremes(columns: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the value of largest magnitude in each column, the first of them on a tie."""
    highest, lowest = columns.max(axis=0), columns.min(axis=0)
    extremes: NDArray[np.float32] = np.where(highest > -lowest, highest, lowest)
    tied = np.flatnonzero(highest == -lowest)
    if tied.size:
        candidates = columns[:, tied]
        first = np.abs(candidates).argmax(axis=0)
        extremes[tied] = candidates[first, np.arange(tied.size)]
    return extremes


def _unpack(packed: PackedRows) -> FloatRows:
    blocks = packed.view(BLOCK)  # (n_rows, n_blocks_per_row)
    nibbles = blocks["nibbles"]
    codes = np.empty((*blocks.shape, BLOCK_SIZE), dtype=np.uint8)
    np.bitwise_and(nibbles, np.uint8(15), out=codes[..., :HALF])
    np.right_shift(nibbles, np.uint8(4), out=codes[..., HALF:])
    weights = codes.astype(np.float32)
    weights -= np.float32(8)
    weights *= blocks["scale"].astype(np.float32)[..., np.newaxis]
    return weights.reshape(len(packed), -1)


Q4_0 = register(
    QuantType(
        name="q4_0",
        ggml_type=gguf.GGMLQuantizationType.Q4_0,
        file_type=gguf.LlamaFileType.MOSTLY_Q4_0,
        block_size=BLOCK_SIZE,
        block_bytes=BLOCK.itemsize,
        pack=_pack,
        unpack=_unpack,
    )
)
