"""What llama.cpp computes from a GGUF file on a CPU, spelled out in PyTorch.

It is the `gpt2` graph with f32 keys and values and attention in single steps, which
`LlamaCpp(exact=True)` runs. Three roundings in it are part of the format, not errors, and are
made here as well:

- ggml rounds what a matrix reads to the dot type of the matrix's own type before the product, to
  blocks of bytes for the quantized types (`ggml_compute_forward_mul_mat`, ggml-cpu.c);
- it looks GELU up in a table from f16 to f16 (`ggml_vec_gelu_f32`, vec.h);
- it reads `layer_norm_epsilon` from the file, an f32.

All else is computed in the precision that is asked for. In float64 what is left to llama.cpp is
the rounding of float32. How much that may be, two other computations say: the same in float32,
and the same with each of the three roundings going the other way wherever it is a near-tie. Near
is what float32 may be off; two programs then round to neighbours, and both are right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import gguf
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llmkit.architectures.config import GPTConfig
from llmkit.architectures.gpt2 import attention_by_hand
from llmkit.errors import GGUFError
from llmkit.export.gguf.reader import GGUFFile, StoredTensor, config_of
from llmkit.export.verify.target import VerifyTarget

Type = gguf.GGMLQuantizationType

# vec_dot_type in the table type_traits_cpu of ggml-cpu.c: what ggml rounds activations to.
DOT_TYPES = {
    **{kind: kind for kind in (Type.F32, Type.F16, Type.BF16)},
    **dict.fromkeys((Type.Q8_0, Type.Q4_0, Type.Q5_0, Type.IQ4_NL), Type.Q8_0),
    **dict.fromkeys((Type.Q4_1, Type.Q5_1), Type.Q8_1),
    **dict.fromkeys((Type.Q2_K, Type.Q3_K, Type.Q4_K, Type.Q5_K, Type.Q6_K), Type.Q8_K),
    **dict.fromkeys((Type.IQ4_XS, Type.IQ3_S, Type.IQ3_XXS, Type.TQ1_0, Type.TQ2_0), Type.Q8_K),
    **dict.fromkeys((Type.IQ2_S, Type.IQ2_XS, Type.IQ2_XXS, Type.IQ1_S, Type.IQ1_M), Type.Q8_K),
}
_FLOATS = {Type.F32: torch.float32, Type.F16: torch.float16, Type.BF16: torch.bfloat16}
# Of types whose weight is scale * code + offset: where in a block the f16 is that the offset is a
# multiple of, and the largest multiple (block_q4_1 and so on in ggml-common.h).
_OFFSETS = {
    **dict.fromkeys((Type.Q4_1, Type.Q5_1), (2, 1)),
    **dict.fromkeys((Type.Q4_K, Type.Q5_K), (2, 63)),
    Type.Q2_K: (82, 15),
    Type.TQ1_0: (52, 1),  # codes of 0 to 2, less the block's scale
    Type.TQ2_0: (64, 1),
}
_CODE_MAX = 127
# In units of the largest of the values that are rounded together. A sum of some hundred products
# in float32 is off by about the root of their number times 2**-24 (Higham and Mary 2019, "A New
# Approach to Probabilistic Rounding Error Analysis"), and layers add up.
NEAR_TIE = 32 * 2.0**-24
_ROWS_AT_ONCE = 8192  # of a matrix in float64: a head of 50k rows would be 300 MB or more
_TOKENS_AT_ONCE = 512  # through a feed-forward, which rounds four times as many numbers
_SCORES_AT_ONCE = 1 << 20  # of attention: those of all heads would be as much


@dataclass(frozen=True)
class Activations:
    """What a matrix reads of x (T, in), rounded to its dot type."""

    values: Tensor  # (T, in), float32
    # Quantized types only: x in units of the step, before it was rounded to whole ones, and the
    # step, (T, n_blocks, block) and (T, n_blocks, 1).
    scaled: Tensor | None = None
    step: Tensor | None = None
    # Q8_1 only, (T, n_blocks): it also stores each block's sum, as f16. This much is it off.
    sum_error: Tensor | None = None


def nearest(x: Tensor, rounding: Callable[[Tensor], Tensor], largest: Tensor | float) -> Tensor:
    """Round x, each value by itself."""
    return rounding(x)


def other_of_near_ties(
    x: Tensor, rounding: Callable[[Tensor], Tensor], largest: Tensor | float
) -> Tensor:
    """Round x, but to the neighbour where x is a near-tie; `largest` of what x belongs to."""
    usual = rounding(x)
    above, below = rounding(x + NEAR_TIE * largest), rounding(x - NEAR_TIE * largest)
    return torch.where(above != usual, above, below)


Ties = Callable[[Tensor, Callable[[Tensor], Tensor], Tensor | float], Tensor]


def rounded(x: Tensor, dot_type: Type, ties: Ties = nearest) -> Activations:
    """Round activations (T, in) as ggml does; it computes in f32 here, so float64 becomes that."""
    x = x.float()
    if dot_type in _FLOATS:
        largest = x.abs().amax(-1, keepdim=True)
        return Activations(ties(x, lambda v: v.to(_FLOATS[dot_type]).float(), largest))
    block_size = gguf.GGML_QUANT_SIZES[dot_type][0]
    blocks = x.reshape(len(x), -1, block_size)  # (T, n_blocks, block)
    if dot_type == Type.Q8_K:
        extreme = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
        inverse = _or_zero(_divided(-_CODE_MAX, extreme))
        step = exact_step = _or_zero(1 / inverse)
    else:
        largest = blocks.abs().amax(-1, keepdim=True)
        inverse = _or_zero(_divided(_CODE_MAX, largest))
        exact_step = largest / _CODE_MAX
        step = ties(exact_step, lambda v: v.half().float(), exact_step)
    scaled = blocks * inverse
    # Ties to even, as on x86; other CPUs round them away from zero.
    codes = ties(scaled, torch.round, _CODE_MAX)
    sum_error = None
    if dot_type == Type.Q8_1:
        sums = codes.sum(-1, keepdim=True)
        sum_error = ((exact_step * sums).half().float() - step * sums).squeeze(-1)
    return Activations((codes * step).flatten(1), scaled, step, sum_error)


def _divided(number: float, by: Tensor) -> Tensor:
    """Rounded once, as in C: `number / by` in PyTorch is `by.reciprocal() * number`."""
    return torch.full_like(by, number) / by


def _or_zero(inverse: Tensor) -> Tensor:
    return inverse.where(inverse.isfinite(), 0.0)


@dataclass(frozen=True)
class LoRA:
    """A correction y + scale * B (A x), with A (rank, in) and B (out, rank)."""

    a: Tensor
    b: Tensor
    scale: float


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

    def product(self, x: Tensor, ties: Ties = nearest) -> Tensor:
        """(T, in) -> (T, out), in the precision of x."""
        read = Activations(x) if self.dot_type == Type.F32 else rounded(x, self.dot_type, ties)
        values = read.values.to(x.dtype)
        y = x.new_empty(len(x), len(self.weight))
        for start in range(0, len(self.weight), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            y[:, rows] = values @ self.weight[rows].to(x.dtype).T
        if self.offsets is not None and read.sum_error is not None:
            y += read.sum_error.to(x.dtype) @ self.offsets.to(x.dtype).T
        if self.lora is not None:  # in f32, and reads x as it was
            a, b = self.lora.a.to(x.dtype), self.lora.b.to(x.dtype)
            y += self.lora.scale * (x @ a.T @ b.T)
        return y

    def rows(self, rows: slice) -> Matrix:
        """The same for some of the outputs."""
        return replace(
            self,
            weight=self.weight[rows],
            offsets=None if self.offsets is None else self.offsets[rows],
            lora=None if self.lora is None else replace(self.lora, b=self.lora.b[rows]),
        )


def gelu(x: Tensor, ties: Ties = nearest) -> Tensor:
    """The tanh form of (T, n) through ggml's table, which ends at -10 and 10."""
    halves = ties(x.float(), lambda v: v.half().float(), x.float().abs().amax(-1, keepdim=True))
    looked_up = _gelu_table(x.dtype)[halves.half().view(torch.int16).int() & 0xFFFF]
    return torch.where(x <= -10, 0.0, torch.where(x >= 10, x, looked_up))


