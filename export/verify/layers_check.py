"""Every operation of llama.cpp's graph by itself, to find the first that differs from PyTorch.

Each is computed from llama.cpp's own input, so that errors do not add up from layer to layer and
what is left is the rounding of one operation, for which there is a bound. Sizes are the
checkpoint's, weights the file's.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmkit.architectures.graph import Operation, Product
from llmkit.architectures.registry import family_of
from llmkit.export.check import Outcome
from llmkit.export.llamacpp.eval_callback import EvalCallback
from llmkit.export.llamacpp.runtime import EXACT_BATCH, LlamaCpp
from llmkit.export.verify.file_tensors import FileTensors
from llmkit.export.verify.operations import bounded
from llmkit.export.verify.target import VerifyTarget

LIMIT = 1.0


@dataclass(frozen=True)
class _Outcome:
    """How far llama.cpp's output was from ours, at the worst place."""

    operation: Operation
    ratio: float
    token: int
    output: int
    wrong_parts: tuple[str, ...]  # of a product whose outputs have parts, unless all are wrong


def layers_check(target: VerifyTarget, ids: Tensor) -> Outcome:
    """Each operation on token ids (T,), within the rounding of float32. Value: errors / bounds.

    Only the first EXACT_BATCH tokens are compared, which llama.cpp computes at once. The file's
    tensors must have the shapes that the checkpoint's sizes need.
    """
    ids = ids[:EXACT_BATCH]
    config, lora = target.checkpoint.config, target.checkpoint.lora
    adapter, alpha = (None, 0.0) if lora is None else (target.adapter, lora.scale * lora.rank)
    walk = _Walk(
        list(family_of(config).graph(config)), FileTensors(target.file, adapter, alpha), ids
    )
    with LlamaCpp(
        target.file.path,
        n_ctx=len(ids),
        eval_callback=walk.callback,
    ) as llama:
        llama.evaluate(ids.tolist())
    walk.callback.raise_error()
    missing = walk.missing()
    if missing is not None:
        detail = f"not compared: llama.cpp's graph has no {missing.output} ({missing.title})"
        return Outcome(False, detail, value=sys.float_info.max, limit=LIMIT)
    worst = max(walk.outcomes, key=lambda outcome: outcome.ratio)
    wrong = [outcome for outcome in walk.outcomes if not outcome.ratio <= LIMIT]
    value = min(worst.ratio, sys.float_info.max)  # JSON has no infinity
    if wrong:
        detail = _failure(wrong, len(walk.outcomes))
    else:
        detail = (
            f"{len(walk.outcomes)} operations on {len(ids)} tokens are within float32 rounding; "
            f"largest error: {worst.operation.title}"
        )
    return Outcome(not wrong, detail, value=value, limit=LIMIT)


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

    def __init__(self, operations: Sequence[Operation], tensors: FileTensors, ids: Tensor) -> None:
        self._tensors, self._ids = tensors, ids
        self._waiting = {operation.output: operation for operation in operations}
        self._held: dict[str, Tensor] = {}
        self.outcomes: list[_Outcome] = []
        self.callback = EvalCallback(lambda name: name in self._waiting, self._receive)

    def missing(self) -> Operation | None:
        """The first operation whose output llama.cpp did not compute."""
        return next(iter(self._waiting.values()), None)

    @torch.inference_mode()
    def _receive(self, name: str, values: NDArray[np.float32]) -> None:
        operation = self._waiting[name]
        if not self._held.keys() >= set(operation.inputs):
            return  # a graph without one of them: `missing` says which
        del self._waiting[name]
        found = torch.from_numpy(values)
        inputs = [self._held[name] for name in operation.inputs]
        ratio = bounded(operation, self._tensors, inputs, self._ids).ratio(found)
        self.outcomes.append(_outcome(operation, ratio))
        self._held[name] = found
        still_read = {name for later in self._waiting.values() for name in later.inputs}
        self._held = {name: held for name, held in self._held.items() if name in still_read}


def _outcome(operation: Operation, ratio: Tensor) -> _Outcome:
    token, output = divmod(int(ratio.argmax()), ratio.shape[1])
    names = operation.parts if isinstance(operation, Product) else ()
    parts = ratio.amax(0).tensor_split(len(names)) if names else ()
    wrong = tuple(
        name
        for name, part in zip(names, parts, strict=True)
        if part.numel() and part.amax() > LIMIT
    )
    at = float(ratio[token, output])
    return _Outcome(operation, at, token, output, () if len(wrong) == len(names) else wrong)
