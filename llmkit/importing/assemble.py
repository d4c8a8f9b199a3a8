"""A GPT's parts as the tensors of a llmkit checkpoint: joined, transposed and folded.

What llama.cpp's gpt2 graph lacks is put into weights where algebra allows it exactly:

- scores of attention scaled otherwise than by 1/sqrt(head width): into the query;
- a bias of the head, and tokens that are never said: into an untied head behind a norm of weight
  1 and bias 1. The normalised vector n sums to 0, so a row r + m of the head, m in every column,
  gives r n + m C: any constant can be added to a token's logit.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llmkit.architectures.base import ModelConfig, Role, TensorSpec
from llmkit.architectures.registry import tensor_specs
from llmkit.errors import CheckpointError
from llmkit.finetuning.label_head import expanded_head
from llmkit.importing.facts import Facts
from llmkit.importing.naming.parts import Layer, Linear, Parts
from llmkit.validation import validated

NEVER = -10_000.0  # the logit of a token that is never said
Produce = Callable[[], Tensor]


@dataclass(frozen=True)
class Step:
    """What became of tensors of the source, and why."""

    source: str
    target: str
    done: str


@dataclass(frozen=True)
class Assembly:
    """Tensors of a checkpoint, made one at a time when they are written."""

    config: ModelConfig
    tensors: dict[str, Produce]
    shapes: dict[str, tuple[int, ...]]
    steps: list[Step]


@dataclass(frozen=True)
class Vocabulary:
    """Rows of the checkpoint's vocabulary: those kept of the source, and those that are new.

    `labels`: for each row of a classifier's head the token that stands for it.
    """

    n_kept: int
    n_new: int
    labels: Sequence[int] = field(default=())

    @property
    def size(self) -> int:
        """Number of tokens."""
        return self.n_kept + self.n_new


def assemble(
    parts: Parts, facts: Facts, vocabulary: Vocabulary, family: type[ModelConfig]
) -> Assembly:
    """The tensors and sizes of a checkpoint. Raises CheckpointError for shapes that do not fit."""
    layers = parts.layers
    first = layers[0]
    is_tied = _is_tied(parts) and not _is_folded(parts, vocabulary)
    is_tied = is_tied and embedding_scale(facts, parts) == 1
    up = _oriented(first.up, parts)
    config: ModelConfig = validated(
        family,
        {
            "vocab_size": vocabulary.size,
            "context_length": len(parts.positions.weight),
            "n_layer": len(layers),
            "n_head": facts.n_head.value,
            "n_embd": parts.n_embd,
            "qkv_bias": _has_qkv_bias(first),
            "tie_embeddings": is_tied,
            "layer_norm_epsilon": float(facts.layer_norm_epsilon.value),
            "n_ff": len(up),
            "activation": facts.activation.value,
        },
        "the source",
    )
    specs = tensor_specs(config)
    build = _Build(parts, facts, vocabulary, is_tied, _owners(specs))
    tensors: dict[str, Produce] = {}
    for spec in specs:
        if not spec.is_absent:
            tensors[spec.checkpoint_name] = build.tensor(spec)
    shapes = {spec.checkpoint_name: spec.shape for spec in specs if not spec.is_absent}
    return Assembly(config, tensors, shapes, build.steps())


@dataclass
class _Build:
    """Finds what a tensor of the checkpoint is made of."""

    parts: Parts
    facts: Facts
    vocabulary: Vocabulary
    is_tied: bool
    owners: Mapping[str, Role | int]

    def tensor(self, spec: TensorSpec) -> Produce:
        """A function that makes it. Raises CheckpointError where shapes do not fit."""
        make = self._make(spec)

        def checked() -> Tensor:
            tensor = make().to(torch.float32)
            if tuple(tensor.shape) != spec.shape:
                raise CheckpointError(
                    f"{spec.checkpoint_name} would have shape {tuple(tensor.shape)}, but the "
                    f"model needs {spec.shape}; the tensors do not fit together"
                )
            return tensor.contiguous()

        return checked

    def _make(self, spec: TensorSpec) -> Produce:
        parts = self.parts
        if spec.role is Role.TOKEN_EMBEDDING:
            return self._token_rows
        if spec.role is Role.POSITION_EMBEDDING:
            return lambda: parts.positions.weight
        if spec.role is Role.HEAD:
            return self._head
        if spec.layer is None:  # the final norm
            return lambda: self._final_norm(spec.checkpoint_name.endswith("bias"))
        layer = parts.layers[spec.layer]
        is_bias = spec.role is Role.BIAS
        owner = self.owners[spec.module]
        if isinstance(owner, int):
            norm = layer.norms[owner]
            return lambda: _bias(norm) if is_bias else norm.weight
        if owner is Role.QKV:
            return lambda: self._qkv(layer, spec.layer or 0, is_bias)
        linear = {
            Role.ATTENTION_OUTPUT: layer.attention_output,
            Role.FEED_FORWARD_UP: layer.up,
            Role.FEED_FORWARD_DOWN: layer.down,
        }[owner]
        if linear is None:  # a missing output projection of attention
            return lambda: torch.zeros(parts.n_embd) if is_bias else torch.eye(parts.n_embd)
        found = linear
        return lambda: (
            _bias(found, len(_oriented(found, parts))) if is_bias else _oriented(found, parts)
        )

    def _token_rows(self) -> Tensor:
        rows = self.parts.tokens.weight[: self.vocabulary.n_kept]
        if (scale := embedding_scale(self.facts, self.parts)) != 1:
            rows = rows.float() * scale
        if not self.vocabulary.n_new:
            return rows
        # New tokens read as an average one: they only occur where a text has what the model lacks.
        return torch.cat((rows, rows.mean(0, keepdim=True).expand(self.vocabulary.n_new, -1)))

    def _qkv(self, layer: Layer, number: int, is_bias: bool) -> Tensor:
        if layer.qkv is not None:
            width = self.parts.n_embd
            whole = _bias(layer.qkv, 3 * width) if is_bias else _oriented(layer.qkv, self.parts)
            order = self.facts.qkv_order.value
            q, *others = in_order(whole, order, self.facts.n_head.value)
            rest = whole[width:] if order == "qkv" else torch.cat(others)
        else:
            q, k, v = (
                torch.cat([_bias(h, len(h.weight)) if is_bias else h.weight for h in heads])
                for heads in (layer.q, layer.k, layer.v)
            )
            rest = torch.cat((k, v))
        scale = query_scale(self.facts, self.parts.n_embd, number)
        return torch.cat((q.float() * scale, rest.float())) if scale != 1 else torch.cat((q, rest))

    def _final_norm(self, is_bias: bool) -> Tensor:
        norm = self.parts.final_norm
        if self.is_folded:
            return torch.ones_like(norm.weight)
        return _bias(norm) if is_bias else norm.weight

    @property
    def is_folded(self) -> bool:
        """Whether the last norm's weights are in the head."""
        return _is_folded(self.parts, self.vocabulary)

    def _head(self) -> Tensor:
        labels, size = self.vocabulary.labels, self.vocabulary.size
        weight = head_weight(self.parts)
        if labels:
            return expanded_head(self._head_rows(weight, len(weight)).float(), labels, size)
        return self._head_rows(weight[: self.vocabulary.n_kept], size)

    def _head_rows(self, weight: Tensor, n_rows: int) -> Tensor:
        """The rows with norm and bias folded in where they are; new rows are never said."""
        if not self.is_folded:
            return weight
        width = self.parts.n_embd
        gain = self.parts.final_norm.weight.double()
        shift = _bias(self.parts.final_norm).double()
        bias = _head_bias(self.parts)
        out = torch.full((n_rows, width), NEVER / width, dtype=torch.float32)
        for start in range(0, len(weight), _ROWS_AT_ONCE):
            rows = weight[start : start + _ROWS_AT_ONCE].double()
            scaled = rows * gain
            wanted = rows @ shift
            if bias is not None:
                wanted = wanted + bias[start : start + len(rows)].double()
            mean = (scaled.sum(1) - wanted) / width
            out[start : start + len(rows)] = (scaled - mean[:, None]).float()
        return out

    def steps(self) -> list[Step]:
        """The table of what went where."""
        parts, layer = self.parts, self.parts.layers[0]
        name = _of_all_layers
        found: list[Step] = []
        kept, rows = self.vocabulary.n_kept, len(parts.tokens.weight)
        done = (
            "copied" if kept == rows else f"cropped from {rows:,} to {kept:,} rows: no such tokens"
        )
        if self.vocabulary.n_new:
            done += f", {self.vocabulary.n_new:,} tokens added that are never said"
        if (scale := embedding_scale(self.facts, parts)) != 1:
            done += f", times {scale:.4g}"
        found.append(Step(parts.tokens.name, "token embedding", done))
        found.append(Step(parts.positions.name, "position embedding", "copied"))
        turned = ", transposed" if parts.is_transposed else ""
        if layer.qkv is not None:
            order = self.facts.qkv_order.value
            moved = "" if order == "qkv" else f", rows put in order (were {order})"
            found.append(Step(name(layer.qkv), "queries, keys, values", f"copied{turned}{moved}"))
        else:
            which = "per head, " if len(layer.q) > 1 else ""
            heads = f"{name(layer.q[0])}, {name(layer.k[0])}, {name(layer.v[0])}"
            found.append(Step(heads, "queries, keys, values", f"{which}concatenated"))
        scales = [query_scale(self.facts, parts.n_embd, i) for i in range(len(parts.layers))]
        if any(scale != 1 for scale in scales):
            shown = ", ".join(f"{scale:.4g}" for scale in dict.fromkeys(scales))
            found.append(Step("attention scale", "query", f"folded: query times {shown}"))
        for linear, target in (
            (layer.attention_output, "attention output"),
            (layer.up, "feed-forward up"),
            (layer.down, "feed-forward down"),
            (layer.norms[0], "norm before attention"),
            (layer.norms[1], "norm before feed-forward"),
        ):
            if linear is None:
                found.append(Step("none", target, "identity: the model has none"))
                continue
            done = "copied" + (turned if linear.weight.ndim == 2 else "")
            if linear.bias is None:
                done += ", zeros for its bias"
            found.append(Step(name(linear), target, done))
        if not _has_qkv_bias(layer):
            found.append(Step("none", "bias of queries, keys, values", "zeros: the model has none"))
        done = "folded into the head" if self.is_folded else "copied"
        found.append(Step(parts.final_norm.name, "norm before the head", done))
        found.append(self._head_step())
        if parts.ignored:
            more = f" and {len(parts.ignored) - 1} more" if len(parts.ignored) > 1 else ""
            found.append(Step(parts.ignored[0] + more, "nothing", "ignored: masks and positions"))
        return found

    def _head_step(self) -> Step:
        parts = self.parts
        source = parts.head.name if parts.head else "none"
        if self.is_tied:
            return Step(source, "head", "tied to the token embedding")
        labels = self.vocabulary.labels
        means = ", their mean for all other tokens" if labels else ""
        if not self.is_folded:
            return Step(source, "head", f"copied{means}")
        why = [
            *(["its bias"] if _head_bias(parts) is not None else []),
            *(["tokens that are never said"] if self.vocabulary.n_new and not labels else []),
        ]
        untied = ", untied" if _is_tied(parts) else ""
        return Step(source, "head", f"folded with the norm, for {' and '.join(why)}{untied}{means}")


