"""Error feedback through a whole model: matrix after matrix, each knowing those before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from llmkit.architectures.gpt2 import GPT, Block, gelu
from llmkit.console import Progress, progress
from llmkit.quant import dequantize
from llmkit.quant.gptq import InputStatistics, gptq
from llmkit.quant.types import PackedRows, QuantType

# Through one layer, and through the whole model with its logits: of GPT-2's 50,257 tokens of
# vocabulary these are 200 MB, four times.
LAYER_TOKENS_AT_ONCE, MODEL_TOKENS_AT_ONCE = 4096, 1024
EMBEDDING_TOKENS = 8192  # a pass forward and back through the whole model for each
SEED = 0


@torch.no_grad()
def error_feedback(
    model: GPT, types: Mapping[str, QuantType], tokens: Tensor
) -> dict[str, PackedRows]:
    """Blocks of the matrices in `types`, by their names in the checkpoint.

    `tokens` (n, T) calibrate. Two streams go through the model: one as it was trained, the other
    through the matrices already quantized. A matrix learns from the second what it reads, and
    from the difference of both what to make up for.
    """
    tokens = tokens.to(model.device)
    with progress("quantize", len(types), "matrices") as bar:
        walk = _Walk(types, bar)
        embedding = walk.quantize("wte.weight", model.wte, lambda: _of_embedding(model, tokens))
        positions = model.wpe.weight[: tokens.shape[1]]
        streams = _Streams(
            model.wte(tokens) + positions, F.embedding(tokens, embedding) + positions
        )
        for number, block in enumerate(model.blocks):
            streams = _through_block(f"h.{number}", block, streams, walk)
        if model.lm_head is not None:
            walk.quantize(
                "lm_head.weight", model.lm_head, lambda: streams.through(model.ln_f).statistics()
            )
    return walk.blocks


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

    def statistics(self) -> InputStatistics:
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
        return InputStatistics(moment.div_(n), drift.div_(n))


@dataclass(frozen=True)
class _Walk:
    """The blocks so far."""

    types: Mapping[str, QuantType]
    bar: Progress
    blocks: dict[str, PackedRows] = field(default_factory=dict)

    def quantize(
        self, name: str, module: nn.Embedding | nn.Linear, inputs: Callable[[], InputStatistics]
    ) -> Tensor:
        """The module's weight from now on: quantized, or as it is where it has no type."""
        weight, qtype = module.weight, self.types.get(name)
        if qtype is None:
            return weight
        self.blocks[name] = gptq(weight, qtype, inputs(), name)
        self.bar.update(len(self.blocks))
        rounded = dequantize(self.blocks[name], qtype, tuple(weight.shape))
        return torch.from_numpy(rounded).to(weight.device)

    def linear(
        self, name: str, module: nn.Linear, inputs: _Streams, after: Callable[[Tensor], Tensor]
    ) -> _Streams:
        """Both streams through a linear layer and what comes `after` it.

        The second goes through the quantized weight. What lies between, the largest activations
        of a model, is never there as a whole.
        """
        weight = self.quantize(f"{name}.weight", module, inputs.statistics)
        return _Streams(
            _mapped(lambda x: after(module(x)), inputs.trained),
            _mapped(lambda x: after(F.linear(x, weight, module.bias)), inputs.quantized),
        )


def _through_block(name: str, block: Block, x: _Streams, walk: _Walk) -> _Streams:
    """Quantize a block's four matrices in the order in which they are computed with."""
    attn, mlp = block.attn, block.mlp
    x += walk.linear(  # what attention saw is let go with the call
        f"{name}.attn.c_proj",
        attn.c_proj,
        walk.linear(f"{name}.attn.c_attn", attn.c_attn, x.through(block.ln_1), attn.attend),
        _as_it_is,
    )
    inner = walk.linear(f"{name}.mlp.c_fc", mlp.c_fc, x.through(block.ln_2), gelu)
    return x + walk.linear(f"{name}.mlp.c_proj", mlp.c_proj, inner, _as_it_is)


def _as_it_is(x: Tensor) -> Tensor:
    return x


@torch.enable_grad()
def _of_embedding(model: GPT, tokens: Tensor) -> InputStatistics:
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
        embedded = model.wte(part) + model.wpe.weight[: part.shape[1]]
        embedded = embedded.detach().requires_grad_()
        hidden = embedded
        for block in model.blocks:  # what is inside of it is computed again on the way back
            hidden = checkpoint(block, hidden, None, use_reentrant=False)
        hidden = model.ln_f(hidden).flatten(0, 1)  # (B T, C)
        logits = model.logits(hidden)  # (B T, V)
        drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
        loss = F.cross_entropy(logits, drawn, reduction="sum")
        gradient = torch.autograd.grad(loss, embedded)[0].flatten(0, 1)
        moment += gradient.T @ gradient
        if model.lm_head is None:
            moment += hidden.detach().T @ hidden.detach()
    return InputStatistics(moment / some.numel())


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
