"""Which GGUF type each tensor of a file is stored in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import gguf

from llmkit.architectures.base import Layers, Role, TensorSpec, head_role
from llmkit.errors import QuantizationError, unknown_name
from llmkit.quant.types import ALIASES, QuantType, quant_names, quant_type

CUSTOM = "custom"  # the name of a quantization whose types were chosen tensor by tensor
# The type of a layer's matrix where it is not the preset's base: role, layer, number of layers.
Rule = Callable[[Role, int, int], str | None]


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

    def type_of(self, tensor: TensorSpec, model: Layers) -> QuantType:
        """The type in which a tensor is stored.

        Matrices whose rows do not fit its blocks get what llama.cpp falls back to, or f16.
        """
        if not tensor.is_matrix:
            return quant_type("f32")
        return self.wanted(tensor, model).fitting(tensor.shape[-1])

    def wanted(self, tensor: TensorSpec, model: Layers) -> QuantType:
        """The type of a matrix if its rows fit."""
        if tensor.checkpoint_name in self.chosen:
            return self.chosen[tensor.checkpoint_name]
        if self.head and tensor.role is head_role(model):
            return self.head
        other = None
        if self.rule and tensor.layer is not None:
            other = self.rule(tensor.role, tensor.layer, model.n_layer)
        return quant_type(other) if other else self.base


# The rules of `llama_tensor_get_type_impl` in llama-quant.cpp, without its exceptions for Falcon,
# for 80 layers and for eight experts. Fused q, k and v go by those of attn_v.
_VALUES = (Role.QKV, Role.SHARED_VALUE)
_DEEP = (*_VALUES, Role.ATTENTION_OUTPUT, Role.FEED_FORWARD_DOWN)


def _q2_k(role: Role, _layer: int, _n_layer: int) -> str | None:
    if role is Role.SHARED_VALUE:
        return "q4_k"
    return "q3_k" if role in _DEEP else None


def _q2_k_s(role: Role, layer: int, n_layer: int) -> str | None:
    with_more = {Role.SHARED_VALUE: n_layer, Role.FEED_FORWARD_DOWN: n_layer // 8}
    return "q4_k" if layer < with_more.get(role, 0) else None


def _q3_k_m(role: Role, layer: int, n_layer: int) -> str | None:
    if role not in _DEEP:
        return None
    with_more = {**dict.fromkeys(_VALUES, 2), Role.FEED_FORWARD_DOWN: n_layer // 16}
    return "q5_k" if layer < with_more.get(role, 0) else "q4_k"


def _q3_k_l(role: Role, _layer: int, _n_layer: int) -> str | None:
    return "q5_k" if role in _DEEP else None


def _q4_k_s(role: Role, layer: int, n_layer: int) -> str | None:
    with_more = {**dict.fromkeys(_VALUES, 4), Role.FEED_FORWARD_DOWN: n_layer // 8}
    return "q5_k" if layer < with_more.get(role, 0) else None


def _some_q6_k(role: Role, layer: int, n_layer: int) -> str | None:
    """`use_more_bits`."""
    eighth = n_layer // 8
    more = layer < eighth or layer >= 7 * n_layer // 8 or (layer - eighth) % 3 == 2
    return "q6_k" if more and role in (*_VALUES, Role.FEED_FORWARD_DOWN) else None


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
