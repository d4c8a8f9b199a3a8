"""Every operation of llama.cpp's graph by itself, to find the first that differs from PyTorch.

Each is computed from llama.cpp's own input, so that errors do not add up from layer to layer and
what is left is the rounding of one operation, for which there is a bound. Sizes are the
checkpoint's, weights the file's.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmkit.architectures.graph import Attention, Operation, Product
from llmkit.architectures.registry import family_of
from llmkit.export.check import Outcome
from llmkit.export.llamacpp.eval_callback import EvalCallback
from llmkit.export.llamacpp.runtime import EXACT_BATCH, LlamaCpp, lengthened
from llmkit.export.verify.arithmetic import CPU, GPU, Arithmetic, ProductKind, Type, product_kind
from llmkit.export.verify.file_tensors import FileTensors, UnpackedTensors
from llmkit.export.verify.operations.kind import UNIT, Bounded, Computation
from llmkit.export.verify.operations.table import bounded
from llmkit.export.verify.target import VerifyTarget

LIMIT = 1.0
FEW_TOKENS = 2  # GPUs compute products of so few in another way than those of many
_EQUALLY_NEAR = 2.0  # times the least distance; those of two arithmetics differ by tens or more
# Half of the sums w x are off by at most so many units of |w| |x|. On an H200 it was 0.05 to 2 in
# f32, where tensor cores cut sums off, and 220 to 340 f32 units where the last sum alone is in f16.
_TYPICAL = 8.0


@dataclass(frozen=True)
class _Outcome:
    """How far llama.cpp's output was from ours, at the worst place."""

    operation: Operation
    arithmetic: Arithmetic  # the nearest
    ratio: float
    token: int
    output: int
    wrong_parts: tuple[str, ...]  # of a product whose outputs have parts, unless all are wrong
    distance: float  # of half of the outputs
    rounding: float  # of a product: by how much half of the sums in f32 may be off


@dataclass(frozen=True)
class LayersComparison:
    """What `layers` found, and the arithmetic of the run of many tokens, on a GPU also of few."""

    outcome: Outcome
    arithmetics: tuple[Arithmetic, ...]


def layers_check(target: VerifyTarget, ids: Tensor, *, gpu: bool = False) -> Outcome:
    """Each operation on token ids (T,), within the rounding of float32. Value: errors / bounds.

    EXACT_BATCH tokens are compared, which llama.cpp computes at once: the first ones, or all ids
    again and again. On a GPU also the first FEW_TOKENS by themselves. The file's tensors must have
    the shapes that the checkpoint's sizes need.
    """
    return compare_layers(target, ids, gpu=gpu).outcome


def compare_layers(target: VerifyTarget, ids: Tensor, *, gpu: bool = False) -> LayersComparison:
    """`layers_check`, with the arithmetics that `logits` expects."""
    n = min(EXACT_BATCH, target.checkpoint.config.context_length)
    ids = torch.tensor(lengthened(ids.tolist(), n)[:n])
    walks = [_walked(target, ids[:n], gpu) for n in (n, FEW_TOKENS)[: 1 + gpu]]
    return LayersComparison(_outcome_of(walks, n, gpu), tuple(walk.arithmetic() for walk in walks))


def _outcome_of(walks: Sequence[_Walk], n_tokens: int, gpu: bool) -> Outcome:
    for walk in walks:
        missing = walk.missing()
        if missing is not None:
            detail = f"not compared: llama.cpp's graph has no {missing.output} ({missing.title})"
            return Outcome(False, detail, value=sys.float_info.max, limit=LIMIT)
    outcomes = [outcome for walk in walks for outcome in walk.outcomes()]
    worst = max(outcomes, key=lambda outcome: outcome.ratio)
    wrong = [outcome for outcome in outcomes if not outcome.ratio <= LIMIT]
    value = min(worst.ratio, sys.float_info.max)  # JSON has no infinity
    if wrong:
        detail = _failure(wrong, len(outcomes))
    else:
        tokens = f"{n_tokens} and {FEW_TOKENS}" if gpu else n_tokens
        detail = (
            f"{len(outcomes)} operations on {tokens} tokens are within float32 rounding; "
            f"largest error: {worst.operation.title}"
        )
    if gpu:
        detail += f"; products as with {_counted(outcomes)}"
    return Outcome(not wrong, detail, value=value, limit=LIMIT)


