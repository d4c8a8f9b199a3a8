"""Whether a model of Ollama fits into memory before it is loaded, and which one would."""

from __future__ import annotations

from typing import Any

from llmkit.export.check import Check
from llmkit.export.doctor import machine
from llmkit.export.doctor.machine import gigabytes
from llmkit.export.ollama.address import full_name, is_this_machine
from llmkit.export.ollama.server import OllamaServer

CONTEXT = 4096  # tokens: Ollama's default
_F16 = 2  # bytes
_BUFFERS = 300_000_000  # bytes for intermediate results
# Models that judge, by their download size in bytes in Ollama's library.
_KNOWN = {"llama3.1:8b": 4_900_000_000, "llama3.2:3b": 2_000_000_000, "llama3.2:1b": 1_300_000_000}


def judge_check(server: OllamaServer, model: str) -> Check:
    """What a stored model needs against what is free; a smaller model where it is not enough.

    A model that is loaded already, or on another machine, passes.
    """
    name, stored = full_name(model), server.stored()
    if not is_this_machine(server.url) or name in server.loaded() or name not in stored:
        return Check("memory", True, f"{model}: nothing to check")
    free = max(machine.free_memory(), machine.free_gpu_memory())
    need = stored[name] + _kv_cache(server.show(model).metadata) + _BUFFERS
    found = f"{model} needs {gigabytes(need)} at a context of {CONTEXT}; {gigabytes(free)} free"
    if need <= free:
        return Check("memory", True, found)
    return Check("memory", False, f"not enough: {found}", _smaller(stored, free))


def _kv_cache(metadata: dict[str, Any]) -> int:
    """Bytes of keys and values; none where the sizes are not stated."""
    prefix = metadata.get("general.architecture")
    layers, width, heads, kv_heads = (
        metadata.get(f"{prefix}.{name}") or 0
        for name in ("block_count", "embedding_length", "attention.head_count",
                     "attention.head_count_kv")
    )  # fmt: skip
    if not isinstance(heads, int) or not heads:
        return 0
    return int(2 * layers * width * (kv_heads or heads) / heads) * CONTEXT * _F16


def _smaller(stored: dict[str, int], free: int) -> str:
    """The largest stored model that fits, or else one to pull."""
    for sizes, advice in ((stored, "use {}"), (_KNOWN, "run ollama pull {} and use that")):
        fitting = {name: size for name, size in sizes.items() if 1.2 * size + _BUFFERS <= free}
        if fitting:
            return advice.format(max(fitting, key=fitting.__getitem__))
    return "close other programs; no known judge fits"
