"""A GPT's parts as the tensors of a llmkit checkpoint: joined, transposed and folded.

What llama.cpp's gpt2 graph lacks is put into weights where algebra allows it exactly:

- scores of attention scaled otherwise than by 1/sqrt(head width): into the query;
- a bias of the head, and tokens that are never said: into an untied head behind a norm of weight
  1 and bias 1. The normalised vector n sums to 0, so a row r + m of the head, m in every column,
  gives r n + m C: any constant can be added to a token's logit.
"""

from __future__ import annotations

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
_ROWS_AT_ONCE = 8192
Produce = Callable[[], Tensor]


@dataclass(frozen=True)
class Assembly:
    """Tensors of a checkpoint, made one at a time when they are written."""

    config: ModelConfig
    tensors: dict[str, Produce]
    shapes: dict[str, tuple[int, ...]]


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
    is_scaled = facts.embedding_factor(parts.n_embd) != 1
    is_tied = parts.is_tied and not is_scaled and not is_folded(parts, vocabulary)
    up = _oriented(first.up, parts)
    config: ModelConfig = validated(
        family,
        {
            "vocab_size": vocabulary.size,
            "context_length": len(parts.positions.weight),
            "n_layer": len(layers),
            "n_head": facts.n_head.value,
            "n_embd": parts.n_embd,
            "qkv_bias": first.has_qkv_bias,
            "tie_embeddings": is_tied,
            "layer_norm_epsilon": float(facts.layer_norm_epsilon.value),
            "n_ff": len(up),
            "activation": facts.activation.value,
        },
        "the source",
    )
    specs = tensor_specs(config)
    build = _Build(parts, facts, vocabulary, _owners(specs))
    tensors: dict[str, Produce] = {}
    for spec in specs:
        if not spec.is_absent:
            tensors[spec.checkpoint_name] = build.tensor(spec)
    shapes = {spec.checkpoint_name: spec.shape for spec in specs if not spec.is_absent}
    return Assembly(config, tensors, shapes)


@dataclass
class _Build:
    """Finds what a tensor of the checkpoint is made of."""

    parts: Parts
    facts: Facts
    vocabulary: Vocabulary
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
        if (scale := self.facts.embedding_factor(self.parts.n_embd)) != 1:
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
        scale = self.facts.query_factor(self.parts.n_embd, number)
        return torch.cat((q.float() * scale, rest.float())) if scale != 1 else torch.cat((q, rest))

    def _final_norm(self, is_bias: bool) -> Tensor:
        norm = self.parts.final_norm
        if self.is_folded:
            return torch.ones_like(norm.weight)
        return _bias(norm) if is_bias else norm.weight

    @property
    def is_folded(self) -> bool:
        """Whether the last norm's weights are in the head."""
        return is_folded(self.parts, self.vocabulary)

    def _head(self) -> Tensor:
        labels, size = self.vocabulary.labels, self.vocabulary.size
        weight = self.parts.head_weight
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
        bias = self.parts.head_bias
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


def in_order(fused: Tensor, order: str, n_head: int) -> list[Tensor]:
    """Queries, keys and values of a fused tensor (3C, ...), each (C, ...)."""
    if order == "heads":
        apart = fused.reshape(n_head, 3, -1, *fused.shape[1:])
        return [apart[:, i].reshape(-1, *fused.shape[1:]) for i in range(3)]
    found = dict(zip(order, fused.chunk(3), strict=True))
    return [found[kind] for kind in "qkv"]


def is_folded(parts: Parts, vocabulary: Vocabulary) -> bool:
    """Whether the head gets the weights of the norm before it."""
    is_longer = bool(vocabulary.n_new) and not vocabulary.labels
    return is_longer or parts.head_bias is not None


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
