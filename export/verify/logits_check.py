"""The `logits` check: every position of many texts, in llama.cpp and in PyTorch.

Two numbers, never one. Conversion error: llama.cpp against PyTorch that computes from the file's
own numbers what llama.cpp does (`reference.py`). Quantization cost: llama.cpp against the
checkpoint's original weights.

Float32 sums depend on their order, and a sum that ends near a rounding border takes one step up
or down; the steps grow from layer to layer. So the limit is no number: the reference is computed
in float64, in float32, and with every near-tie rounded the other way, and llama.cpp may differ
from it by a small multiple of what it differs from itself.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from llmkit.console import progress
from llmkit.export.check import Outcome
from llmkit.export.evaluation.divergence import Distance, Divergence, divergence, joined, larger
from llmkit.export.evaluation.eval_data import TextSequence
from llmkit.export.llamacpp.runtime import EXACT_BATCH, LlamaCpp
from llmkit.export.verify.activations import other_of_near_ties
from llmkit.export.verify.arithmetic import CPU, EVERY, Arithmetic
from llmkit.export.verify.original import original_head as read_original_head
from llmkit.export.verify.original import original_hidden_states
from llmkit.export.verify.reference import Reference, hidden_states
from llmkit.export.verify.target import VerifyTarget

# llama.cpp's distance was between 0.2 and 1.0 of the reference's own over all types, kinds of
# models and lengths of text (docs/parity.md): what it rounds otherwise is among the near-ties.
NOISE_MULTIPLE = 2.0
PAIRS_PER_TEXT = 100  # for the plot
SPREAD_TOKENS = 128
_POSITIONS_AT_ONCE = 4 * EXACT_BATCH  # whose logits are held, in float64 50 MB of 50k tokens


@dataclass(frozen=True)
class LogitsComparison:
    """llama.cpp's logits against three computations in PyTorch, position by position."""

    conversion: Divergence  # against the reference in float64
    noise: Divergence  # the reference against itself, in float32 and with other near-ties
    cost: Divergence  # against the checkpoint's original weights
    logit_pairs: NDArray[np.float64]  # (n, 2): PyTorch's and llama.cpp's, drawn at random
    arithmetic: Arithmetic = CPU  # of the three
    # By arithmetic, how far it is from the CPU's on SPREAD_TOKENS positions: what hardware may do.
    spread: dict[str, Distance] = field(default_factory=dict)
    ways: tuple[Arithmetic, ...] = ()  # in which llama.cpp computes many tokens, and few

    @property
    def distances(self) -> dict[str, Distance]:
        """What each is over all positions, by name."""
        return {
            "conversion": Distance.of(self.conversion),
            "rounding alone": Distance.of(self.noise),
            "quantization": Distance.of(self.cost),
            **{f"{name} instead of the CPU's": far for name, far in self.spread.items()},
        }

    @property
    def value(self) -> float:
        """llama.cpp's distance in units of the reference's distance from itself.

        The noise of f16 sums is a sample of two orders of them. The KL of the worst position, which
        is the square of one random error, is then chance: it was up to 5 times the noise's.
        """
        noise = Distance.of(self.noise)
        return Distance.of(self.conversion).in_units_of(
            noise, tail=not self.arithmetic.has_half_sums
        )

    @property
    def logit_noise(self) -> float:
        """The largest logit difference that rounding explains.

        A GPU computes one token in another way than many, so there it is also how far its ways are
        from the CPU's.
        """
        apart = [self.spread[way.name].max_difference for way in self.ways if way is not CPU]
        return NOISE_MULTIPLE * max(float(self.noise.max_logit_difference.max()), *apart, 0.0)


@torch.inference_mode()
def spread(
    target: VerifyTarget, texts: Sequence[TextSequence], ways: Sequence[Arithmetic] = ()
) -> dict[str, Distance]:
    """How far the logits of each arithmetic are from the CPU's, on the first positions."""
    others = {way.name: way for way in (*EVERY, *ways) if way is not CPU}
    references = [Reference(target, torch.float32, arithmetic=a) for a in (CPU, *others.values())]
    text = texts[0]
    inputs, targets = text.inputs[:SPREAD_TOKENS], text.targets[:SPREAD_TOKENS]
    states = hidden_states(references, [inputs])
    head = references[0].head()
    logits = [
        reference.head_logits(hidden, head)
        for reference, hidden in zip(references, states, strict=True)
    ]
    return {
        name: Distance.of(divergence(logits[0], other, targets))
        for name, other in zip(others, logits[1:], strict=True)
    }


