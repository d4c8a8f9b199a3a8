"""Q4_0 and Q5_0: 32 weights as an f16 scale and signed codes, weight = scale * quant.

The same numbers as `quantize_row_q4_0_ref`, `quantize_row_q5_0_ref` and their `dequantize_row`s
of ggml-quants.c.
"""

from __future__ import annotations

from functools import partial

import gguf
import numpy as np
from numpy.typing import NDArray

from llmkit.quant.blocks import (
    F16_OVERFLOW,
    dequantize_blocks,
    join_planes,
    reciprocal,
    split_planes,
)
from llmkit.quant.floats import F16
from llmkit.quant.types import (
    BlockFields,
    BlockLayout,
    FloatRows,
    PackedRows,
    QuantType,
    register,
)

BLOCK_SIZE = 32
Q4_0_BLOCK = np.dtype([("scale", "<f2"), ("nibbles", "u1", 16)])
Q5_0_BLOCK = np.dtype([("scale", "<f2"), ("fifth_bits", "u1", 4), ("nibbles", "u1", 16)])


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


def _unpack_q4_0(packed: PackedRows) -> BlockFields:
    blocks = packed.view(Q4_0_BLOCK)  # (n_rows, n_blocks)
    quants = split_planes(blocks["nibbles"], 4).view(np.int8) - np.int8(8)
    return BlockFields(quants, blocks["scale"])


def _pack_q4_0(fields: BlockFields) -> PackedRows:
    blocks = np.empty(fields.scale.shape, dtype=Q4_0_BLOCK)
    blocks["scale"] = fields.scale
    blocks["nibbles"] = join_planes((fields.quants + np.int8(8)).view(np.uint8), 4)
    return blocks.view(np.uint8)


def _unpack_q5_0(packed: PackedRows) -> BlockFields:
    blocks = packed.view(Q5_0_BLOCK)
    codes = split_planes(blocks["nibbles"], 4)
    codes |= fifth_bits(blocks["fifth_bits"])
    return BlockFields(codes.view(np.int8) - np.int8(16), blocks["scale"])


def _pack_q5_0(fields: BlockFields) -> PackedRows:
    codes = (fields.quants + np.int8(16)).view(np.uint8)
    blocks = np.empty(fields.scale.shape, dtype=Q5_0_BLOCK)
    blocks["scale"] = fields.scale
    blocks["fifth_bits"] = pack_fifth_bits(codes)
    blocks["nibbles"] = join_planes(codes & np.uint8(15), 4)
    return blocks.view(np.uint8)


def fifth_bits(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return 16 where bit i of 4 bytes is set, else 0, for the weights i of a block."""
    return np.unpackbits(packed, axis=-1, bitorder="little") << np.uint8(4)


def pack_fifth_bits(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the 4 bytes of the fifth bits of 32 codes."""
    return np.packbits(codes >> np.uint8(4), axis=-1, bitorder="little")


def _register(name: str, layout: BlockLayout, *, is_repacked: bool) -> QuantType:
    return register(
        QuantType(
            ggml_type=gguf.GGMLQuantizationType[name],
            file_type=gguf.LlamaFileType[f"MOSTLY_{name}"],
            limit=F16_OVERFLOW * -layout.levels[0],
            dequantize=partial(dequantize_blocks, layout),
            dot_type=gguf.GGMLQuantizationType.Q8_0,
            offset=None,
            fallback=F16,
            is_repacked=is_repacked,
            round=partial(_quantize, layout),
            layout=layout,
        )
    )


_Q4_0_LAYOUT = BlockLayout(tuple(range(-8, 8)), _unpack_q4_0, _pack_q4_0)
_Q5_0_LAYOUT = BlockLayout(tuple(range(-16, 16)), _unpack_q5_0, _pack_q5_0)
Q4_0 = _register("Q4_0", _Q4_0_LAYOUT, is_repacked=True)
Q5_0 = _register("Q5_0", _Q5_0_LAYOUT, is_repacked=False)
