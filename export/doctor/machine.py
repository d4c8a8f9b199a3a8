"""What this machine has: Python, devices, llama.cpp, memory, disk."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import psutil
import torch

from llmkit.architectures.registry import FAMILIES, model_config, new_model
from llmkit.checkpoint.config import CheckpointConfig, save_config
from llmkit.checkpoint.tensors import save_tensors
from llmkit.errors import LlmkitError
from llmkit.export.check import Check
from llmkit.export.convert import export
from llmkit.export.llamacpp.benchmark import measure_speed
from llmkit.export.llamacpp.devices import build_features, devices
from llmkit.export.quantization.config import QuantConfig
from llmkit.modelfiles.prompt_format import COMPLETION
from llmkit.tokenizer_training import train_bpe

OLDEST_PYTHON = (3, 11)
GB = 1e9
MODELS_VARIABLE = "OLLAMA_MODELS"
# Of a container, where it has a limit of its own (cgroup v2).
_CGROUP = Path("/sys/fs/cgroup")
_RENDERERS = Path("/dev/dri")  # GPUs of Linux
_BUILD = "pip install --force-reinstall --no-deps --no-binary llama-cpp-python llama-cpp-python"


def python_check() -> Check:
    """Whether Python is new enough."""
    passed = sys.version_info >= OLDEST_PYTHON
    advice = "" if passed else "install Python {}.{} or newer".format(*OLDEST_PYTHON)
    return Check("python", passed, f"{platform.python_version()}, {sys.executable}", advice)


def torch_check() -> Check:
    """PyTorch and the devices that it can train on."""
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("Apple GPU (mps)")
    found = f"{torch.__version__} on {', '.join([*devices, 'CPU'])}"
    return Check("torch", True, found)


def llama_cpp_check() -> Check:
    """Whether llama-cpp-python loads and computes: a tiny model, in a process of its own.

    A library that was compiled for another CPU ends the process that it is loaded into.
    """
    found = f"llama-cpp-python {version('llama-cpp-python')}"
    try:
        with tempfile.TemporaryDirectory() as folder:
            measure_speed(_tiny_model(Path(folder)), 2, 1)
    except LlmkitError as error:
        advice = f"build it on this machine: {_BUILD}"
        return Check("llama.cpp", False, f"{found} does not run: {error}", advice)
    seen = devices()
    found += f" loads and runs a model on {', '.join(map(str, seen))}"
    option = "" if any(device.is_gpu for device in seen) else _option_for_gpu()
    advice = f"to use the GPU: CMAKE_ARGS={option} {_BUILD}" if option else ""
    return Check("llama.cpp", True, f"{found}; built with {', '.join(build_features())}", advice)


def _option_for_gpu() -> str:
    """The option of a llama.cpp that sees this machine's GPU; empty if there is none."""
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return "-DGGML_METAL=on"
    if torch.version.hip:
        return "-DGGML_HIP=on"
    if torch.cuda.is_available() or shutil.which("nvidia-smi"):
        return "-DGGML_CUDA=on"
    return "-DGGML_VULKAN=on" if any(_RENDERERS.glob("renderD*")) else ""


def memory_check() -> Check:
    """How much memory there is."""
    total = psutil.virtual_memory().total
    return Check("memory", True, f"{gigabytes(free_memory())} free of {gigabytes(total)}")


def free_memory() -> int:
    """Bytes that a program may still take."""
    free = int(psutil.virtual_memory().available)
    with suppress(OSError, ValueError):  # no container, or one without a limit ("max")
        limit = int((_CGROUP / "memory.max").read_text())
        free = min(free, max(0, limit - int((_CGROUP / "memory.current").read_text())))
    return free


def free_gpu_memory() -> int:
    """Free bytes of the GPU that has most."""
    return max((torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count())), default=0)


def disk_check(needed: int = 0) -> Check:
    """Whether Ollama's folder has room for a model of so many bytes."""
    folder, source = models_folder()
    free = free_disk(folder)
    found = f"{gigabytes(free)} free for {folder} ({source})"
    if needed:
        found += f"; storing the model takes up to {gigabytes(needed)}"
    if free >= needed:
        return Check("disk", True, found)
    advice = (
        f"free space, or start the server with {MODELS_VARIABLE} set to a folder on another disk"
    )
    return Check("disk", False, found, advice)


def models_folder() -> tuple[Path, str]:
    """Where Ollama on this machine should keep models, and what that is taken from.

    The server's own OLLAMA_MODELS cannot be asked for; it may be another than this shell's.
    """
    own = os.environ.get(MODELS_VARIABLE)
    if own:
        return Path(own), f"{MODELS_VARIABLE} in this shell; the server may use another value"
    unless = f"unless the server sets {MODELS_VARIABLE}"
    service = Path("/usr/share/ollama/.ollama/models")
    if service.exists():
        return service, f"default of the Linux installer, {unless}"
    return Path.home() / ".ollama/models", f"default folder, {unless}"


def free_disk(folder: Path) -> int:
    """Free bytes where a folder is or would be made."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free


def gigabytes(n_bytes: int) -> str:
    """Bytes as GB or MB."""
    return f"{n_bytes / GB:.1f} GB" if n_bytes >= GB else f"{n_bytes / 1e6:.1f} MB"


def _tiny_model(folder: Path) -> Path:
    tokenizer = train_bpe([""], 257)
    preset = next(iter(next(iter(FAMILIES.values())).presets))
    sizes = {"context_length": 8, "n_layer": 1, "n_head": 1, "n_embd": 32}
    config = model_config(preset, tokenizer.vocab_size, **sizes)
    checkpoint = folder / "tiny"
    checkpoint.mkdir()
    save_config(checkpoint, CheckpointConfig(config, COMPLETION))
    save_tensors(checkpoint / "model.safetensors", new_model(config).state_dict(), step=0)
    tokenizer.save(checkpoint / "tokenizer.json")
    return export(checkpoint, folder / "out", QuantConfig(["q8_0"]), prove=False).files[0].path
