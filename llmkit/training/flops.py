"""Floating-point operations of a training step, and what this machine reaches at most."""

from __future__ import annotations

import time

import torch

from llmkit.architectures.base import ModelConfig
from llmkit.device import has_fast_bfloat16

CPU_MATRIX_SIZE = 1536
GPU_MATRIX_SIZE = 8192  # smaller ones do not keep it busy
SECONDS = 0.2


def flops_per_token(n_parameters: int, sizes: ModelConfig) -> int:
    """Of forward and backward pass: 6 N + 12 L C T (Chowdhery et al. 2022, PaLM, appendix B)."""
    return 6 * n_parameters + 12 * sizes.n_layer * sizes.n_embd * sizes.context_length


def peak_flops(device: torch.device) -> float:
    """Operations per second of plain matrix products in the type that training uses."""
    dtype = torch.bfloat16 if has_fast_bfloat16(device) else torch.float32
    n = CPU_MATRIX_SIZE if device.type == "cpu" else GPU_MATRIX_SIZE
    a = torch.randn(n, n, dtype=dtype, device=device)  # a GPU multiplies ones faster
    b = torch.randn_like(a)
    best = 0.0
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        started = time.monotonic()
        float((a @ b)[0, 0])  # waits for the device
        best = max(best, 2 * n**3 / max(time.monotonic() - started, 1e-9))
    return best