_ROWS_AT_ONCE = 8192


def query_scale(facts: Facts, n_embd: int, layer: int) -> float:
    """What queries are multiplied by, so that dividing by sqrt(head width) gives the model's."""
    head_width = n_embd // facts.n_head.value
    wanted: dict[str, float] = {"head": head_width**-0.5, "embd": n_embd**-0.5, "none": 1.0}
    kind = facts.attention_scale.value
    scale = 1.0 if kind == "head" else float(wanted[kind]) * math.sqrt(head_width)
    return scale / (layer + 1) if facts.is_scaled_by_layer.value else scale


def in_order(fused: Tensor, order: str, n_head: int) -> list[Tensor]:
    """Queries, keys and values of a fused tensor (3C, ...), each (C, ...)."""
    if order == "heads":
        apart = fused.reshape(n_head, 3, -1, *fused.shape[1:])
        return [apart[:, i].reshape(-1, *fused.shape[1:]) for i in range(3)]
    found = dict(zip(order, fused.chunk(3), strict=True))
    return [found[kind] for kind in "qkv"]


def embedding_scale(facts: Facts, parts: Parts) -> float:
    """What the program multiplies token embeddings by."""
    return math.sqrt(parts.n_embd) if facts.embedding_scale.value == "sqrt" else 1.0