def _counted(outcomes: list[_Outcome]) -> str:
    """The arithmetics that are nearest to products, and to how many."""
    names = Counter(
        outcome.arithmetic.name for outcome in outcomes if isinstance(outcome.operation, Product)
    )
    return ", ".join(f"{name} ({n})" for name, n in names.most_common())


def _walked(target: VerifyTarget, ids: Tensor, gpu: bool) -> _Walk:
    config, lora = target.checkpoint.config, target.checkpoint.lora
    adapter, alpha = (None, 0.0) if lora is None else (target.adapter, lora.scale * lora.rank)
    walk = _Walk(
        list(family_of(config).graph(config)),
        FileTensors(target.file, adapter, alpha),
        ids,
        GPU if gpu else (CPU,),
    )
    with LlamaCpp(target.file.path, n_ctx=len(ids), gpu=gpu, eval_callback=walk.callback) as llama:
        llama.evaluate(ids.tolist())
    walk.callback.raise_error()
    return walk


def _failure(wrong: list[_Outcome], n_operations: int) -> str:
    first = wrong[0]
    more = f" (first of {len(wrong)} of {n_operations} operations)" if len(wrong) > 1 else ""
    where = f"token {first.token}, output {first.output}"
    if first.wrong_parts:
        where += f", only in {' and '.join(first.wrong_parts)}"
    return (
        f"{first.operation.title}: llama.cpp and PyTorch differ by {first.ratio:.3g} times the "
        f"bound of float32 rounding at {where}{more}"
    )


class _Walk:
    """Goes through the graph beside llama.cpp, and keeps only tensors that are still to be read."""

    def __init__(
        self,
        operations: Sequence[Operation],
        tensors: FileTensors,
        ids: Tensor,
        arithmetics: Sequence[Arithmetic],
    ) -> None:
        self._tensors, self._ids, self._arithmetics = tensors, ids, arithmetics
        self._waiting = {operation.output: operation for operation in operations}
        self._held: dict[str, Tensor] = {}
        self._outcomes: list[list[_Outcome]] = []  # of each operation, in the order of arithmetics
        self.callback = EvalCallback(lambda name: name in self._waiting, self._receive)

    def missing(self) -> Operation | None:
        """The first operation whose output llama.cpp did not compute."""
        return next(iter(self._waiting.values()), None)

    def outcomes(self) -> list[_Outcome]:
        """The outcome of each operation by the nearest arithmetic.

        Products with weights of one type have one: the first that explains half of them. So a
        matrix that is slightly wrong is not explained by a coarser arithmetic than the others'.
        Matrices whose rows no tile of CUDA's own kernels divides go to cuBLAS, so they are apart.
        """
        kinds = defaultdict(list)
        for outcomes in self._outcomes:
            kinds[self._kind(outcomes[0].operation)].append(outcomes)
        chosen = {
            kind: max(range(len(self._arithmetics)), key=lambda i: _explains(among, i))
            for kind, among in kinds.items()
            if kind is not None
        }
        return [
            min(outcomes, key=lambda outcome: outcome.ratio)
            if (kind := self._kind(outcomes[0].operation)) is None
            else outcomes[chosen[kind]]
            for outcomes in self._outcomes
        ]

    def arithmetic(self) -> Arithmetic:
        """The one in which llama.cpp computed: of most products, and of other kinds their own.

        It is told by what is typical of the outputs, so that no single weight changes it. Bounds
        cannot tell it: they grow faster with a sum's length than what arithmetics differ by.
        """
        products: dict[ProductKind, list[tuple[int, ...]]] = defaultdict(list)
        attentions = []
        for outcomes in self._outcomes:
            kind = self._kind(outcomes[0].operation)
            if kind is not None:
                products[kind].append(_explaining(outcomes))
            elif isinstance(outcomes[0].operation, Attention):
                attentions.append(_nearest(outcomes))
        if not products or not attentions:
            return self._arithmetics[-1]  # the loosest; `layers` fails then
        explaining = {kind: _most_common(found) for kind, found in products.items()}
        most = explaining[max(products, key=lambda kind: len(products[kind]))]
        attention = _most_common(attentions)
        both = [number for number in most if number in attention]
        found = self._arithmetics[[*both, *most][0]]
        if not both:
            kept = self._arithmetics[attention[0]].attention
            name = f"{found.name}, attention in {kept.name.lower()}"
            found = replace(found, name=name, attention=kept)
        others = {k: self._arithmetics[n[0]] for k, n in explaining.items() if n != most}
        if others:
            names = dict.fromkeys((found.name, *(other.name for other in others.values())))
            found = replace(found, name=" and ".join(names), products=tuple(others.items()))
        return found

    def _kind(self, operation: Operation) -> ProductKind | None:
        if isinstance(operation, Product):
            n_rows, _ = self._tensors.shape(operation.weight)
            return product_kind(self._tensors.dot_type(operation.weight), n_rows)
        return None

    @torch.inference_mode()
    def _receive(self, name: str, values: NDArray[np.float32]) -> None:
        operation = self._waiting[name]
        if not self._held.keys() >= set(operation.inputs):
            return  # a graph without one of them: `missing` says which
        del self._waiting[name]
        found = torch.from_numpy(values)
        inputs = [self._held[name] for name in operation.inputs]
        self._outcomes.append([])
        computation = Computation([self._ids], UnpackedTensors(self._tensors))
        rounding = 0.0
        if isinstance(operation, Product):
            weight = computation.tensors.matrix(operation.weight).weight
            sizes = torch.outer(inputs[0].norm(dim=1), weight.norm(dim=1)) + found.abs()
            rounding = _TYPICAL * UNIT * float(sizes.median())
        for arithmetic in self._arithmetics:
            expected = bounded(operation, inputs, replace(computation, arithmetic=arithmetic))
            self._outcomes[-1].append(_outcome(operation, arithmetic, expected, found, rounding))
        self._held[name] = found
        still_read = {name for later in self._waiting.values() for name in later.inputs}
        self._held = {name: held for name, held in self._held.items() if name in still_read}


