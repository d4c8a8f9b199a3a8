"""What the installed llama.cpp was built with, and the devices that it sees."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

import llama_cpp

from llmkit.errors import ConfigError
from llmkit.export.llamacpp import ggml

Backend = Literal["cpu", "gpu", "auto"]
_GPU_TYPES = (1, 2)  # enum ggml_backend_dev_type: a GPU with memory of its own, or without


@dataclass(frozen=True)
class Device:
    """A device of llama.cpp: a GPU, a CPU, or a library such as BLAS."""

    name: str
    description: str
    is_gpu: bool

    def __str__(self) -> str:
        return f"{self.name} ({self.description})"


def devices() -> tuple[Device, ...]:
    """All devices, in llama.cpp's order."""
    count, get = ggml.registry.ggml_backend_dev_count, ggml.registry.ggml_backend_dev_get
    return tuple(_device(get(number)) for number in range(count()))


def uses_gpu(backend: Backend) -> bool:
    """Whether llama.cpp is to run on a GPU here. Raises ConfigError: no GPU, or an unknown name."""
    names = get_args(Backend)
    if backend not in names:
        raise ConfigError(f"unknown backend {backend!r}; choose one of: {', '.join(names)}")
    has_gpu = any(device.is_gpu for device in devices())
    if backend == "gpu" and not has_gpu:
        seen = ", ".join(map(str, devices()))
        raise ConfigError(f"llama.cpp sees no GPU, only {seen}; run `llmkit doctor` for a build")
    return has_gpu and backend != "cpu"


def build_features() -> list[str]:
    """What llama.cpp says it was compiled with: AVX2, REPACK, OPENMP, ..."""
    return re.findall(r"(\w+) = 1", llama_cpp.llama_print_system_info().decode())


def _device(handle: int) -> Device:
    return Device(
        ggml.base.ggml_backend_dev_name(handle).decode(errors="replace"),
        ggml.base.ggml_backend_dev_description(handle).decode(errors="replace"),
        ggml.base.ggml_backend_dev_type(handle) in _GPU_TYPES,
    )