def head_weight(parts: Parts) -> Tensor:
    """The matrix that makes the logits (V, C)."""
    return (parts.head or parts.tokens).weight


def _head_bias(parts: Parts) -> Tensor | None:
    """The head's bias, if it has one that is not zero."""
    bias = parts.head.bias if parts.head else None
    return bias if bias is not None and bool(bias.any()) else None


def _is_folded(parts: Parts, vocabulary: Vocabulary) -> bool:
    is_longer = bool(vocabulary.n_new) and not vocabulary.labels
    return is_longer or _head_bias(parts) is not None


def _is_tied(parts: Parts) -> bool:
    if parts.head is None:
        return True
    a, b = parts.head.weight, parts.tokens.weight
    return a.shape == b.shape and (a.data_ptr() == b.data_ptr() or torch.equal(a, b))


def _has_qkv_bias(layer: Layer) -> bool:
    if layer.qkv is not None:
        return layer.qkv.bias is not None
    return any(linear.bias is not None for linear in (*layer.q, *layer.k, *layer.v))


def _bias(linear: Linear, size: int | None = None) -> Tensor:
    if linear.bias is not None:
        return linear.bias
    return torch.zeros(len(linear.weight) if size is None else size)


def _oriented(linear: Linear | None, parts: Parts) -> Tensor:
    """A matrix as (out, in)."""
    if linear is None:
        raise CheckpointError("a matrix is missing")
    return linear.weight.T if parts.is_transposed else linear.weight


def _owners(specs: Sequence[TensorSpec]) -> dict[str, Role | int]:
    """The role of each module's matrix; of a norm its place in the layer."""
    owners: dict[str, Role | int] = {}
    n_norms: Counter[int | None] = Counter()
    for spec in specs:
        if spec.role is Role.NORM:
            owners[spec.module] = n_norms[spec.layer]
            n_norms[spec.layer] += 1
        elif spec.role is not Role.BIAS:
            owners[spec.module] = spec.role
    return owners


def _of_all_layers(linear: Linear) -> str:
    return linear.name.replace(".0.", ".N.", 1)
