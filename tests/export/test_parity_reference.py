"""What the reference rounds activations to, against ggml's own functions."""

from __future__ import annotations

import ctypes
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import pytest
import torch

from llmkit.export.verify.activations import Type, rounded


@pytest.mark.parametrize("dot_type", [Type.Q8_0, Type.Q8_1, Type.Q8_K], ids=lambda t: t.name)
@pytest.mark.parametrize("halves", [False, True])
def test_activations_are_rounded_as_ggml_rounds_them(dot_type: Type, halves: bool) -> None:
    """Bit for bit. Halves, which GELU's table gives, often lie just between two codes."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 512, generator=generator)
    x = x.half().float() if halves else x
    lib = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-cpu.so"))
    quantize = getattr(lib, "quantize_row_q" + dot_type.name[1:])
    quantize.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    lib.ggml_cpu_init()
    block_size, block_bytes = gguf.GGML_QUANT_SIZES[dot_type]
    if dot_type == Type.Q8_1:
        block_bytes = 36  # gguf-py says 40, from when step and sum were f32
    blocks = np.empty((x.numel() // block_size, block_bytes), np.uint8)
    quantize(x.data_ptr(), blocks.ctypes.data, x.numel())
    if dot_type == Type.Q8_K:
        step, codes = blocks[:, :4].copy().view(np.float32), blocks[:, 4 : 4 + block_size]
    else:  # Q8_1 has the block's sum after the step
        step, codes = blocks[:, :2].copy().view(np.float16), blocks[:, -block_size:]
    wanted = step.astype(np.float32) * codes.copy().view(np.int8).astype(np.float32)
    assert np.array_equal(rounded(x, dot_type).values.numpy(), wanted.reshape(x.shape))
