"""Whether an ADAPTER is one for its base: Ollama takes any file and fails later, or never."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gguf

from llmkit.errors import GGUFError
from llmkit.export.adapter import HALVES
from llmkit.export.gguf_file import GGUFFile, read_gguf
from llmkit.modelfiles.grammar import Finding, Place

_OTHER = "name the adapter that was trained on this base, or the base that it was trained on"


def lint_adapter(path: Path, base: GGUFFile, place: Place) -> Iterator[Finding]:
    """Findings in an adapter's file, the first one that keeps it from its base."""
    if not path.exists():
        yield Finding(
            "error", place, f"ADAPTER names {path.name}, which is not there",
            "write the path as it is seen from the Modelfile's folder",
        )  # fmt: skip
        return
    try:
        adapter = read_gguf(path)
    except GGUFError as error:
        yield Finding(
            "error", place, f"ADAPTER is no GGUF file that runs: {error}",
            "export the adapter again, with llmkit export",
        )  # fmt: skip
        return
    if adapter.metadata.get(gguf.Keys.General.TYPE) != gguf.GGUFType.ADAPTER:
        message = f"{path.name} is a model, no adapter: Ollama takes it and changes nothing"
        yield Finding("error", place, message, f"name it with FROM, or remove ADAPTER {path.name}")
        return
    fault = _fault(adapter, base)
    if fault is not None:
        yield Finding("error", place, f"{path.name} is no adapter of this base: {fault}", _OTHER)
    elif gguf.Keys.Adapter.LORA_ALPHA not in adapter.metadata:
        yield Finding(
            "warning", place, f"{path.name} has no adapter.lora.alpha: its scale is taken for 1",
            "export the adapter again, with its alpha",
        )  # fmt: skip


def _fault(adapter: GGUFFile, base: GGUFFile) -> str | None:
    """Why llama.cpp would not load this adapter for this base."""
    key = gguf.Keys.General.ARCHITECTURE
    theirs, ours = adapter.metadata.get(key), base.metadata.get(key)
    if theirs != ours:
        return f"it is for {theirs}, the base is {ours}"
    kind = adapter.metadata.get(gguf.Keys.Adapter.TYPE)
    if kind != "lora":
        return f"adapter.type is {kind}, not lora"
    if not adapter.tensors:
        return "it has no tensors"
    faults = (_tensor_fault(name, adapter, base) for name in adapter.tensors)
    return next((fault for fault in faults if fault), None)


def _tensor_fault(name: str, adapter: GGUFFile, base: GGUFFile) -> str | None:
    of, _, half = name.rpartition(".")
    matrix = base.tensors.get(of)
    if half not in HALVES or matrix is None:
        return f"the base has no tensor for {name}"
    halves = [adapter.tensors.get(f"{of}.{suffix}") for suffix in HALVES]
    if None in halves:
        return f"{name} lacks its other half"
    a, b = (tensor.shape for tensor in halves if tensor is not None)
    # A is (rank, in), B (out, rank), the matrix (out, in).
    if len(a) != 2 or len(b) != 2 or (b[0], a[1]) != matrix.shape or a[0] != b[1]:
        return f"{of} is {matrix.shape}, its halves are {a} and {b}"
    return None
