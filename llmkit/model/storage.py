"""Which GGUF type each tensor of a model is stored in."""

from __future__ import annotations

from llmkit.quant.types import QuantType, quant_type


def is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is multiplied with, so that it may be quantized.

    Position embeddings, biases and norms are added; they stay f32, as llama.cpp keeps them.
    """
    return len(shape) == 2 and name != "wpe.weight"


def stored_type(name: str, shape: tuple[int, ...], qtype: QuantType) -> QuantType:
    """The type of a tensor (checkpoint name) in a file of type `qtype`.

    Matrices whose rows do not fit its blocks are f16.
    """
    if not is_matrix(name, shape):
        return quant_type("f32")
    return qtype if qtype.fits(shape[-1]) else quant_type("f16")
