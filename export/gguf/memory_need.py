"""How much memory llama.cpp takes to run a GGUF file on a CPU, from the file's sizes alone.

The formulas are those of llama.cpp's own allocations, as its log states them ("buffer size"):
tests/export/test_memory.py compares them with that log. Of GPT-2 they are exact; of architectures
with a gated feed-forward layer the compute buffer is an estimate.
"""

from __future__ import annotations

from dataclasses import dataclass

import gguf

from llmkit.architectures.base import ModelConfig, Role, TensorSpec
from llmkit.export.gguf.adapter import adapter_of
from llmkit.export.gguf.reader import GGUFFile
from llmkit.export.gguf.sizes import ModelSizes, sizes_of, sizes_of_config, specs_of
from llmkit.export.gguf.writer import n_tensor_bytes
from llmkit.quant import QuantType, quant_names, quant_type
from llmkit.quantization.tensor_types import Quantization

_PADDING = 256  # llama.cpp rounds the context up to a multiple of it
_BATCH = 512  # tokens of a prompt that are computed at once (n_ubatch)
_F16, _F32 = 2, 4  # bytes
# Matrices of these types are copied once more. The pages of the file that they came from can be
# given back.
_REPACKED = {qtype.ggml_type for qtype in map(quant_type, quant_names()) if qtype.is_repacked}
_REPACKED_ROWS = 8  # only whole groups of so many rows


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes of each part."""

    weights: int  # tensors of the file, copies for the CPU's kernels, and an adapter
    kv_cache: int  # keys and values as f16
    compute_buffer: int  # intermediate tensors, and the logits

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return self.weights + self.kv_cache + self.compute_buffer


def memory_needed(file: GGUFFile, context: int) -> MemoryNeed:
    """What a file needs with room for `context` tokens; no more than the model's own context.

    Raises GGUFError for a file that does not state the model's sizes.
    """
    weights = _stored_bytes(file) + repacked_bytes(file) + _adapter_weights(file)
    return _need(sizes_of(file), weights, context)


def memory_needed_as(file: GGUFFile, quantization: Quantization, context: int) -> MemoryNeed:
    """What the file would need in another quantization."""
    sizes, weights = sizes_of(file), _adapter_weights(file)
    for entry in specs_of(file):
        if entry.is_matrix:
            weights += loaded_bytes(entry, quantization.type_of(entry, sizes))
        else:
            weights += file.tensors[entry.gguf_name].blocks.nbytes
    return _need(sizes, weights, context)


def loaded_bytes(entry: TensorSpec, qtype: QuantType) -> int:
    """What one tensor takes, with its copy if it gets one."""
    n_bytes = n_tensor_bytes(entry, qtype)
    return 2 * n_bytes if _is_copied(entry, qtype.ggml_type) else n_bytes


def bytes_beside_weights(config: ModelConfig, context: int) -> int:
    """KV cache and compute buffer."""
    return _need(sizes_of_config(config), 0, context).total


def padded(context: int) -> int:
    """The context that llama.cpp makes room for."""
    return -(-context // _PADDING) * _PADDING


def repacked_bytes(file: GGUFFile) -> int:
    """Bytes of the copies that a CPU may make of a model's tensors."""
    stored = ((spec, file.tensors[spec.gguf_name]) for spec in specs_of(file))
    return sum(
        tensor.blocks.nbytes for spec, tensor in stored if _is_copied(spec, tensor.ggml_type)
    )


def _is_copied(tensor: TensorSpec, kind: gguf.GGMLQuantizationType) -> bool:
    is_looked_up = tensor.role is Role.TOKEN_EMBEDDING  # rows by id, not multiplied with
    return (
        kind in _REPACKED
        and tensor.is_matrix
        and tensor.shape[-2] % _REPACKED_ROWS == 0
        and not is_looked_up
    )


def _stored_bytes(file: GGUFFile) -> int:
    return sum(tensor.blocks.nbytes for tensor in file.tensors.values())


def _adapter_weights(file: GGUFFile) -> int:
    adapter = adapter_of(file)
    return _stored_bytes(adapter) if adapter else 0


def _need(sizes: ModelSizes, weights: int, context: int) -> MemoryNeed:
    context = min(context, sizes.context_length)
    return MemoryNeed(
        weights,
        kv_cache=sizes.n_cached * padded(context) * _F16,
        compute_buffer=_compute_buffer(sizes, context),
    )


def _compute_buffer(sizes: ModelSizes, context: int) -> int:
    """The wider of two moments of the graph, and the logits that are handed out.

    In a feed-forward layer its intermediate tensors are there beside the mask of attention
    (batch, context) in f16; at the end the logits (batch, V) beside three (batch, C).
    A model of one layer takes less: no later one needs the mask.
    """
    feed_forward = sizes.n_feed_forward * _F32 + padded(context) * _F16
    logits = (sizes.vocab_size + 3 * sizes.n_embd) * _F32
    return min(_BATCH, context) * max(feed_forward, logits) + sizes.vocab_size * _F32
