"""F32, F16 and BF16: one number per weight, no block."""

from __future__ import annotations

import gguf
import numpy as np

from llmkit.quant.blocks import F16_OVERFLOW
from llmkit.quant.types import FloatRows, PackedRows, QuantType, register

# Halfway from the largest bf16, 0x7F7F, to where infinity would be: this rounds up.
_BF16_OVERFLOW = float(np.uint32(0x7F7F8000).view(np.float32))


def _round_f32(rows: FloatRows) -> PackedRows:
    return rows.astype("<f4").view(np.uint8)


def _dequantize_f32(packed: PackedRows) -> FloatRows:
    return packed.view("<f4").astype(np.float32)


def _round_f16(rows: FloatRows) -> PackedRows:
    with np.errstate(under="ignore"):
        return rows.astype("<f2").view(np.uint8)


def _dequantize_f16(packed: PackedRows) -> FloatRows:
    return packed.view("<f2").astype(np.float32)


def _round_bf16(rows: FloatRows) -> PackedRows:
    """Keep the upper 16 bits, rounded to nearest, ties to even."""
    bits = rows.view(np.uint32)
    rounded = bits >> np.uint32(16)
    rounded &= np.uint32(1)  # 1 where the half to keep is odd: a tie then goes up
    rounded += np.uint32(0x7FFF)
    rounded += bits
    rounded >>= np.uint32(16)
    return rounded.astype("<u2").view(np.uint8)


def _dequantize_bf16(packed: PackedRows) -> FloatRows:
    bits = packed.view("<u2").astype(np.uint32)
    bits <<= np.uint32(16)
    return bits.view(np.float32)


F32 = register(
    QuantType(
        name="f32",
        ggml_type=gguf.GGMLQuantizationType.F32,
        file_type=gguf.LlamaFileType.ALL_F32,
        block_size=1,
        block_bytes=4,
        limit=np.inf,
        dequantize=_dequantize_f32,
        round=_round_f32,
    )
)

F16 = register(
    QuantType(
        name="f16",
        ggml_type=gguf.GGMLQuantizationType.F16,
        file_type=gguf.LlamaFileType.MOSTLY_F16,
        block_size=1,
        block_bytes=2,
        limit=F16_OVERFLOW,
        dequantize=_dequantize_f16,
        round=_round_f16,
    )
)

BF16 = register(
    QuantType(
        name="bf16",
        ggml_type=gguf.GGMLQuantizationType.BF16,
        file_type=gguf.LlamaFileType.MOSTLY_BF16,
        block_size=1,
        block_bytes=2,
        limit=_BF16_OVERFLOW,
        dequantize=_dequantize_bf16,
        round=_round_bf16,
    )
)
