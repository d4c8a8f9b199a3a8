"""IQ4_NL: 32 weights as an f16 scale and 4-bit codes of 16 levels that lie closer around 0.

weight = scale * level. The numbers of `dequantize_row_iq4_nl` of ggml-quants.c. ggml packs it by
searching, not by rounding to nearest, so that is left to its own function.
"""

from __future__ import annotations

from functools import partial

import gguf
import numpy as np

from llmkit.quant.blocks import F16_OVERFLOW, dequantize_blocks, join_planes, split_planes
from llmkit.quant.floats import F16
from llmkit.quant.types import BlockFields, BlockLayout, PackedRows, QuantType, register

BLOCK_SIZE = 32
BLOCK = np.dtype([("scale", "<f2"), ("nibbles", "u1", 16)])
# `kvalues_iq4nl` of ggml-common.h.
LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_LEVELS = np.array(LEVELS, dtype=np.int8)
_CODES = np.zeros(256, dtype=np.uint8)  # by the level's byte
_CODES[_LEVELS.view(np.uint8)] = np.arange(len(LEVELS))


def _unpack(packed: PackedRows) -> BlockFields:
    blocks = packed.view(BLOCK)  # (n_rows, n_blocks)
    return BlockFields(_LEVELS[split_planes(blocks["nibbles"], 4)], blocks["scale"])


def _pack(fields: BlockFields) -> PackedRows:
    blocks = np.empty(fields.scale.shape, dtype=BLOCK)
    blocks["scale"] = fields.scale
    blocks["nibbles"] = join_planes(_CODES[fields.quants.view(np.uint8)], 4)
    return blocks.view(np.uint8)


_LAYOUT = BlockLayout(LEVELS, _unpack, _pack)

IQ4_NL = register(
    QuantType(
        ggml_type=gguf.GGMLQuantizationType.IQ4_NL,
        file_type=gguf.LlamaFileType.MOSTLY_IQ4_NL,
        limit=F16_OVERFLOW,
        dequantize=partial(dequantize_blocks, _LAYOUT),
        dot_type=gguf.GGMLQuantizationType.Q8_0,
        offset=None,
        fallback=F16,
        is_repacked=True,
        layout=_LAYOUT,
    )
)
