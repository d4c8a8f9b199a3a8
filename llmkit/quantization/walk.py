"""Error feedback through a whole model: matrix after matrix, each knowing those before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from llmkit.architectures.base import LanguageModel
from llmkit.architectures.graph import Attention, Embed, Gelu, Norm, Operation, Product
from llmkit.architectures.registry import family_of, tensor_specs
from llmkit.console import Progress, progress
from llmkit.quant import dequantize
from llmkit.quant.gptq import InputMoments, gptq
from llmkit.quant.types import PackedRows, QuantType

# Through one layer, and through the whole model with its logits: of GPT-2's 50,257 tokens of
# vocabulary these are 200 MB, four times.
LAYER_TOKENS_AT_ONCE, MODEL_TOKENS_AT_ONCE = 4096, 1024
EMBEDDING_TOKENS = 8192  # a pass forward and back through the whole model for each
SEED = 0


@torch.no_grad()
def error_feedback(
    model: LanguageModel, types: Mapping[str, QuantType], tokens: Tensor
) -> dict[str, PackedRows]:
    """Blocks of the matrices in `types`, by their names in the checkpoint.

    `tokens` (n, T) calibrate. Two streams go through the model's graph: one as it was trained, the
    other through the matrices already quantized. A matrix learns from the second what it reads,
    and from the difference of both what to make up for.
    """
    tokens = tokens.to(model.device)
    operations = list(family_of(model.config).graph(model.config))
    with progress("quantize", len(types), "matrices") as bar:
        walk = _Walk(model, types, bar)
        streams: dict[str, _Streams] = {}
        while operations:
            operation, *operations = operations
            output = operation.output
            if isinstance(operation, Embed):
                streams[output] = _embedded(walk, operation, tokens)
                continue
            read = [streams[name] for name in operation.inputs]
            if isinstance(operation, Product):
                walk.quantize(operation.weight, read[0].statistics)
                if not operations:  # of the logits nobody learns
                    break
                after: Callable[[Tensor], Tensor] = _same
                if _is_only_read_by(output, operations):
                    fused, *operations = operations
                    after, output = walk.function(fused), fused.output
                found = walk.linear(operation, read[0], after)
                found = read[1] + found if len(read) > 1 else found
            else:
                found = read[0].through(walk.function(operation))
            streams[output] = found
            still_read = {name for later in operations for name in later.inputs}
            streams = {name: kept for name, kept in streams.items() if name in still_read}
            del read, found
    return walk.blocks


def _is_only_read_by(name: str, later: Sequence[Operation]) -> bool:
    """Whether the next operation alone reads a tensor, and does so for each sequence by itself.

    Both are then one step, so that the largest activations of a model are never there as a whole.
    """
    readers = [operation for operation in later if name in operation.inputs]
    return readers == [later[0]] and isinstance(later[0], Attention | Gelu)


def _embedded(walk: _Walk, operation: Embed, tokens: Tensor) -> _Streams:
    trained = walk.parameter(operation.tokens)
    walk.quantize(operation.tokens, lambda: _of_embedding(walk.model, tokens))
    quantized = walk.quantized(operation.tokens)
    rows = _Streams(F.embedding(tokens, trained), F.embedding(tokens, quantized))
    if operation.positions is None:
        return rows
    positions = walk.parameter(operation.positions)[: tokens.shape[1]]
    return _Streams(rows.trained + positions, rows.quantized + positions)


@dataclass(frozen=True)
class _Streams:
    """Activations (n, T, C) of the model as trained, and of the one being quantized."""

    trained: Tensor
    quantized: Tensor

    def through(self, function: Callable[[Tensor], Tensor]) -> _Streams:
        """Both after a function that holds no quantized matrix."""
        return _Streams(_mapped(function, self.trained), _mapped(function, self.quantized))

    def __add__(self, other: _Streams) -> _Streams:
        return _Streams(self.trained + other.trained, self.quantized + other.quantized)

    def statistics(self) -> InputMoments:
        """Moments of what a matrix reads, which is these activations."""
        width = self.trained.shape[-1]
        moment = self.trained.new_zeros(width, width, dtype=torch.float64)
        drift = torch.zeros_like(moment)
        parts = zip(_layer_parts(self.trained), _layer_parts(self.quantized), strict=True)
        for trained, quantized in parts:
            x = quantized.flatten(0, 1)
            moment += x.T @ x
            drift += (trained.flatten(0, 1) - x).T @ x
        n = self.trained.numel() // width
        return InputMoments(moment.div_(n), drift.div_(n))


@dataclass(frozen=True)
class _Walk:
    """A model and the blocks so far. Weights go by their GGUF names, as the graph has them."""

    model: LanguageModel
    types: Mapping[str, QuantType]  # by name in the checkpoint, as the blocks
    bar: Progress
    blocks: dict[str, PackedRows] = field(default_factory=dict)

    @cached_property
    def names(self) -> dict[str, str]:
        """Names in the checkpoint of the tensors that it has."""
        specs = tensor_specs(self.model.config)
        return {spec.gguf_name: spec.checkpoint_name for spec in specs if not spec.is_absent}

    def parameter(self, gguf_name: str) -> Tensor:
        """A weight as it was trained."""
        return self.model.get_parameter(self.names[gguf_name])

    def bias(self, gguf_name: str | None) -> Tensor | None:
        """A bias; None where the model has none."""
        return self.parameter(gguf_name) if gguf_name in self.names else None

    def quantize(self, gguf_name: str, inputs: Callable[[], InputMoments]) -> None:
        """Make the blocks of a matrix that has a type; a tied head has those of the embedding."""
        name = self.names[gguf_name]
        if name in self.types and name not in self.blocks:
            weight = self.parameter(gguf_name)
            self.blocks[name] = gptq(weight, self.types[name], inputs(), name)
            self.bar.update(len(self.blocks))

    def quantized(self, gguf_name: str) -> Tensor:
        """A matrix as its blocks have it, or as it was trained where it has no type."""
        name, weight = self.names[gguf_name], self.parameter(gguf_name)
        if name not in self.types:
            return weight
        rounded = dequantize(self.blocks[name], self.types[name], tuple(weight.shape))
        return torch.from_numpy(rounded).to(weight.device)

    def linear(
        self,
        product: Product,
        inputs: _Streams,
        after: Callable[[Tensor], Tensor],
    ) -> _Streams:
        """Both streams through a product and what comes `after` it."""
        trained, bias = self.parameter(product.weight), self.bias(product.bias)
        quantized = self.quantized(product.weight)
        return _Streams(
            _mapped(lambda x: after(F.linear(x, trained, bias)), inputs.trained),
            _mapped(lambda x: after(F.linear(x, quantized, bias)), inputs.quantized),
        )

    def function(self, operation: Operation) -> Callable[[Tensor], Tensor]:
        """An operation of one input that holds no matrix: (n, T, C) to the same or another C."""
        if isinstance(operation, Norm):
            weight, bias = self.parameter(operation.weight), self.bias(operation.bias)
            return lambda x: operation.normalize(x, weight, bias)
        if isinstance(operation, Attention):
            return lambda qkv: _causal_attention(qkv, operation.n_head)
        if isinstance(operation, Gelu):
            return lambda x: F.gelu(x, approximate="tanh")
        raise TypeError(operation)


def _causal_attention(qkv: Tensor, n_head: int) -> Tensor:
    """Queries, keys and values side by side (n, T, 3C) -> (n, T, C)."""
    n, T, C = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    q, k, v = (part.view(n, T, n_head, -1).transpose(1, 2) for part in torch.split(qkv, C, dim=2))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (n, H, T, D)
    return y.transpose(1, 2).reshape(n, T, C)


def _same(x: Tensor) -> Tensor:
    return x


@torch.enable_grad()
def _of_embedding(model: LanguageModel, tokens: Tensor) -> InputMoments:
    """What weighs the error e of a row of the token embedding: e^T H e, H being the moment.

    As an input the row adds e to the stream at each token it stands for. To second order that
    costs a KL of half e^T E[g g^T] e, g being the gradient of the log-probability of tokens drawn
    from the model itself (the Fisher information). As a tied head it shifts its own logit by e h,
    which costs half the token's probability times (e h)^2. A token is about as frequent as it is
    probable, so both count alike.
    """
    n = max(1, EMBEDDING_TOKENS // tokens.shape[1])
    some = tokens[:: max(1, len(tokens) // n)][:n]
    generator = torch.Generator(model.device).manual_seed(SEED)
    width = model.config.n_embd
    moment = torch.zeros(width, width, dtype=torch.float64, device=model.device)
    for part in torch.split(some, max(1, MODEL_TOKENS_AT_ONCE // some.shape[1])):
        embedded = model.embed(part).detach().requires_grad_()
        hidden = embedded
        for block in model.blocks:  # what is inside of it is computed again on the way back
            hidden = checkpoint(block, hidden, None, use_reentrant=False)
        hidden = model.final_norm(hidden).flatten(0, 1)  # (B T, C)
        logits = model.logits(hidden)  # (B T, V)
        drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
        loss = F.cross_entropy(logits, drawn, reduction="sum")
        gradient = torch.autograd.grad(loss, embedded)[0].flatten(0, 1)
        moment += gradient.T @ gradient
        if model.lm_head is None:
            moment += hidden.detach().T @ hidden.detach()
    return InputMoments(moment / some.numel())


def _layer_parts(x: Tensor) -> tuple[Tensor, ...]:
    """Activations (n, T, C), some sequences at a time."""
    return torch.split(x, max(1, LAYER_TOKENS_AT_ONCE // x.shape[1]))


def _mapped(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The function of all sequences, some at a time."""
    done = 0
    for part in _layer_parts(x):
        result = function(part)
        if done == 0:  # torch.cat would hold everything twice
            mapped = result.new_empty(len(x), *result.shape[1:])
        mapped[done : done + len(part)] = result
        done += len(part)
    return mapped
