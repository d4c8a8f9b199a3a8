"""The other block formats of ggml, which only its own C functions pack and unpack.

2 and 3 bits: Q2_K, Q3_K; with codebooks: the IQ types; of -1, 0 and 1: the TQ types.
"""

from __future__ import annotations

from functools import partial

import gguf

from llmkit.quant.blocks import F16_OVERFLOW
from llmkit.quant.ggml import dequantize_rows
from llmkit.quant.iq4_nl import IQ4_NL
from llmkit.quant.symmetric import Q4_0
from llmkit.quant.types import BlockOffset, QuantType, register

# Where importances differ much, the search for IQ1 may choose scales far above the weights.
_IQ1_LIMIT = F16_OVERFLOW / 64


def _register(
    name: str,
    fallback: QuantType,
    offset: BlockOffset | None = None,
    *,
    file_type: str | None = None,  # of a file that is of this type throughout
    limit: float = F16_OVERFLOW,
    is_repacked: bool = False,
    needs_importance: bool = False,  # `ggml_quantize_requires_imatrix`
) -> None:
    ggml_type = gguf.GGMLQuantizationType[name]
    register(
        QuantType(
            ggml_type=ggml_type,
            file_type=gguf.LlamaFileType[f"MOSTLY_{file_type or name}"],
            limit=limit,
            dequantize=partial(dequantize_rows, ggml_type),
            dot_type=gguf.GGMLQuantizationType.Q8_K,
            offset=offset,
            fallback=fallback,
            is_repacked=is_repacked,
            needs_importance=needs_importance,
        )
    )


_register("Q2_K", Q4_0, BlockOffset(82, 15), is_repacked=True)
_register("Q3_K", Q4_0, file_type="Q3_K_S")
_register("TQ1_0", Q4_0, BlockOffset(52, 1))  # codes of 0 to 2, less the block's scale
_register("TQ2_0", Q4_0, BlockOffset(64, 1))
_register("IQ4_XS", IQ4_NL)
_register("IQ3_S", IQ4_NL)
_register("IQ3_XXS", IQ4_NL)
_register("IQ2_S", IQ4_NL)
_register("IQ2_XS", IQ4_NL, needs_importance=True)
_register("IQ2_XXS", IQ4_NL, needs_importance=True)
_register("IQ1_M", IQ4_NL, limit=_IQ1_LIMIT)
_register("IQ1_S", IQ4_NL, limit=_IQ1_LIMIT, needs_importance=True)
