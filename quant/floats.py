"""F32, F16 and BF16: one number per weight, no block."""

from __future__ import annotations

from collections.abc import Callable

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


def _register(
    ggml_type: gguf.GGMLQuantizationType,
    file_type: gguf.LlamaFileType,
    limit: float,
    dequantize: Callable[[PackedRows], FloatRows],
    rounding: Callable[[FloatRows], PackedRows],
) -> QuantType:
    return register(
        QuantType(
            ggml_type=ggml_type,
            file_type=file_type,
            limit=limit,
            dequantize=dequantize,
            dot_type=ggml_type,
            offset=None,
            fallback=None,
            is_repacked=False,
            round=rounding,
        )
    )


_Type, _FileType = gguf.GGMLQuantizationType, gguf.LlamaFileType
_register(_Type.F32, _FileType.ALL_F32, np.inf, _dequantize_f32, _round_f32)
F16 = _register(_Type.F16, _FileType.MOSTLY_F16, F16_OVERFLOW, _dequantize_f16, _round_f16)
_register(_Type.BF16, _FileType.MOSTLY_BF16, _BF16_OVERFLOW, _dequantize_bf16, _round_bf16)