@torch.inference_mode()
def compare_logits(
    llama: LlamaCpp,
    target: VerifyTarget,
    texts: Sequence[TextSequence],
    arithmetic: Arithmetic = CPU,
) -> LogitsComparison:
    """Evaluate every text in llama.cpp and four times in PyTorch.

    `arithmetic`: in which llama.cpp computes many tokens at once, as `layers` found.
    PyTorch takes all texts through one layer after the other. Logits are made and compared some
    positions at a time, because those of all texts take more memory than the model.
    """
    exact = Reference(target, torch.float64, arithmetic=arithmetic)
    other_dtype = torch.float32 if arithmetic.has_half_sums else torch.float64
    other_ties = Reference(target, other_dtype, other_of_near_ties, arithmetic)
    single = Reference(target, torch.float32, arithmetic=arithmetic)
    references = exact, single, other_ties
    inputs, n_positions = [text.inputs for text in texts], [len(text.inputs) for text in texts]
    with progress("compare logits", sum(n_positions), "positions") as bar:
        states = hidden_states(references, inputs)
        original = original_hidden_states(target.checkpoint, inputs)
        head, original_head = exact.head(), read_original_head(target.checkpoint)
        conversion, noise, cost, pairs = [], [], [], []
        generator = torch.Generator().manual_seed(0)
        done = 0
        for text in texts:
            n, ids = len(text.inputs), text.inputs.tolist()
            drawn = torch.randint(n * llama.vocab_size, (PAIRS_PER_TEXT,), generator=generator)
            for start in range(0, n, _POSITIONS_AT_ONCE):
                here = slice(start, min(start + _POSITIONS_AT_ONCE, n))
                rows = slice(done, done + here.stop - here.start)
                logits = torch.from_numpy(llama.evaluate_text(ids, range(n)[here]))  # (T, V)
                targets = text.targets[here]
                wanted = exact.head_logits(states[0][rows], head)
                conversion.append(divergence(wanted, logits, targets))
                own = (
                    divergence(wanted, reference.head_logits(hidden[rows], head), targets)
                    for reference, hidden in zip(references[1:], states[1:], strict=True)
                )
                noise.append(larger(*own))
                cost.append(divergence(F.linear(original[rows], original_head), logits, targets))
                at = drawn - start * llama.vocab_size
                at = at[(at >= 0) & (at < logits.numel())]
                pairs.append(torch.stack((wanted.flatten()[at], logits.flatten()[at]), dim=1))
                done = rows.stop
                bar.update(done)
    drawn_pairs = torch.cat(pairs).double().numpy()
    return LogitsComparison(
        joined(conversion), joined(noise), joined(cost), drawn_pairs, arithmetic
    )


def logits_check(found: LogitsComparison) -> Outcome:
    """Value: llama.cpp's distance in units of the reference's distance from itself."""
    broken = np.flatnonzero(~np.isfinite(found.cost.max_logit_difference))
    if len(broken):
        detail = (
            f"llama.cpp's logits are infinite or NaN at {len(broken):,} of "
            f"{len(found.cost.kl):,} positions, first at position {broken[0]}; f32 and bf16 hold "
            "the largest numbers"
        )
        return Outcome(False, detail, value=sys.float_info.max, limit=NOISE_MULTIPLE)
    distance, noise = Distance.of(found.conversion), Distance.of(found.noise)
    value = found.value
    passed = value <= NOISE_MULTIPLE
    detail = (
        f"mean KL of {len(found.conversion.kl):,} positions: conversion {distance.mean_kl:.1e} "
        f"(rounding alone {noise.mean_kl:.1e}), quantization {found.cost.mean_kl:.1e}; "
        f"largest logit difference {distance.max_difference:.1e} "
        f"({noise.max_difference:.1e}); top-1 {found.cost.top1:.2%}"
    )
    if found.spread:
        name, most = max(found.spread.items(), key=lambda item: item[1].max_difference)
        detail += f"; other hardware changes logits by up to {most.max_difference:.1e} ({name})"
    if found.arithmetic is not CPU:
        detail += f"; as with {found.arithmetic.name}"
    if not passed:
        worst = int(np.argmax(found.conversion.max_logit_difference))
        detail += (
            f"; conversion is {value:.3g} times rounding alone, the limit is {NOISE_MULTIPLE:g}; "
            f"largest difference at position {worst}; see the operation in `layers`"
        )
    shown = value if math.isfinite(value) else sys.float_info.max  # JSON has no infinity
    return Outcome(passed, detail, value=shown, limit=NOISE_MULTIPLE)