def _explains(products: Sequence[Sequence[_Outcome]], arithmetic: int) -> tuple[bool, int]:
    """Whether an arithmetic explains half of some products, or else how many."""
    n = sum(outcomes[arithmetic].ratio <= LIMIT for outcomes in products)
    return 2 * n >= len(products), 0 if 2 * n >= len(products) else n


def _nearest(outcomes: Sequence[_Outcome]) -> tuple[int, ...]:
    """The arithmetics that are nearest to llama.cpp's output."""
    least = min(outcome.distance for outcome in outcomes)
    return tuple(i for i, one in enumerate(outcomes) if one.distance <= _EQUALLY_NEAR * least)


def _explaining(outcomes: Sequence[_Outcome]) -> tuple[int, ...]:
    """The nearest arithmetics, if f32 sums are off by as much; else the loosest of them."""
    near = _nearest(outcomes)
    fitting = (i for i in near if outcomes[i].distance <= outcomes[i].rounding)
    in_floats = tuple(i for i in fitting if outcomes[i].arithmetic.sums == Type.F32)
    return in_floats or near[-1:]


def _most_common(found: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The arithmetics that most products have, the loosest of several."""
    return max(set(found), key=lambda numbers: (found.count(numbers), numbers))


def _outcome(
    operation: Operation,
    arithmetic: Arithmetic,
    expected: Bounded,
    found: Tensor,
    rounding: float,
) -> _Outcome:
    ratio = expected.ratio(found)
    token, output = divmod(int(ratio.argmax()), ratio.shape[1])
    names = operation.parts if isinstance(operation, Product) else ()
    parts = ratio.amax(0).tensor_split(len(names)) if names else ()
    wrong = tuple(
        name
        for name, part in zip(names, parts, strict=True)
        if part.numel() and part.amax() > LIMIT
    )
    at = float(ratio[token, output])
    wrong = () if len(wrong) == len(names) else wrong
    distance = (found.double() - expected.exact).abs().nan_to_num(nan=torch.inf).median()
    return _Outcome(operation, arithmetic, at, token, output, wrong, float(distance), rounding)