@cache
def _gelu_table(dtype: torch.dtype) -> Tensor:
    """GELU of every f16 by its bits, computed in float32 by the formula of ggml_gelu_f32."""
    x = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.float16).float()
    inner = 0.79788456080286535587989211986876 * x * (1 + 0.044715 * x * x)
    return (0.5 * x * (1 + inner.tanh())).half().to(dtype)


def attention(qkv: Tensor, n_head: int) -> Tensor:
    """Causal attention with queries, keys and values side by side: (T, 3C) -> (T, C)."""
    q, k, v = (part.reshape(len(qkv), n_head, -1).transpose(0, 1) for part in qkv.chunk(3, dim=-1))
    heads = max(1, _SCORES_AT_ONCE // len(qkv) ** 2)
    parts = zip(*(torch.split(x, heads) for x in (q, k, v)), strict=True)
    attended = torch.cat([attention_by_hand(*part) for part in parts])  # (H, T, D)
    return attended.transpose(0, 1).flatten(1)


def with_f16_cache(qkv: Tensor, n_head: int) -> Tensor:
    """The same with keys and values kept as f16, as llama.cpp does unless told otherwise."""
    q, k, v = qkv.chunk(3, dim=-1)
    return attention(torch.cat((q, k.half().to(q), v.half().to(q)), dim=-1), n_head)


@dataclass(frozen=True)
class FileTensors:
    """The tensors of a file and its adapter, unpacked to float32 when they are asked for."""

    file: GGUFFile
    adapter: GGUFFile | None
    lora_alpha: float

    def has(self, name: str) -> bool:
        """Whether the file has a tensor of this name."""
        return name in self.file.tensors

    def tensor(self, name: str) -> Tensor:
        """A tensor's weights. Raises GGUFError where it is missing."""
        return torch.from_numpy(self._stored(name).dequantized())

    def matrix(self, name: str) -> Matrix:
        """A matrix and how it is multiplied. Raises GGUFError where it is missing."""
        stored = self._stored(name)
        if stored.ggml_type not in DOT_TYPES:
            raise GGUFError(
                f"{self.file.path}: {name} has type {stored.ggml_type.name}, which llmkit cannot "
                "verify; export it again with another type"
            )
        return Matrix(
            name,
            self.tensor(name),
            DOT_TYPES[stored.ggml_type],
            self._offsets(stored),
            self._lora(name),
        )

    def _stored(self, name: str) -> StoredTensor:
        if name not in self.file.tensors:
            raise GGUFError(f"{self.file.path} has no tensor {name}; export it again")
        return self.file.tensors[name]

    def _offsets(self, stored: StoredTensor) -> Tensor | None:
        if stored.ggml_type not in _OFFSETS:
            return None
        start, largest = _OFFSETS[stored.ggml_type]
        block_bytes = gguf.GGML_QUANT_SIZES[stored.ggml_type][1]
        blocks = stored.blocks.reshape(stored.shape[0], -1, block_bytes)
        halves = np.ascontiguousarray(blocks[..., start : start + 2]).view("<f2")[..., 0]
        return torch.from_numpy(halves.astype(np.float32) * largest)

    def _lora(self, name: str) -> LoRA | None:
        if self.adapter is None or f"{name}.lora_a" not in self.adapter.tensors:
            return None
        a, b = (
            torch.from_numpy(self.adapter.tensors[f"{name}.{half}"].dequantized())
            for half in ("lora_a", "lora_b")
        )
        return LoRA(a, b, self.lora_alpha / len(a))


class _Unpacked:
    """Tensors of a file, each unpacked once and kept as long as this is."""

    def __init__(self, tensors: FileTensors) -> None:
        self.tensor: Callable[[str], Tensor] = cache(tensors.tensor)
        self.matrix: Callable[[str], Matrix] = cache(tensors.matrix)


class Reference:
    """The model of a file as llama.cpp computes it, in float32 or float64."""

    def __init__(
        self,
        target: VerifyTarget,
        dtype: torch.dtype,
        ties: Ties = nearest,
        attention: Callable[[Tensor, int], Tensor] = attention,
    ) -> None:
        """Unpack nothing yet. Raises GGUFError where the file or its adapter lacks something."""
        self._ties, self._attention, self._dtype = ties, attention, dtype
        self.config: GPTConfig = config_of(target.file)
        self.tensors = FileTensors(target.file, target.adapter, _lora_alpha(target.adapter))

    def logits(self, ids: Tensor) -> Tensor:
        """Logits (T, V) of one sequence of token ids (T,)."""
        return next(self.last_logits([ids], [len(ids)]))

    def last_logits(self, texts: Sequence[Tensor], counts: Sequence[int]) -> Iterator[Tensor]:
        """Logits (n, V) of the last n positions of each text, n its count."""
        (hidden,) = hidden_states([self], texts)
        head, parts = self.head(), torch.split(hidden, [len(text) for text in texts])
        for states, n in zip(parts, counts, strict=True):
            yield self.head_logits(states[len(states) - n :], head)

    def head(self) -> Matrix:
        """The matrix that makes the logits, unpacked."""
        return self.tensors.matrix(
            "token_embd.weight" if self.config.tie_embeddings else "output.weight"
        )

    @torch.inference_mode()
    def head_logits(self, hidden: Tensor, head: Matrix) -> Tensor:
        """What the head says of hidden states: (T, C) -> (T, V)."""
        return head.product(hidden, self._ties)

    def embedded(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Rows of tokens and of positions added, (T, C) each."""
        return tokens.to(self._dtype) + positions.to(self._dtype)

    def block(self, weights: _Unpacked, layer: int, x: Tensor, lengths: list[int]) -> Tensor:
        """What a layer makes of sequences of these lengths, one after the other: (T, C)."""
        name = f"blk.{layer}"
        qkv = self._linear(weights, f"{name}.attn_qkv", self.norm(weights, f"{name}.attn_norm", x))
        attended = [self._attention(part, self.config.n_head) for part in torch.split(qkv, lengths)]
        x = x + self._linear(weights, f"{name}.attn_output", torch.cat(attended))
        fed = [self._feed_forward(weights, name, part) for part in torch.split(x, _TOKENS_AT_ONCE)]
        return x + torch.cat(fed)

    def _feed_forward(self, weights: _Unpacked, name: str, x: Tensor) -> Tensor:
        inner = self._linear(weights, f"{name}.ffn_up", self.norm(weights, f"{name}.ffn_norm", x))
        return self._linear(weights, f"{name}.ffn_down", gelu(inner, self._ties))

    def norm(self, weights: _Unpacked, name: str, x: Tensor) -> Tensor:
        """The LayerNorm of this name: (T, C) -> (T, C)."""
        weight = weights.tensor(f"{name}.weight").to(x.dtype)
        bias = weights.tensor(f"{name}.bias").to(x.dtype)
        return F.layer_norm(x, weight.shape, weight, bias, self.config.layer_norm_epsilon)

    def _linear(self, weights: _Unpacked, name: str, x: Tensor) -> Tensor:
        product = weights.matrix(f"{name}.weight").product(x, self._ties)
        return product.add_(weights.tensor(f"{name}.bias").to(x.dtype))


@torch.inference_mode()
def hidden_states(references: Sequence[Reference], texts: Sequence[Tensor]) -> list[Tensor]:
    """Normalised outputs (T, C) of the last layer, of each reference: T tokens of all texts.

    The references are of one file. All texts go through a layer before the next is unpacked, so
    that memory holds the weights of one layer.
    """
    tensors, config = references[0].tensors, references[0].config
    lengths = [len(text) for text in texts]
    tokens = tensors.tensor("token_embd.weight")[torch.cat(list(texts))]
    positions = tensors.tensor("position_embd.weight")
    positions = torch.cat([positions[:length] for length in lengths])
    streams = [reference.embedded(tokens, positions) for reference in references]
    for layer in range(config.n_layer):
        weights = _Unpacked(tensors)
        for number, reference in enumerate(references):
            streams[number] = reference.block(weights, layer, streams[number], lengths)
    weights = _Unpacked(tensors)
    return [
        reference.norm(weights, "output_norm", x)
        for reference, x in zip(references, streams, strict=True)
    ]


def _lora_alpha(adapter: GGUFFile | None) -> float:
    if adapter is None:
        return 0.0
    alpha = adapter.metadata.get(gguf.Keys.Adapter.LORA_ALPHA)
    if not isinstance(alpha, float):
        raise GGUFError(f"{adapter.path} has no {gguf.Keys.Adapter.LORA_ALPHA}; export it again")
    return alpha
