"""What llama.cpp's CUDA kernels for quantized weights read: MMVQ up to 8 tokens, MMQ above.

Both round activations to blocks of bytes, and some types also read each block's sum in f16, taken
before the rounding. Sources, under ggml/src/ggml-cuda: quantize.cu (`quantize_q8_1`,
`quantize_mmq_q8_1`), vecdotq.cuh, mmq.cuh (`mmq_get_q8_1_ds_layout`), mmq-load-tiles.cuh.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmkit.export.gguf.reader import StoredTensor
from llmkit.export.verify.activations import (
    CODE_MAX,
    Activations,
    Ties,
    divided,
    finite_or_zero,
)
from llmkit.quant.blocks import offsets, steps

MMVQ_TOKENS = 8  # MMVQ_MAX_BATCH_SIZE
# MMVQ multiplies codes that begin at 0, and takes this many steps times the block's sum away.
_CENTRES = {"q4_0": 8, "q5_0": 16}
_WITH_MINIMUM = ("q4_1", "q5_1")
# MMQ keeps the products of a block's and a sub-block's scale in f16.
_HALF_SCALES = ("q2_k", "q4_k", "q5_k")
_HALF_STEPS = ("q4_0", "q4_1", "q5_1", *_HALF_SCALES)  # of MMQ's activations; MMVQ's always are
_BLOCK = 32
# With -use_fast_math a division is off by 2 units in the last place (CUDA C++ Programming Guide).
_STEP_ERROR = 8 * 2.0**-24


@dataclass(frozen=True)
class CudaWeights:
    """A quantized matrix as the kernels for many or few tokens read it, (out, in)."""

    stored: StoredTensor
    rows: slice = field(default_factory=lambda: slice(None))
    many: bool = True

    @property
    def _type(self) -> str:
        return self.stored.qtype.name

    @cached_property
    def _scales(self) -> tuple[Tensor, Tensor]:
        """Steps and offsets of sub-blocks as the file has them, (out, n, 1)."""
        blocks = self.stored.blocks.reshape(self.stored.shape[0], -1)
        packed = np.ascontiguousarray(blocks[self.rows])
        layout = self.stored.qtype.layout
        if layout is None:
            found = _q2_k_scales(packed)
        else:
            fields = layout.unpack(packed)
            step, offset = steps(fields), offsets(fields)
            found = step, np.zeros_like(step) if offset is None else offset
        return _flat(found[0]), _flat(found[1])

    def weight(self, dequantized: Tensor) -> Tensor:
        """What is read of the file's weights (out, in)."""
        if not self.many or self._type not in _HALF_SCALES:
            return dequantized
        step, offset = (scale.double() for scale in self._scales)
        codes = (dequantized.double().reshape(*step.shape[:2], -1) - offset) / step
        codes = codes.nan_to_num()  # a step of 0 has none
        return (codes * _to_half(step) + _to_half(offset)).flatten(1).float()

    def sum_factors(self) -> Tensor | None:
        """What the sums of the activations' blocks are multiplied with, (out, n)."""
        if self._type in _WITH_MINIMUM or (self.many and self._type in _HALF_SCALES):
            offset = self._scales[1].squeeze(-1)
            return _to_half(offset)
        if not self.many and self._type in _CENTRES:
            return -_CENTRES[self._type] * self._scales[0].squeeze(-1)
        return None

    def read(self, x: Tensor, ties: Ties) -> Activations:
        """Activations (T, in) in blocks of bytes."""
        wide = self.many and self._type == "q2_k"
        blocks = x.float().reshape(len(x), -1, 2 * _BLOCK if wide else _BLOCK)
        largest = blocks.abs().amax(-1, keepdim=True)
        scaled = blocks * finite_or_zero(divided(CODE_MAX, largest))
        step = largest / CODE_MAX
        flip = None
        if not self.many or self._type in _HALF_STEPS:
            flip = _half_flip(step, _STEP_ERROR * step)
            step = ties(step, _to_half, step)
        values = (ties(scaled, torch.round, CODE_MAX) * step).flatten(1)
        sum_error = sum_flip = None
        if self._type in (*_WITH_MINIMUM, *_HALF_SCALES, *_CENTRES):
            shape = len(x), -1, _BLOCK // 2 if wide else _BLOCK
            parts = x.float().reshape(shape)
            sums, magnitude = parts.sum(-1), parts.abs().sum(-1)
            stored = torch.arange(sums.shape[-1]) % 8 < 6 if wide else 1  # of 8 sums only 6
            sum_error = ties(sums, _to_half, magnitude) - values.reshape(shape).sum(-1)
            sum_error = sum_error * stored
            sum_flip = _half_flip(sums, _BLOCK * 2.0**-24 * magnitude) * stored
        return Activations(values, scaled, step, sum_error, step_flip=flip, sum_flip=sum_flip)


def _q2_k_scales(packed: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Steps and offsets of Q2_K's sub-blocks of 16, (out, n_blocks, 16): block_q2_K in ggml."""
    blocks = packed.reshape(len(packed), -1, 84)
    scales = blocks[..., :16]
    halves = np.ascontiguousarray(blocks[..., 80:]).view("<f2").astype(np.float32)
    return halves[..., :1] * (scales & 15), -halves[..., 1:] * (scales >> 4)


def _flat(scales: NDArray[np.float32]) -> Tensor:
    """(out, n_blocks, sub-blocks) -> (out, n, 1)."""
    return torch.from_numpy(scales).flatten(1)[..., None]


def _to_half(x: Tensor) -> Tensor:
    return x.half().float()


def _half_flip(x: Tensor, error: Tensor) -> Tensor:
    """How far the f16 of x may move if x is off by `error`."""
    return _to_half(x + error) - _to_half(x - error)
