"""Which GGUF type each tensor of a file is stored in."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import gguf

from llmkit.errors import QuantizationError, unknown_name
from llmkit.model.config import GPTConfig
from llmkit.quant.types import ALIASES, QuantType, quant_names, quant_type

CUSTOM = "custom"  # the name of a quantization whose types were chosen tensor by tensor
# What llama.cpp stores instead in rows that are no multiple of 256 (`tensor_type_fallback` of
# llama-quant.cpp).
_FALLBACKS = {"q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}
_FALLBACKS |= dict.fromkeys(("q2_k", "q3_k", "tq1_0", "tq2_0"), "q4_0")
_FALLBACKS |= dict.fromkeys(
    ("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "iq4_xs"), "iq4_nl"
)
_LAYER = re.compile(r"h\.(\d+)\.(.*)\.weight")
# The type of a layer's matrix where it is not the preset's base: matrix, layer, number of layers.
Rule = Callable[[str, int, int], str | None]


@dataclass(frozen=True)
class Quantization:
    """How the matrices of a file are quantized: mostly `base`, others where they count more.

    A preset has `head` and `rule`; a single type has neither.
    """

    name: str
    file_type: gguf.LlamaFileType
    base: QuantType
    head: QuantType | None = None  # of the matrix that makes the logits
    rule: Rule | None = None
    chosen: Mapping[str, QuantType] = field(default_factory=dict)  # goes before all else

    def type_of(self, name: str, shape: tuple[int, ...], config: GPTConfig) -> QuantType:
        """The type of a tensor, by its name in the checkpoint.

        Matrices whose rows do not fit its blocks get what llama.cpp falls back to, or f16.
        """
        if not is_matrix(name, shape):
            return quant_type("f32")
        return fitting(self.wanted(name, config), shape[-1])

    def wanted(self, name: str, config: GPTConfig) -> QuantType:
        """The type of a matrix if its rows fit."""
        if name in self.chosen:
            return self.chosen[name]
        if self.head and name == ("wte.weight" if config.tie_embeddings else "lm_head.weight"):
            return self.head
        found = _LAYER.fullmatch(name)
        other = self.rule(found[2], int(found[1]), config.n_layer) if self.rule and found else None
        return quant_type(other) if other else self.base


# The rules of `llama_tensor_get_type_impl` in llama-quant.cpp, by GPT-2's names; the fused c_attn
# goes by those of attn_v.


def _q2_k(matrix: str, _layer: int, _n_layer: int) -> str | None:
    return None if matrix == "mlp.c_fc" else "q3_k"


def _q2_k_s(matrix: str, layer: int, n_layer: int) -> str | None:
    return "q4_k" if matrix == "mlp.c_proj" and layer < n_layer // 8 else None


def _q3_k_m(matrix: str, layer: int, n_layer: int) -> str | None:
    if matrix == "mlp.c_fc":
        return None
    with_more = {"attn.c_attn": 2, "mlp.c_proj": n_layer // 16}
    return "q5_k" if layer < with_more.get(matrix, 0) else "q4_k"


def _q3_k_l(matrix: str, _layer: int, _n_layer: int) -> str | None:
    return None if matrix == "mlp.c_fc" else "q5_k"


def _q4_k_s(matrix: str, layer: int, n_layer: int) -> str | None:
    with_more = {"attn.c_attn": 4, "mlp.c_proj": n_layer // 8}
    return "q5_k" if layer < with_more.get(matrix, 0) else None


def _some_q6_k(matrix: str, layer: int, n_layer: int) -> str | None:
    """`use_more_bits`."""
    eighth = n_layer // 8
    more = layer < eighth or layer >= 7 * n_layer // 8 or (layer - eighth) % 3 == 2
    return "q6_k" if more and matrix in ("attn.c_attn", "mlp.c_proj") else None


def _presets() -> dict[str, Quantization]:
    """Llama-quantize's K-quants: all have their head in q6_k."""
    file_types = gguf.LlamaFileType
    presets: tuple[tuple[str, gguf.LlamaFileType, str, Rule | None], ...] = (
        ("q2_k", file_types.MOSTLY_Q2_K, "q2_k", _q2_k),
        ("q2_k_s", file_types.MOSTLY_Q2_K_S, "q2_k", _q2_k_s),
        ("q3_k_s", file_types.MOSTLY_Q3_K_S, "q3_k", None),
        ("q3_k_m", file_types.MOSTLY_Q3_K_M, "q3_k", _q3_k_m),
        ("q3_k_l", file_types.MOSTLY_Q3_K_L, "q3_k", _q3_k_l),
        ("q4_k_s", file_types.MOSTLY_Q4_K_S, "q4_k", _q4_k_s),
        ("q4_k_m", file_types.MOSTLY_Q4_K_M, "q4_k", _some_q6_k),
        ("q5_k_s", file_types.MOSTLY_Q5_K_S, "q5_k", None),
        ("q5_k_m", file_types.MOSTLY_Q5_K_M, "q5_k", _some_q6_k),
    )
    head = quant_type("q6_k")
    return {
        name: Quantization(name, file_type, quant_type(base), head, rule)
        for name, file_type, base, rule in presets
    }


def fitting(qtype: QuantType, row_length: int) -> QuantType:
    """The type that rows of this length are stored in where `qtype` is wanted."""
    for candidate in (qtype.name, _FALLBACKS.get(qtype.name, "f16")):
        if quant_type(candidate).fits(row_length):
            return quant_type(candidate)
    return quant_type("f16")


def quantization_names() -> list[str]:
    """Every name that `quantization` knows but the aliases: types, then llama.cpp's presets.

    q2_k is the preset; the type alone is asked for by `--tensor-type '*=q2_k'`.
    """
    presets = _presets()
    return [*(name for name in quant_names() if name not in presets), *presets]


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
        raise QuantizationError(unknown_name("quantization type", name, names)) from error
    return Quantization(qtype.name, qtype.file_type, qtype)


def quantization_of(file_type: gguf.LlamaFileType) -> Quantization:
    """The quantization that a file's `general.file_type` stands for.

    Raises QuantizationError if it is none that is written here.
    """
    known = [*_presets().values(), *map(quantization, quant_names())]
    for candidate in known:  # of a type and a preset that share a number, the preset
        if candidate.file_type == file_type:
            return candidate
    names = ", ".join(candidate.file_type.name for candidate in known)
    raise QuantizationError(f"unsupported file type {file_type.name}; supported: {names}")


def is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is multiplied with, so that it may be quantized.

    Position embeddings, biases and norms are added; they stay f32, as llama.cpp keeps them.
    """
    return len(shape) == 2 and name != "wpe.weight"
