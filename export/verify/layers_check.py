"""Every operation of llama.cpp's graph by itself, to find the first that differs from PyTorch.

Each is computed from llama.cpp's own input, so that errors do not add up from layer to layer and
what is left is the rounding of one operation, for which there is a bound. Sizes are the
checkpoint's, weights the file's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmkit.export.check import Check
from llmkit.export.llamacpp.eval_callback import EvalCallback
from llmkit.export.llamacpp.runtime import LlamaCpp
from llmkit.export.verify import bounds
from llmkit.export.verify.bounds import Bounded
from llmkit.export.verify.reference import FileTensors
from llmkit.export.verify.target import VerifyTarget

LIMIT = 1.0
QKV_PARTS = ("q", "k", "v")


@dataclass(frozen=True)
class _Operation:
    """A part of the graph from some of llama.cpp's tensors to another."""

    inputs: tuple[str, ...]  # llama.cpp's names
    output: str
    title: str  # such as "blk.3: attn_norm -> qkv: blk.3.attn_qkv.weight"
    compute: Callable[..., Bounded]


@dataclass(frozen=True)
class _Outcome:
    """How far llama.cpp's output was from ours, at the worst place."""

    operation: _Operation
    ratio: float
    token: int
    output: int
    parts: tuple[bool, ...]  # of three equal parts of the outputs, those that differ


def layers_check(target: VerifyTarget, ids: Tensor) -> Check:
    """Each operation on token ids (T,), within the rounding of float32. Value: errors / bounds.

    The file's tensors must have the shapes that the checkpoint's sizes need.
    """
    walk = _Walk(_operations(target, ids))
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
        return Check("layers", False, detail, value=sys.float_info.max, limit=LIMIT)
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
    return Check("layers", not wrong, detail, value=value, limit=LIMIT)


def _failure(wrong: list[_Outcome], n_operations: int) -> str:
    first = wrong[0]
    more = f" (first of {len(wrong)} of {n_operations} operations)" if len(wrong) > 1 else ""
    where = f"token {first.token}, output {first.output}"
    if first.operation.output.startswith("wqkv") and not all(first.parts):
        named = [part for part, differs in zip(QKV_PARTS, first.parts, strict=True) if differs]
        where += f", only in {' and '.join(named)}"
    return (
        f"{first.operation.title}: llama.cpp and PyTorch differ by {first.ratio:.3g} times the "
        f"bound of float32 rounding at {where}{more}"
    )


class _Walk:
    """Goes through the graph beside llama.cpp, and keeps only tensors that are still to be read."""

    def __init__(self, operations: Iterator[_Operation]) -> None:
        self._waiting = {operation.output: operation for operation in operations}
        self._held: dict[str, Tensor] = {}
        self.outcomes: list[_Outcome] = []
        self.callback = EvalCallback(lambda name: name in self._waiting, self._receive)

    def missing(self) -> _Operation | None:
        """The first operation whose output llama.cpp did not compute."""
        return next(iter(self._waiting.values()), None)

    @torch.inference_mode()
    def _receive(self, name: str, values: NDArray[np.float32]) -> None:
        operation = self._waiting[name]
        if not self._held.keys() >= set(operation.inputs):
            return  # a graph without one of them: `missing` says which
        del self._waiting[name]
        found = torch.from_numpy(values)
        ratio = operation.compute(*(self._held[name] for name in operation.inputs)).ratio(found)
        self.outcomes.append(_outcome(operation, ratio))
        self._held[name] = found
        still_read = {name for later in self._waiting.values() for name in later.inputs}
        self._held = {name: held for name, held in self._held.items() if name in still_read}


def _outcome(operation: _Operation, ratio: Tensor) -> _Outcome:
    token, output = divmod(int(ratio.argmax()), ratio.shape[1])
    thirds = ratio.amax(0).tensor_split(len(QKV_PARTS))
    parts = tuple(bool(third.amax() > LIMIT) for third in thirds if third.numel())
    return _Outcome(operation, float(ratio[token, output]), token, output, parts)


def _operations(target: VerifyTarget, ids: Tensor) -> Iterator[_Operation]:
    """llama.cpp's graph of `gpt2` (llm_build_gpt2), in its order."""
    config, lora = target.checkpoint.config, target.checkpoint.lora
    adapter, alpha = (None, 0.0) if lora is None else (target.adapter, lora.scale * lora.rank)
    tensors = FileTensors(target.file, adapter, alpha)
    eps = float(np.float32(config.layer_norm_epsilon))

    def norm(inputs: str, output: str, title: str, name: str) -> _Operation:
        def compute(x: Tensor) -> Bounded:
            weight, bias = tensors.tensor(f"{name}.weight"), tensors.tensor(f"{name}.bias")
            return bounds.layer_norm(x, weight, bias, eps)

        return _Operation((inputs,), output, f"{title}: {name}", compute)

    def linear(inputs: tuple[str, ...], output: str, title: str, name: str) -> _Operation:
        def compute(x: Tensor, residual: Tensor | None = None) -> Bounded:
            bias = tensors.tensor(f"{name}.bias") if tensors.has(f"{name}.bias") else None
            return bounds.linear(x, tensors.matrix(f"{name}.weight"), bias, residual)

        return _Operation(inputs, output, f"{title}: {name}.weight", compute)

    def embedding() -> Bounded:
        positions = tensors.tensor("position_embd.weight")[: len(ids)]
        return bounds.embedding_sum(tensors.tensor("token_embd.weight")[ids], positions)

    yield _Operation((), "inpL", "token_embd + position_embd", embedding)
    stream = "inpL"
    for i in range(config.n_layer):
        block = f"blk.{i}"
        yield norm(stream, f"attn_norm-{i}", f"{block}: stream -> attn_norm", f"{block}.attn_norm")
        yield linear(
            (f"attn_norm-{i}",), f"wqkv_b-{i}", f"{block}: attn_norm -> qkv", f"{block}.attn_qkv"
        )
        yield _Operation(
            (f"wqkv_b-{i}",),
            f"kqv_out-{i}",
            f"{block}: qkv -> attention",
            lambda qkv: bounds.causal_attention(qkv, config.n_head),
        )
        yield linear(
            (f"kqv_out-{i}", stream),
            f"ffn_inp-{i}",
            f"{block}: attention -> stream",
            f"{block}.attn_output",
        )
        stream = f"ffn_inp-{i}"
        yield norm(stream, f"ffn_norm-{i}", f"{block}: stream -> ffn_norm", f"{block}.ffn_norm")
        yield linear(
            (f"ffn_norm-{i}",), f"ffn_up_b-{i}", f"{block}: ffn_norm -> ffn_up", f"{block}.ffn_up"
        )
        yield _Operation(
            (f"ffn_up_b-{i}",),
            f"ffn_gelu-{i}",
            f"{block}: ffn_up -> gelu",
            bounds.gelu_bound,
        )
        yield linear(
            (f"ffn_gelu-{i}", stream), f"l_out-{i}", f"{block}: gelu -> stream", f"{block}.ffn_down"
        )
        stream = f"l_out-{i}"
    yield norm(stream, "result_norm", "stream -> output_norm", "output_norm")
    head = "token_embd" if config.tie_embeddings else "output"
    yield linear(("result_norm",), "result_output", "output_norm -> logits", head)
