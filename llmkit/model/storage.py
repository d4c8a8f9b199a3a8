"""Which GGUF type each tensor of a file is stored in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import gguf

from llmkit.errors import QuantizationError, unknown_name
from llmkit.model.config import GPTConfig
from llmkit.quant.types import ALIASES, QuantType, quant_names, quant_type

CUSTOM = "custom"  # the name of a quantization whose types were chosen tensor by tensor
# What llama.cpp stores instead in rows that are no multiple of 256 (`tensor_type_fallback` of
# llama-quant.cpp).
_FALLBACKS = {"q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}
_LAYER = re.compile(r"h\.(\d+)\.(attn\.c_attn|mlp\.c_proj)\.weight")


@dataclass(frozen=True)
class Quantization:
    """How the matrices of a file are quantized: mostly `base`, others where they count more."""

    name: str
    file_type: gguf.LlamaFileType
    base: QuantType
    head: QuantType | None = None  # of the matrix that makes the logits
    more_bits: QuantType | None = None  # of some layers' c_attn and of their second c_proj
    chosen: Mapping[str, QuantType] = field(default_factory=dict)  # goes before all else

    def type_of(self, name: str, shape: tuple[int, ...], config: GPTConfig) -> QuantType:
        """The type of a tensor, by its name in the checkpoint.

        Matrices whose rows do not fit its blocks get what llama.cpp falls back to, or f16.
        """
        if not is_matrix(name, shape):
            return quant_type("f32")
        qtype = self.wanted(name, config)
        for candidate in (qtype.name, _FALLBACKS.get(qtype.name, "f16")):
            if quant_type(candidate).fits(shape[-1]):
                return quant_type(candidate)
        return quant_type("f16")

    def wanted(self, name: str, config: GPTConfig) -> QuantType:
        """The type of a matrix if its rows fit."""
        if name in self.chosen:
            return self.chosen[name]
        if self.head and name == ("wte.weight" if config.tie_embeddings else "lm_head.weight"):
            return self.head
        found = _LAYER.fullmatch(name)
        if self.more_bits and found and self._has_more(found[2], int(found[1]), config.n_layer):
            return self.more_bits
        return self.base

    def _has_more(self, matrix: str, layer: int, n_layer: int) -> bool:
        """`llama_tensor_get_type` and `use_more_bits` of llama-quant.cpp."""
        if self.name.endswith("_s"):
            return layer < (4 if matrix == "attn.c_attn" else n_layer // 8)
        eighth = n_layer // 8
        return layer < eighth or layer >= 7 * n_layer // 8 or (layer - eighth) % 3 == 2


def _presets() -> dict[str, Quantization]:
    file_types = gguf.LlamaFileType
    q4_k, q5_k, q6_k = map(quant_type, ("q4_k", "q5_k", "q6_k"))
    presets = (
        Quantization("q4_k_s", file_types.MOSTLY_Q4_K_S, q4_k, q6_k, q5_k),
        Quantization("q4_k_m", file_types.MOSTLY_Q4_K_M, q4_k, q6_k, q6_k),
        Quantization("q5_k_s", file_types.MOSTLY_Q5_K_S, q5_k, q6_k),
        Quantization("q5_k_m", file_types.MOSTLY_Q5_K_M, q5_k, q6_k, q6_k),
    )
    return {preset.name: preset for preset in presets}


def quantization_names() -> list[str]:
    """Every name that `quantization` knows but the aliases: types, then llama.cpp's presets."""
    return [*quant_names(), *_presets()]


def quantization(name: str) -> Quantization:
    """A quantization by name: one type for all matrices, or one of llama.cpp's presets.

    Raises QuantizationError with the nearest name if there is none.
    """
    preset = _presets().get(name.lower())
    if preset is not None:
        return preset
    try:
        qtype = quant_type(name)
    except QuantizationError as error:
        names = [*quantization_names(), *ALIASES]
        raise QuantizationError(unknown_name("quantization", name, names)) from error
    return Quantization(qtype.name, qtype.file_type, qtype)


def quantization_of(file_type: gguf.LlamaFileType) -> Quantization:
    """The quantization that a file's `general.file_type` stands for.

    Raises QuantizationError if it is none that is written here.
    """
    known = [quantization(name) for name in (*_presets(), *quant_names())]
    for candidate in known:
        if candidate.file_type == file_type:
            return candidate
    names = ", ".join(candidate.file_type.name for candidate in known)
    raise QuantizationError(f"file type {file_type.name} is not one of those known here: {names}")


def is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is multiplied with, so that it may be quantized.

    Position embeddings, biases and norms are added; they stay f32, as llama.cpp keeps them.
    """
    return len(shape) == 2 and name != "wpe.weight"
