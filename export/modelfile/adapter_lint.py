"""Check an ADAPTER against its base: Ollama accepts any file and fails later, or never."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import gguf

from llmkit.errors import GGUFError
from llmkit.export.gguf.adapter import HALVES, is_adapter
from llmkit.export.gguf.reader import GGUFFile, read_gguf
from llmkit.modelfiles.grammar import Finding, Place

RELATIVE_PATH = "write a path relative to the Modelfile's folder"
_EXPORT = "use the adapter's GGUF file from llmkit export"
_OTHER = "use an adapter trained on this base, or the base that it was trained on"


def lint_adapter(value: str, path: Path, base: GGUFFile | None, place: Place) -> Iterator[Finding]:
    """Findings in what ADAPTER names, the first one that keeps it from its base.

    `base`: the file of FROM; None where that is a model's name.
    """
    if not exists(path):
        yield Finding(
            "error", place, f"no such file or directory: ADAPTER {value}", RELATIVE_PATH,
        )  # fmt: skip
        return
    fault = safetensors_fault("ADAPTER", path, "adapter_config.json")
    if fault is None and path.is_dir() and base is not None:
        fault = f"unsupported architecture: Ollama cannot convert adapter folders for {_kind(base)}"
    if fault is not None:
        yield Finding("error", place, fault, _EXPORT)
        return
    if path.is_dir():
        return  # Ollama converts it, for a model of its own
    try:
        adapter = read_gguf(path)
    except GGUFError as error:
        message = f"unknown type: cannot load the GGUF file in ADAPTER: {error}"
        yield Finding("error", place, message, _EXPORT)
        return
    if not is_adapter(adapter):
        message = f"{path.name} is a model, not an adapter: Ollama accepts it and ignores it"
        yield Finding("error", place, message, f"put it in FROM, or remove ADAPTER {path.name}")
        return
    fault = _fault(adapter, base)
    if fault is not None:
        yield Finding("error", place, f"{path.name} does not fit this base: {fault}", _OTHER)
    elif gguf.Keys.Adapter.LORA_ALPHA not in adapter.metadata:
        yield Finding(
            "warning", place, f"{path.name} has no adapter.lora.alpha: llama.cpp uses a scale of 1",
            "export the adapter again with its alpha",
        )  # fmt: skip


def exists(path: Path) -> bool:
    """Whether a path exists; one that the system refuses, as too long, does not."""
    try:
        return path.exists()
    except OSError:
        return False


def safetensors_fault(instruction: str, path: Path, config: str) -> str | None:
    """Why Ollama does not convert what FROM or ADAPTER names, in its own words first.

    None for a folder that it may convert, and for a file that is not .safetensors.
    """
    if path.is_file():
        if path.suffix.lower() != ".safetensors":
            return None
        return f"open {config}: file does not exist: {instruction} names a single .safetensors file"
    if not any(path.glob("*.safetensors")):
        return (
            f"no Modelfile or safetensors files found: {instruction} names the folder {path.name}"
        )
    try:
        content = json.loads((path / config).read_text(encoding="utf-8"))
    except OSError:
        return f"open {config}: file does not exist: {instruction} names the folder {path.name}"
    except ValueError as error:
        return f"{path.name}/{config} is not JSON ({instruction}): {error}"
    if instruction == "FROM":
        architectures = content.get("architectures") if isinstance(content, dict) else None
        if not (isinstance(architectures, list) and architectures):
            return f"unknown architecture: FROM names the folder {path.name}"
        if str(architectures[0]).startswith("GPT2"):
            return f"unsupported architecture {architectures[0]}: FROM names {path.name}"
    return None


def _kind(file: GGUFFile) -> object:
    return file.metadata.get(gguf.Keys.General.ARCHITECTURE)


def _fault(adapter: GGUFFile, base: GGUFFile | None) -> str | None:
    """Why llama.cpp would not load this adapter, for this base if one is given."""
    if base is not None and _kind(adapter) != _kind(base):
        return f"the adapter is for {_kind(adapter)}, the base is {_kind(base)}"
    kind = adapter.metadata.get(gguf.Keys.Adapter.TYPE)
    if kind != "lora":
        return f"adapter.type is {kind}, not lora"
    if not adapter.tensors:
        return "the adapter has no tensors"
    if base is None:
        return None
    faults = (_tensor_fault(name, adapter, base) for name in adapter.tensors)
    return next((fault for fault in faults if fault), None)


def _tensor_fault(name: str, adapter: GGUFFile, base: GGUFFile) -> str | None:
    of, _, half = name.rpartition(".")
    matrix = base.tensors.get(of)
    if half not in HALVES or matrix is None:
        return f"the base has no tensor for {name}"
    halves = [adapter.tensors.get(f"{of}.{suffix}") for suffix in HALVES]
    if None in halves:
        return f"{name} has no matching A or B tensor"
    a, b = (tensor.shape for tensor in halves if tensor is not None)
    # A is (rank, in), B (out, rank), the matrix (out, in).
    if len(a) != 2 or len(b) != 2 or (b[0], a[1]) != matrix.shape or a[0] != b[1]:
        return f"{of} has shape {matrix.shape}, but its A and B have {a} and {b}"
    return None
