"""What a model computes beyond its tensors: each fact with where it is from, nothing in silence."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from llmkit.errors import ConfigError
from llmkit.importing.naming.parts import Parts
from llmkit.importing.naming.take_apart import named_order
from llmkit.importing.projects import Project
from llmkit.importing.source.source import Source

_TANH = "gelu_tanh gelu_new gelu_pytorch_tanh gelu_approx gelu_approximate new_gelu newgelu tanh"
ACTIVATIONS = {
    **dict.fromkeys(_TANH.split(), "gelu_tanh"),
    **dict.fromkeys(["gelu", "gelu_erf", "gelu_exact", "erf", "gelu_python", "none"], "gelu_erf"),
    "relu": "relu",
}
NORMS = {"pre": "pre", "post": "post", "true": "pre", "false": "post"}
NORM_TYPES = {"layer": "layer", "rms": "rms"}
MASKS = {"causal": "causal", "none": "none"}
# What queries times keys are multiplied by: 1/sqrt(head width), 1/sqrt(n_embd), or 1.
# What token embeddings are multiplied by before positions are added: sqrt(n_embd), or 1.
EMBEDDING_SCALES = {"none": "none", "sqrt": "sqrt"}
# Which rows of a fused matrix are queries, keys and values; "heads": q, k and v of head 0 first.
QKV_ORDERS = {order: order for order in (*map("".join, itertools.permutations("qkv")), "heads")}
ATTENTION_SCALES = {"head": "head", "embd": "embd", "none": "none"}

# Names under which programs keep a setting, the usual first.
_NAMES = {
    "n_head": "n_head n_heads num_heads num_attention_heads nhead heads num_head attention_heads",
    "activation": "activation_function activation act hidden_act act_fn activation_type",
    "norm": "norm_first pre_norm",
    "layer_norm_epsilon": "layer_norm_epsilon layer_norm_eps ln_eps norm_eps",
    "context_length": "block_size n_positions n_ctx context_length max_seq_len seq_len "
    "sequence_len context_size max_len ctx_len block_len",
    "n_embd": "n_embd hidden_size",
    "vocab_size": "vocab_size",
    "n_layer": "n_layer n_layers num_layers num_hidden_layers depth num_blocks n_blocks",
}
# minGPT keeps a model_type and no sizes (mingpt/model.py).
_MINGPT_HEADS = {
    "openai-gpt": 12, "gpt2": 12, "gpt2-medium": 16, "gpt2-large": 20, "gpt2-xl": 25,
    "gopher-44m": 16, "gpt-mini": 6, "gpt-micro": 4, "gpt-nano": 3,
}  # fmt: skip


@dataclass(frozen=True)
class Fact:
    """A value and where it is from."""

    value: Any
    origin: str


TO_TRY = "not in the file"


@dataclass(frozen=True)
class ImportOptions:
    """What the user says of a checkpoint; None or empty where the user says nothing."""

    n_head: int | None = None
    activation: str | None = None
    norm: str | None = None
    norm_type: str | None = None
    mask: str | None = None
    attention_scale: str | None = None
    embedding_scale: str | None = None
    qkv_order: str | None = None
    layer_norm_epsilon: float | None = None
    lora_alpha: float | None = None
    labels: tuple[str, ...] = ()
    tokenizer: str | None = None
    prompt_format: str | None = None


@dataclass(frozen=True)
class Facts:
    """Everything that names and shapes of tensors do not determine."""

    n_head: Fact
    activation: Fact
    norm: Fact
    norm_type: Fact
    mask: Fact
    attention_scale: Fact
    is_scaled_by_layer: Fact
    embedding_scale: Fact
    qkv_order: Fact
    layer_norm_epsilon: Fact

    def items(self) -> list[tuple[str, Fact]]:
        """Names and facts."""
        return [(field.name, getattr(self, field.name)) for field in fields(self)]

    def embedding_factor(self, n_embd: int) -> float:
        """What the program multiplies token embeddings by."""
        return math.sqrt(n_embd) if self.embedding_scale.value == "sqrt" else 1.0

    def score_factor(self, n_embd: int) -> float:
        """What it multiplies products of queries and keys by, in the first layer."""
        factors = {"head": (n_embd // self.n_head.value) ** -0.5, "embd": n_embd**-0.5, "none": 1.0}
        return float(factors[self.attention_scale.value])

    def query_factor(self, n_embd: int, layer: int) -> float:
        """What to multiply queries by, so that dividing by sqrt(head width) gives its scores."""
        is_usual = self.attention_scale.value == "head"
        head_width = n_embd // self.n_head.value
        factor = 1.0 if is_usual else self.score_factor(n_embd) * math.sqrt(head_width)
        return factor / (layer + 1) if self.is_scaled_by_layer.value else factor

    def with_value(self, name: str, value: Any) -> Facts:
        """The facts with one of them tried otherwise."""
        return replace(self, **{name: Fact(value, "tried")})


def divisors(n: int) -> list[int]:
    """Of a width: how many heads it could have."""
    return [d for d in range(1, n + 1) if n % d == 0]


def setting(source: Source, name: str) -> Fact | None:
    """A setting of the file, or of a file beside it, under any of its usual names."""
    for alias in _NAMES[name].split():
        value = source.settings.get(alias)
        if value is not None:
            return Fact(value, f"the file: {alias}")
    return None


def gather(
    source: Source,
    project: Project | None,
    parts: Parts,
    options: ImportOptions,
    *,
    has_reference: bool = False,
) -> Facts:
    """Each fact from the option, the file, the shapes or the program, in this order.

    With a reference the number of heads may be open: its origin is then TO_TRY.
    Raises ConfigError for one that none of them gives, naming the option.
    """
    known: Mapping[str, str] = project.facts if project else {}
    shown = dict(_shown(source, parts))

    def fact(name: str, table: Mapping[str, str], default: str | None) -> Fact:
        given = getattr(options, name)
        found = shown.get(name) or (setting(source, name) if name in _NAMES else None)
        if given is not None:
            return Fact(_named(given, table, f"--{name.replace('_', '-')}"), _yours(given, found))
        if found is not None:
            return Fact(_named(found.value, table, found.origin), found.origin)
        if name in known and project is not None:
            return Fact(_named(known[name], table, project.name), f"assumed: {project.name} has it")
        if default is None or (project is not None and name in project.asks):
            values = ", ".join(dict.fromkeys(table.values()))
            raise ConfigError(
                f"the file does not say which {name.replace('_', ' ')} the model has; give "
                f"--{name.replace('_', '-')} ({values}), as in the program that trained it"
            )
        return Fact(default, "assumed: the usual one")

    flags = source.settings
    scale = fact("attention_scale", ATTENTION_SCALES, "head")
    if flags.get("scale_attn_weights") is False and options.attention_scale is None:
        scale = Fact("none", "the file: scale_attn_weights")
    by_layer = bool(flags.get("scale_attn_by_inverse_layer_idx", False))
    epsilon = _epsilon(source, options)
    return Facts(
        _n_head(source, parts, options, has_reference),
        fact("activation", ACTIVATIONS, None),
        fact("norm", NORMS, "pre"),
        fact("norm_type", NORM_TYPES, None),
        fact("mask", MASKS, "causal"),
        scale,
        Fact(by_layer, "the file" if by_layer else "assumed: the usual one"),
        fact("embedding_scale", EMBEDDING_SCALES, "none"),
        fact("qkv_order", QKV_ORDERS, named_order(parts)),
        epsilon,
    )


def _shown(source: Source, parts: Parts) -> Iterator[tuple[str, Fact]]:
    """What the pickled classes and the kinds of tensors tell."""
    if found := next((name for name in source.classes if "rmsnorm" in name.lower()), None):
        yield "norm_type", Fact("rms", f"the file: class {found}")
    elif parts.final_norm.bias is not None:
        yield "norm_type", Fact("layer", "the file: norms have biases")


def _yours(given: Any, found: Fact | None) -> str:
    if found is None or found.value == given:
        return "your option"
    return f"your option; {found.origin} is {found.value}"


def _named(value: Any, table: Mapping[str, str], where: str) -> str:
    found = table.get(str(value).lower().removeprefix("nn.").rstrip("()"))
    if found is None:
        values = ", ".join(dict.fromkeys(table.values()))
        raise ConfigError(
            f"{where}: {value!r} is not one of {values}, which llama.cpp's gpt2 graph can compute"
        )
    return found


def _epsilon(source: Source, options: ImportOptions) -> Fact:
    if options.layer_norm_epsilon is not None:
        return Fact(options.layer_norm_epsilon, "your option")
    found = setting(source, "layer_norm_epsilon")
    if found is not None and isinstance(found.value, float):
        return found
    return Fact(1e-5, "assumed: PyTorch's default")


def _n_head(source: Source, parts: Parts, options: ImportOptions, has_reference: bool) -> Fact:
    width, layer = parts.n_embd, parts.layers[0]
    found = _stated_heads(source, layer_heads=len(layer.q) if len(layer.q) > 1 else None)
    if options.n_head is not None:
        if len(layer.q) > 1 and options.n_head != len(layer.q):
            raise ConfigError(f"--n-head {options.n_head}: the file has {len(layer.q)} heads")
        found = Fact(options.n_head, _yours(options.n_head, found))
    possible = divisors(width)
    if found is None and has_reference:
        return Fact(1, TO_TRY)
    if found is None:
        raise ConfigError(
            "the file does not say how many heads the model has; give --n-head, as in the program "
            f"that trained it, or --reference: one of {', '.join(map(str, possible))}"
        )
    if found.value not in possible:
        raise ConfigError(
            f"n_head {found.value} ({found.origin}) does not divide the width {width}; "
            f"possible are {', '.join(map(str, possible))}"
        )
    return found


def _stated_heads(source: Source, layer_heads: int | None) -> Fact | None:
    if layer_heads is not None:
        return Fact(layer_heads, "the file: one matrix per head")
    found = setting(source, "n_head")
    if found is not None and isinstance(found.value, int) and found.value > 0:
        return found
    model_type = source.settings.get("model_type")
    if model_type in _MINGPT_HEADS and source.settings.get("embd_pdrop") is not None:
        return Fact(_MINGPT_HEADS[str(model_type)], f"the file: model_type {model_type}")
    return None
