"""Whether a GGUF file fits into memory, and what of it would."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from llmkit.console import command
from llmkit.export.check import Check
from llmkit.export.doctor import machine
from llmkit.export.doctor.machine import gigabytes
from llmkit.export.gguf.memory_need import memory_needed, memory_needed_as, padded
from llmkit.export.gguf.reader import GGUFFile
from llmkit.export.gguf.sizes import sizes_of
from llmkit.export.verify.proof_store import kept_proof
from llmkit.quantization.tensor_types import quantization, quantization_names

_STEP = 256  # tokens of context, as llama.cpp counts them


def fit_check(file: GGUFFile, context: int) -> Check:
    """What a file needs at a context against what is free, with commands for what would fit.

    Raises GGUFError for a file that does not state the model's sizes.
    """
    context = min(context, sizes_of(file).context_length)
    need = memory_needed(file, context)
    free = max(machine.free_memory(), machine.free_gpu_memory())
    parts = (
        f"weights {gigabytes(need.weights)}, KV cache {gigabytes(need.kv_cache)} in f16, "
        f"compute buffer {gigabytes(need.compute_buffer)}"
    )
    found = (
        f"{file.path.name} needs {gigabytes(need.total)} at a context of {context} ({parts}); "
        f"{gigabytes(free)} free"
    )
    if need.total <= free:
        return Check("memory", True, found)
    advice = (
        "; or ".join(_ways(file, context, free)) or "close other programs; no smaller type fits"
    )
    return Check("memory", False, f"not enough: {found}", advice)


def _ways(file: GGUFFile, context: int, free: int) -> Iterator[str]:
    """A smaller type, a smaller context: the largest of each that fits."""
    needs = {
        name: memory_needed_as(file, quantization(name), context).total
        for name in quantization_names()
        if not quantization(name).base.needs_importance
    }
    smaller = [name for name, need in needs.items() if need <= free]
    if smaller:
        largest = max(smaller, key=needs.__getitem__)
        yield f"{largest} fits: {_quantize_command(file, largest)}"
    for less in range(padded(context) - _STEP, 0, -_STEP):
        if memory_needed(file, less).total <= free:
            yield f"a context of {less} fits: {_context_command(file.path, less)}"
            return


def _quantize_command(file: GGUFFile, quant: str) -> str:
    """From the checkpoint where it is known, else from the file, whose errors may add up."""
    gguf, proof = file.path, kept_proof(file.path)
    if proof:
        out = f"{gguf.parent}-{quant}"
        words = ["export", str(proof["checkpoint"]), "--out", out, "--quant", quant]
    else:
        out = str(gguf.with_name(f"{gguf.stem}-{quant}.gguf"))
        words = ["quantize", str(gguf), "--out", out, "--quant", quant]
        if any(tensor.is_quantized for tensor in file.tensors.values()):
            words.append("--again")
    return command(*words)


def _context_command(gguf: Path, context: int) -> str:
    out = gguf.parent / f"Modelfile-{context}"
    return command("modelfile", "write", gguf, "--parameter", f"num_ctx={context}", "--out", out)
