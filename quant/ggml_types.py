"""The other block formats of ggml, which only its own C functions pack and unpack.

2 and 3 bits: Q2_K, Q3_K; with codebooks: the IQ types; of -1, 0 and 1: the TQ types.
"""

from __future__ import annotations

from functools import partial

import gguf

from llmkit.quant.blocks import F16_OVERFLOW
from llmkit.quant.ggml import dequantize_rows
from llmkit.quant.types import QuantType, register

# Without importances of the columns ggml does not search (`ggml_quantize_requires_imatrix`).
_NEED_IMPORTANCE = ("IQ2_XXS", "IQ2_XS", "IQ1_S")
# By the file type that a file of one of them throughout has.
_FILE_TYPES = {
    "Q3_K": "MOSTLY_Q3_K_S",
    **{
        name: f"MOSTLY_{name}"
        for name in (
            "Q2_K", "IQ4_XS", "IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S",
            "TQ2_0", "TQ1_0",
        )
    },
}  # fmt: skip


def _limit(name: str) -> float:
    # Where importances differ much, the search for IQ1 may choose scales far above the weights.
    return F16_OVERFLOW / 64 if name.startswith("IQ1") else F16_OVERFLOW


for _name, _file_type in _FILE_TYPES.items():
    _ggml_type = gguf.GGMLQuantizationType[_name]
    _block_size, _block_bytes = gguf.GGML_QUANT_SIZES[_ggml_type]
    register(
        QuantType(
            name=_name.lower(),
            ggml_type=_ggml_type,
            file_type=gguf.LlamaFileType[_file_type],
            block_size=_block_size,
            block_bytes=_block_bytes,
            limit=_limit(_name),
            dequantize=partial(dequantize_rows, _ggml_type),
            needs_importance=_name in _NEED_IMPORTANCE,
        )
    )
