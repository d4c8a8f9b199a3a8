"""Whether a GGUF file holds the checkpoint's tensors, block for block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType

import numpy as np

from llmkit.architectures.base import TensorSpec
from llmkit.architectures.registry import tensor_specs
from llmkit.checkpoint.checkpoint import Checkpoint
from llmkit.export.check import Outcome, counted
from llmkit.export.diagnosis.diagnose import Suspect, WantedTensor, rounded
from llmkit.export.diagnosis.faults import Faults, fault_texts, rows_of
from llmkit.export.gguf.adapter import adapter_arrays
from llmkit.export.gguf.metadata import BLOCKS_KEY, hash_of_choice
from llmkit.export.gguf.reader import GGUFFile, StoredTensor
from llmkit.export.gguf.writer import open_weights, pack_tensor
from llmkit.export.verify.prequantized_blocks import far_rows, hashes_of
from llmkit.export.verify.target import VerifyTarget
from llmkit.quant import dequantize, quant_type, quantize
from llmkit.quant.types import PackedRows, QuantType


def tensors_check(target: VerifyTarget) -> Outcome:
    """Every tensor's blocks are the checkpoint's, quantized. Value: tensors that differ.

    Where rounding or training gives them they are equal bit for bit; where they were chosen, by
    GPTQ, they are those that were, and near the checkpoint's weights.
    """
    source, hashes = target.checkpoint, hashes_of(target.file)
    wanted = wanted_tensors(target)
    near: list[str] = []
    faults = _faults(target.file, wanted, hashes, near if target.is_foreign else None)
    n_wrong, texts = faults.count, fault_texts(faults, wanted)
    if foreign := sorted(hashes.keys() - {tensor.source for tensor in wanted}):
        n_wrong += len(foreign)
        texts.append(f"{BLOCKS_KEY} names {foreign[0]}, but the checkpoint has no such tensor")
    if faults.differing and source.lora is not None:
        texts = [*_adapter_text(target, faults), *texts]
    n_tensors = len(wanted)
    if target.adapter is not None:
        wanted = _wanted_of_adapter(source)
        faults = _faults(target.adapter, wanted)
        n_wrong += faults.count
        n_tensors += len(wanted)
        texts += [f"{target.adapter.path.name}: {text}" for text in fault_texts(faults, wanted)]
    said = f"{n_tensors - len(hashes) - len(near)} tensors are equal bit for bit"
    if near:
        said += f", {len(near)} are as near to the weights as their type allows"
    if hashes:
        said += f", {len(hashes)} have the hash of the blocks that {target.file.method} chose"
    return counted(n_wrong, said, "; ".join(texts))


def wanted_tensors(target: VerifyTarget) -> list[WantedTensor]:
    """What the file has to hold, read from the checkpoint when it is asked for."""
    source, merged = target.checkpoint, target.is_merged
    trained = source.trained_blocks() if target.quantization.name == source.qat else {}
    return [_wanted(entry, target, merged, trained) for entry in tensor_specs(source.config)]


def is_equal(found: StoredTensor, wanted: WantedTensor) -> bool:
    """Whether a tensor's blocks are the wanted ones, bit for bit."""
    return np.array_equal(rows_of(found), wanted.blocks())


def _wanted(
    entry: TensorSpec,
    target: VerifyTarget,
    merged: bool,
    trained: Mapping[str, PackedRows] = MappingProxyType({}),
) -> WantedTensor:
    wanted = target.quantization.type_of(entry, target.checkpoint.config)
    f32 = quant_type("f32")

    def read(stored: QuantType) -> PackedRows:
        # Opened anew for each tensor: of an open file all that was read stays in memory.
        with open_weights(target.checkpoint, target.quantization, merged=merged) as tensors:
            return pack_tensor(tensors, entry, stored)

    def pack(stored: QuantType) -> PackedRows:
        if stored == wanted and entry.checkpoint_name in trained:
            return trained[entry.checkpoint_name]
        if stored.needs_importance:
            return rounded(dequantize(read(f32), f32), stored)
        return read(stored)

    return WantedTensor(
        name=entry.gguf_name,
        source=entry.checkpoint_name,
        shape=entry.shape,
        stored=wanted,
        pack=pack,
        is_trained=entry.checkpoint_name in trained,
    )


def _wanted_of_adapter(source: Checkpoint) -> list[WantedTensor]:
    arrays = adapter_arrays(source) if source.lora is not None else {}

    def pack(name: str, qtype: QuantType) -> PackedRows:
        return quantize(arrays[name], qtype, name)

    f32 = quant_type("f32")
    return [
        WantedTensor(name, name, array.shape, f32, partial(pack, name))
        for name, array in arrays.items()
    ]


def _faults(
    file: GGUFFile,
    wanted: Sequence[WantedTensor],
    hashes: Mapping[str, str] = MappingProxyType({}),
    near: list[str] | None = None,
) -> Faults:
    """What is wrong with the tensors. `hashes`: of those whose blocks were chosen.

    With a list `near`, blocks may be any that stand for the weights; it gets the names of those
    that are not the rounded ones.
    """
    left_over = sorted(file.tensors.keys() - {tensor.name for tensor in wanted})
    faults = Faults(file, left_over, [], [], [], [], [])
    for tensor in wanted:
        found = file.tensors.get(tensor.name)
        if found is None:
            faults.missing.append(tensor)
        elif found.shape != tensor.shape:
            faults.other_shape.append(tensor)
        elif found.ggml_type != tensor.stored.ggml_type:
            faults.other_type.append(tensor)
        elif tensor.source in hashes and not tensor.is_trained:
            far = far_rows(rows_of(found), tensor)
            if len(far):
                faults.differing.append(Suspect(tensor, rows_of(found), far))
            elif hash_of_choice(tensor.weights(), rows_of(found)) != hashes[tensor.source]:
                faults.rehashed.append(tensor.name)
        elif not is_equal(found, tensor):
            others = None if near is None else far_rows(rows_of(found), tensor)
            if near is not None and others is not None and not len(others):
                near.append(tensor.name)
            else:
                faults.differing.append(Suspect(tensor, rows_of(found), others))
    return faults


def _adapter_text(target: VerifyTarget, faults: Faults) -> list[str]:
    """Says so where the differing tensors are those with, or without, the adapter merged in."""
    entries = {entry.gguf_name: entry for entry in tensor_specs(target.checkpoint.config)}
    merged = target.is_merged
    is_other = all(
        is_equal(
            faults.file.tensors[suspect.wanted.name],
            _wanted(entries[suspect.wanted.name], target, not merged),
        )
        for suspect in faults.differing
    )
    if not is_other:
        return []
    return [
        "the adapter is missing: the file holds the base and names no adapter; export it again"
        if merged
        else "the adapter is applied twice: merged into the file and named by it; export it again"
    ]
