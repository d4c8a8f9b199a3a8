"""Q4_1 and Q5_1: 32 weights as an f16 scale, an f16 minimum and codes from 0 up.

weight = scale * quant + minimum. The same numbers as `quantize_row_q4_1_ref`,
`quantize_row_q5_1_ref` and their `dequantize_row`s of ggml-quants.c.
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
from llmkit.quant.symmetric import fifth_bits, pack_fifth_bits
from llmkit.quant.types import (
    BlockFields,
    BlockLayout,
    BlockOffset,
    FloatRows,
    PackedRows,
    QuantType,
    register,
)

BLOCK_SIZE = 32
Q4_1_BLOCK = np.dtype([("scale", "<f2"), ("minimum", "<f2"), ("nibbles", "u1", 16)])
Q5_1_BLOCK = np.dtype(
    [("scale", "<f2"), ("minimum", "<f2"), ("fifth_bits", "u1", 4), ("nibbles", "u1", 16)]
)


def _quantize(layout: BlockLayout, rows: FloatRows) -> PackedRows:
    """Round to the nearest of evenly spaced levels between the block's minimum and maximum."""
    weights = rows.reshape(len(rows), -1, BLOCK_SIZE)  # (n_rows, n_blocks, 32)
    highest = layout.levels[-1]
    minimum = _first_minima(weights)
    with np.errstate(under="ignore"):
        # `+ 0.0`: of zeros of both signs the difference could be -0.0, in ggml it is +0.0.
        scale = (weights.max(axis=-1) - minimum + np.float32(0)) / np.float32(highest)
        inverse = reciprocal(scale)
        scaled = weights - minimum[..., np.newaxis]
        scaled *= inverse[..., np.newaxis]
        scaled += np.float32(0.5)
        stored_scale, stored_minimum = scale.astype(np.float16), minimum.astype(np.float16)
    quants = scaled.astype(np.int8)  # towards zero
    np.minimum(quants, np.int8(highest), out=quants)
    return layout.pack(BlockFields(quants, stored_scale, minimum=stored_minimum))


def _first_minima(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the lowest value of each block; of zeros the first, whose sign is stored."""
    first = weights.argmin(axis=-1, keepdims=True)
    minima: NDArray[np.float32] = np.take_along_axis(weights, first, axis=-1)[..., 0]
    return minima


def _unpack_q4_1(packed: PackedRows) -> BlockFields:
    blocks = packed.view(Q4_1_BLOCK)  # (n_rows, n_blocks)
    quants = split_planes(blocks["nibbles"], 4).view(np.int8)
    return BlockFields(quants, blocks["scale"], minimum=blocks["minimum"])


def _pack_q4_1(fields: BlockFields) -> PackedRows:
    blocks = np.empty(fields.scale.shape, dtype=Q4_1_BLOCK)
    blocks["scale"], blocks["minimum"] = fields.scale, fields.minimum
    blocks["nibbles"] = join_planes(fields.quants.view(np.uint8), 4)
    return blocks.view(np.uint8)


def _unpack_q5_1(packed: PackedRows) -> BlockFields:
    blocks = packed.view(Q5_1_BLOCK)
    codes = split_planes(blocks["nibbles"], 4)
    codes |= fifth_bits(blocks["fifth_bits"])
    return BlockFields(codes.view(np.int8), blocks["scale"], minimum=blocks["minimum"])


def _pack_q5_1(fields: BlockFields) -> PackedRows:
    codes = fields.quants.view(np.uint8)
    blocks = np.empty(fields.scale.shape, dtype=Q5_1_BLOCK)
    blocks["scale"], blocks["minimum"] = fields.scale, fields.minimum
    blocks["fifth_bits"] = pack_fifth_bits(codes)
    blocks["nibbles"] = join_planes(codes & np.uint8(15), 4)
    return blocks.view(np.uint8)


def _register(name: str, layout: BlockLayout) -> QuantType:
    return register(
        QuantType(
            ggml_type=gguf.GGMLQuantizationType[name],
            file_type=gguf.LlamaFileType[f"MOSTLY_{name}"],
            limit=F16_OVERFLOW,
            dequantize=partial(dequantize_blocks, layout),
            dot_type=gguf.GGMLQuantizationType.Q8_1,
            offset=BlockOffset(2, 1),
            fallback=F16,
            is_repacked=False,
            round=partial(_quantize, layout),
            layout=layout,
        )
    )


Q4_1 = _register("Q4_1", BlockLayout(tuple(range(16)), _unpack_q4_1, _pack_q4_1))
Q5_1 = _register("Q5_1", BlockLayout(tuple(range(32)), _unpack_q5_1, _pack_q5_1))
