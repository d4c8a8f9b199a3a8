"""The tensors of a GGUF file as llama.cpp multiplies with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import gguf
import numpy as np
import torch
from torch import Tensor

from llmkit.errors import GGUFError
from llmkit.export.gguf.reader import GGUFFile, StoredTensor
from llmkit.export.verify.activations import Activations, Ties, nearest, rounded, rounded_to
from llmkit.export.verify.arithmetic import CPU, Arithmetic, Type
from llmkit.export.verify.cuda import MMVQ_TOKENS, CudaWeights

_ROWS_AT_ONCE = 8192  # of a matrix in float64: a head of 50k rows would be 300 MB or more


@dataclass(frozen=True)
class LoRA:
    """A correction y + scale * B (A x), with f32 matrices A (rank, in) and B (out, rank)."""

    a: Matrix
    b: Matrix
    scale: float

    def product(self, x: Tensor, ties: Ties = nearest, arithmetic: Arithmetic = CPU) -> Tensor:
        """The correction of x (T, in): (T, out). Reads x as it was before the base's rounding."""
        inner = self.a.product(x, ties, arithmetic)
        return self.scale * self.b.product(inner, ties, arithmetic)


@dataclass(frozen=True)
class Matrix:
    """A matrix of the file with all that llama.cpp's product with it depends on."""

    name: str
    weight: Tensor  # (out, in), dequantized
    dot_type: Type
    # (out, n_blocks), of types that have one: the largest magnitude that a block adds to its
    # weights. In q4_1 and q5_1 it is what is added, with its sign.
    offsets: Tensor | None = None
    lora: LoRA | None = None
    cuda: CudaWeights | None = None  # of quantized types

    def read(self, x: Tensor, arithmetic: Arithmetic = CPU, ties: Ties = nearest) -> Activations:
        """What the product reads of x (T, in)."""
        if self.cuda is not None and arithmetic.cuda:
            return replace(self.cuda, many=len(x) > MMVQ_TOKENS).read(x, ties)
        kind = arithmetic.reads(self.dot_type)
        return Activations(x) if kind == Type.F32 else rounded(x, kind, ties)

    def read_weight(self, arithmetic: Arithmetic = CPU) -> Tensor:
        """What the product reads of the weight (out, in)."""
        return rounded_to(self.weight, Type.F16) if self._halves(arithmetic) else self.weight

    def _halves(self, arithmetic: Arithmetic) -> bool:
        """Whether weights are rounded to f16 too: what the CPU reads in f16 is f16."""
        return arithmetic.activations is not None and arithmetic.reads(self.dot_type) == Type.F16

    def for_tokens(self, n_tokens: int, arithmetic: Arithmetic) -> Matrix:
        """The matrix as it is read for so many tokens at a time."""
        if self.cuda is None or not arithmetic.cuda:
            return self
        cuda = replace(self.cuda, many=n_tokens > MMVQ_TOKENS)
        return replace(self, cuda=cuda, weight=cuda.weight(self.weight))

    def sum_factors(self, arithmetic: Arithmetic) -> Tensor | None:
        """What the stored sums of the activations are multiplied with, (out, n_sums)."""
        if arithmetic.cuda and self.cuda is not None:
            return self.cuda.sum_factors()
        return self.offsets if self.dot_type == Type.Q8_1 else None

    def product(self, x: Tensor, ties: Ties = nearest, arithmetic: Arithmetic = CPU) -> Tensor:
        """(T, in) -> (T, out), in the precision of x; sums are rounded to f16 in float32 alone."""
        arithmetic = arithmetic.of_product(self.dot_type, len(self.weight))
        read = self.read(x, arithmetic, ties)
        values = read.values.to(x.dtype)
        in_halves = arithmetic.sums == Type.F16 and x.dtype == torch.float32
        y = x.new_empty(len(x), len(self.weight))
        for start in range(0, len(self.weight), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            part = self.rows(rows).for_tokens(len(x), arithmetic)
            weight = part.read_weight(arithmetic).to(x.dtype)
            if in_halves:  # in another order where ties go another way
                y[:, rows] = summed_in_halves(values, weight, backwards=ties is not nearest)
            else:
                y[:, rows] = values @ weight.T
            factors = part.sum_factors(arithmetic)
            if factors is not None and read.sum_error is not None:
                y[:, rows] += read.sum_error.to(x.dtype) @ factors.to(x.dtype).T
        if self.lora is not None:
            y += self.lora.product(x, ties, arithmetic)
        return y

    def rows(self, rows: slice) -> Matrix:
        """The same for some of the outputs."""
        return replace(
            self,
            weight=self.weight[rows],
            offsets=None if self.offsets is None else self.offsets[rows],
            lora=None if self.lora is None else replace(self.lora, b=self.lora.b.rows(rows)),
            cuda=None if self.cuda is None else replace(self.cuda, rows=rows),
        )


def summed_in_halves(x: Tensor, weight: Tensor, *, backwards: bool = False) -> Tensor:
    """(T, in) and (out, in) -> (T, out): one product after the other, each sum rounded to f16."""
    columns, sums = weight.half().T.contiguous(), x.new_zeros(len(x), len(weight)).half()
    for k in reversed(range(x.shape[1])) if backwards else range(x.shape[1]):
        sums.addcmul_(x[:, k : k + 1].half(), columns[k])
    return sums.to(x.dtype)


@dataclass(frozen=True)
class FileTensors:
    """The tensors of a file and its adapter, unpacked to float32 when they are asked for."""

    file: GGUFFile
    adapter: GGUFFile | None
    lora_alpha: float

    def tensor(self, name: str) -> Tensor:
        """A tensor's weights. Raises GGUFError where it is missing."""
        return torch.from_numpy(self._stored(name).dequantized())

    def dot_type(self, name: str) -> Type:
        """What the CPU rounds activations to for a matrix. Raises GGUFError where it is missing."""
        return self._stored(name).qtype.dot_type

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape. Raises GGUFError where it is missing."""
        return self._stored(name).shape

    def matrix(self, name: str) -> Matrix:
        """A matrix and how it is multiplied. Raises GGUFError where it is missing."""
        stored = self._stored(name)
        return Matrix(
            name,
            self.tensor(name),
            self.dot_type(name),
            self._offsets(stored),
            self._lora(name),
            CudaWeights(stored) if stored.is_quantized else None,
        )

    def _stored(self, name: str) -> StoredTensor:
        if name not in self.file.tensors:
            raise GGUFError(f"{self.file.path} has no tensor {name}; export it again")
        return self.file.tensors[name]

    def _offsets(self, stored: StoredTensor) -> Tensor | None:
        qtype = stored.qtype
        if qtype.offset is None:
            return None
        blocks = stored.blocks.reshape(stored.shape[0], -1, qtype.block_bytes)
        start = qtype.offset.start
        halves = np.ascontiguousarray(blocks[..., start : start + 2]).view("<f2")[..., 0]
        return torch.from_numpy(halves.astype(np.float32) * qtype.offset.largest)

    def _lora(self, name: str) -> LoRA | None:
        if self.adapter is None or f"{name}.lora_a" not in self.adapter.tensors:
            return None
        stored = {half: self.adapter.tensors[f"{name}.{half}"] for half in ("lora_a", "lora_b")}
        a, b = (
            Matrix(half, torch.from_numpy(tensor.dequantized()), tensor.qtype.dot_type)
            for half, tensor in stored.items()
        )
        return LoRA(a, b, self.lora_alpha / len(a.weight))


class UnpackedTensors:
    """Tensors of a file, each unpacked once and kept as long as this is."""

    def __init__(self, tensors: FileTensors) -> None:
        self.tensor: Callable[[str], Tensor] = cache(tensors.tensor)
        self.matrix: Callable[[str], Matrix] = cache(tensors.matrix)
        self._names = tensors.file.tensors.keys()

    def optional(self, name: str | None) -> Tensor | None:
        """A tensor that the file may lack."""
        return self.tensor(name) if name in self._names else None


def lora_alpha(adapter: GGUFFile | None) -> float:
    """Of an adapter's file; 0 without one. Raises GGUFError where it does not state it."""
    if adapter is None:
        return 0.0
    alpha = adapter.metadata.get(gguf.Keys.Adapter.LORA_ALPHA)
    if not isinstance(alpha, float):
        raise GGUFError(f"{adapter.path} has no {gguf.Keys.Adapter.LORA_ALPHA}; export it again")
    return alpha
