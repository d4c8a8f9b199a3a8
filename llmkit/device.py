"""Choosing where to compute."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from llmkit.errors import ConfigError, unknown_name

DEVICES = ("cuda", "mps", "cpu")


def choose_device(name: str | None = None) -> torch.device:
    """The named device, or the best there is: CUDA, then MPS, then CPU.

    Raises ConfigError for an unknown name or a device that this machine lacks.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name is None:
        return torch.device(next(device for device in DEVICES if available[device]))
    if name not in available:
        raise ConfigError(unknown_name("device", name, DEVICES))
    if not available[name]:
        raise ConfigError(f"this machine has no {name} device; omit --device or use cpu")
    return torch.device(name)


def copied_to(device: torch.device, x: Tensor) -> Tensor:
    """A tensor of the CPU on a device. The host does not wait until CUDA has done what it has."""
    if device.type == "cuda":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def device_with_float64(chosen: torch.device | None = None) -> torch.device:
    """The chosen device, or the best there is, but the CPU instead of MPS: it has no float64."""
    device = chosen or choose_device()
    return torch.device("cpu") if device.type == "mps" else device


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 are faster than in float32 on this device."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        features = torch.cpu.get_capabilities()
        return bool(features.get("avx512_bf16") or features.get("amx_bf16"))
    return False


def refuse_compile(device: torch.device) -> None:
    """Raise ConfigError where torch.compile lacks what it builds its code with."""
    usual = {"win32": "cl", "darwin": "clang++"}.get(sys.platform, "g++")
    compiler = os.environ.get("CXX", usual)
    if shutil.which(compiler) is None:
        raise ConfigError(f"--compile needs a C++ compiler, and {compiler} is not there; omit it")
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise ConfigError("--compile needs triton on a GPU; pip install triton, or omit it")


def by_compiler(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function by torch.compile, which compiles again for each shape of the input.

    `use_fast_math`: exp is the GPU's own instruction, exact to 2 units in the last place.
    """
    return torch.compile(function, dynamic=False, options={"use_fast_math": True})
