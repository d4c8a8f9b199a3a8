"""What each matrix's rounding costs, measured once, and what other types would cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llmkit.architectures.base import LanguageModel
from llmkit.architectures.registry import tensor_specs
from llmkit.console import progress
from llmkit.export.evaluation.divergence import divergence, joined
from llmkit.quant import dequantize, quantize
from llmkit.quant.types import FloatRows, PackedRows, QuantType

SEQUENCES_AT_ONCE = 4

Choose = Callable[[Mapping[str, QuantType]], Mapping[str, PackedRows]]


@dataclass(frozen=True)
class Sensitivity:
    """The KL of a model with one matrix in one type, for each."""

    kl: Mapping[str, float]  # by checkpoint name, in the reference type
    squared_error: Mapping[str, float]  # of that rounding
    floor: float  # of a file whose weights cost nothing: llama.cpp rounds activations too

    def predicted(self, name: str, error: float) -> float:
        """The KL that this matrix adds with another squared error; 0 of one not measured.

        Rounding errors are as good as random, so that the KL, to second order a quadratic form of
        them, goes with their square.
        """
        return self.kl.get(name, 0.0) * _ratio(error, self.squared_error.get(name, 0.0))


@torch.no_grad()  # error feedback takes gradients inside
def measure_sensitivity(
    model: LanguageModel,
    reference: Mapping[str, QuantType],
    tokens: Tensor,
    choose: Choose,
    floor: float,
) -> Sensitivity:
    """Round one matrix after the other, each alone, and see what the model says of `tokens` (n, T).

    Where `choose` lets a matrix make up for those before it, these costs do not add up. So they
    are scaled to what it comes to with all matrices in their reference types, and with embedding
    and head, for which most is made up, left as they are.
    """
    measured = _Measured(model, tokens)
    kl, errors = {}, {}
    with progress("measure sensitivity", len(reference), "matrices") as bar:
        for number, (name, qtype) in enumerate(reference.items(), start=1):
            array = measured.weight(name).numpy()
            blocks = {name: quantize(array, qtype, name)}
            errors[name] = squared_error(array, qtype, name)
            kl[name] = measured.kl(blocks, reference)
            bar.update(number)
    of_blocks = {s.checkpoint_name for s in tensor_specs(model.config) if s.is_block_matrix}
    inner = {name: qtype for name, qtype in reference.items() if name in of_blocks}
    ends = [name for name in reference if name not in of_blocks]
    inner_kl = measured.kl(choose(inner), reference)
    ends_kl = max(0.0, measured.kl(choose(reference), reference) - inner_kl)
    scaled = {name: kl[name] * _ratio(inner_kl, sum(kl[n] for n in inner)) for name in inner}
    scaled |= {name: kl[name] * _ratio(ends_kl, sum(kl[n] for n in ends)) for name in ends}
    return Sensitivity(scaled, errors, floor)


def squared_error(weights: FloatRows, qtype: QuantType, name: str) -> float:
    """What rounding does to a matrix, summed over its weights."""
    rounded = dequantize(quantize(weights, qtype, name), qtype, weights.shape)
    return float(np.square(rounded - weights, dtype=np.float64).sum())


def _ratio(value: float, to: float) -> float:
    return value / to if to > 0 else 1.0


class _Measured:
    """A model, what it says of a text, and how far it is from that with other weights."""

    def __init__(self, model: LanguageModel, tokens: Tensor) -> None:
        self._model = model
        self._weights = dict(model.named_parameters())
        self._parts = torch.split(tokens, SEQUENCES_AT_ONCE)
        # The logits of all tokens would fill the memory; those of one part at a time do not.
        self._hidden = [model.hidden_states(part[:, :-1]) for part in self._parts]
        self._head = model.head_weight.clone()

    def weight(self, name: str) -> Tensor:
        """A matrix as it was trained."""
        return self._weights[name].detach()

    def kl(self, blocks: Mapping[str, PackedRows], types: Mapping[str, QuantType]) -> float:
        """Mean KL from the model's own distributions to those with these matrices quantized."""
        kept = {name: self.weight(name).clone() for name in blocks}
        for name, packed in blocks.items():
            rounded = dequantize(packed, types[name], tuple(kept[name].shape))
            self._weights[name].copy_(torch.from_numpy(rounded))
        parts = []
        for part, hidden in zip(self._parts, self._hidden, strict=True):
            logits = self._model(part[:, :-1]).flatten(0, 1)
            reference = F.linear(hidden, self._head).flatten(0, 1)
            parts.append(divergence(reference, logits, part[:, 1:].flatten()))
        for name, weight in kept.items():
            self._weights[name].copy_(weight)
        return joined(parts).mean_kl
