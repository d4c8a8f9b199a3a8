"""Error feedback through a whole model: matrix after matrix, each knowing those before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmkit.console import Progress, progress
from llmkit.model.gpt import GPT, Block, gelu
from llmkit.quant import dequantize
from llmkit.quant.gptq import InputStatistics, gptq
from llmkit.quant.types import PackedRows, QuantType

SEQUENCES_AT_ONCE = 8
GRADIENT_TOKENS = 8192  # a backward pass through the whole model for each
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
            walk.linear("lm_head", model.lm_head, streams.through(model.ln_f))
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
        for number in range(0, len(self.trained), SEQUENCES_AT_ONCE):
            some = slice(number, number + SEQUENCES_AT_ONCE)
            quantized = self.quantized[some].flatten(0, 1)
            moment += quantized.T @ quantized
            drift += (self.trained[some].flatten(0, 1) - quantized).T @ quantized
        n = self.trained.numel() // width
        return InputStatistics(moment / n, drift / n)


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

    def linear(self, name: str, module: nn.Linear, inputs: _Streams) -> _Streams:
        """Both streams through a linear layer, the second through its quantized weight."""
        weight = self.quantize(f"{name}.weight", module, inputs.statistics)
        return _Streams(
            _mapped(module, inputs.trained),
            _mapped(lambda x: F.linear(x, weight, module.bias), inputs.quantized),
        )


def _through_block(name: str, block: Block, x: _Streams, walk: _Walk) -> _Streams:
    """Quantize a block's four matrices in the order in which they are computed with."""
    attn, mlp = block.attn, block.mlp
    qkv = walk.linear(f"{name}.attn.c_attn", attn.c_attn, x.through(block.ln_1))
    x += walk.linear(f"{name}.attn.c_proj", attn.c_proj, qkv.through(attn.attend))
    inner = walk.linear(f"{name}.mlp.c_fc", mlp.c_fc, x.through(block.ln_2))
    return x + walk.linear(f"{name}.mlp.c_proj", mlp.c_proj, inner.through(gelu))


def _of_embedding(model: GPT, tokens: Tensor) -> InputStatistics:
    """What weighs the error e of a row of the token embedding: e^T H e, H being the moment.

    As an input the row adds e to the stream at each token it stands for. To second order that
    costs a KL of half e^T E[g g^T] e, g being the gradient of the log-probability of tokens drawn
    from the model itself (the Fisher information). As a tied head it shifts its own logit by e h,
    which costs half the token's probability times (e h)^2. A token is about as frequent as it is
    probable, so both count alike.
    """
    n = max(1, GRADIENT_TOKENS // tokens.shape[1])
    moment = _gradient_moment(model, tokens[:: max(1, len(tokens) // n)][:n])
    if model.lm_head is None:
        stream = _mapped(model.hidden_states, tokens)
        moment = moment + _Streams(stream, stream).statistics().second_moment
    return InputStatistics(moment)


@torch.enable_grad()
def _gradient_moment(model: GPT, tokens: Tensor) -> Tensor:
    """E[g g^T] (C, C) over positions, g the gradient in the embedded token of all that follows."""
    generator = torch.Generator(model.device).manual_seed(SEED)
    width = model.config.n_embd
    moment = torch.zeros(width, width, dtype=torch.float64, device=model.device)
    for part in torch.split(tokens, SEQUENCES_AT_ONCE):
        embedded = model.wte(part) + model.wpe.weight[: part.shape[1]]
        embedded = embedded.detach().requires_grad_()
        logits = model.logits(model.transform(embedded)).flatten(0, 1)  # (B T, V)
        drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
        loss = F.cross_entropy(logits, drawn, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, embedded)
        gradient = gradient.flatten(0, 1)
        moment += gradient.T @ gradient
    return moment / tokens.numel()


def _mapped(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The function of all sequences, some at a time."""
    return torch.cat([function(part) for part in torch.split(x, SEQUENCES_AT_ONCE)])
