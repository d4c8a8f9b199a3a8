"""How much memory llama.cpp takes to run a GGUF file on a CPU, from the file's sizes alone.

The formulas are those of llama.cpp's own allocations, as its log states them ("buffer size"):
tests/export/test_memory.py compares them with that log.
"""

from __future__ import annotations

from dataclasses import dataclass

import gguf

from llmkit.architectures.config import GPTConfig
from llmkit.export.gguf.adapter import adapter_of
from llmkit.export.gguf.names import TensorEntry, tensor_table
from llmkit.export.gguf.reader import GGUFFile, StoredTensor, config_of
from llmkit.export.gguf.writer import entry_type, n_tensor_bytes
from llmkit.quant import QuantType, quant_names, quant_type
from llmkit.quantization.tensor_types import Quantization

_PADDING = 256  # llama.cpp rounds the context up to a multiple of it
_BATCH = 512  # tokens of a prompt that are computed at once (n_ubatch)
_F16, _F32 = 2, 4  # bytes
# Matrices of these types are copied once more. The pages of the file that they came from can be
# given back.
_REPACKED = {qtype.ggml_type for qtype in map(quant_type, quant_names()) if qtype.is_repacked}
_REPACKED_ROWS = 8  # only whole groups of so many rows
_EMBEDDINGS = ("token_embd.weight", "position_embd.weight")  # looked up, not multiplied with


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

    Raises GGUFError for a file of another architecture than `gpt2`.
    """
    return _need(config_of(file), _weights(file) + _adapter_weights(file), context)


def memory_needed_as(file: GGUFFile, quantization: Quantization, context: int) -> MemoryNeed:
    """What the file would need in another quantization."""
    config = config_of(file)
    weights = _adapter_weights(file)
    for entry in tensor_table(config):
        weights += loaded_bytes(entry, entry_type(entry, quantization, config))
    return _need(config, weights, context)


def loaded_bytes(entry: TensorEntry, qtype: QuantType) -> int:
    """What one tensor takes, with its copy if it gets one."""
    n_bytes = n_tensor_bytes(entry, qtype)
    return 2 * n_bytes if _is_copied(entry.gguf_name, entry.shape, qtype.ggml_type) else n_bytes


def bytes_beside_weights(config: GPTConfig, context: int) -> int:
    """KV cache and compute buffer."""
    return _need(config, 0, context).total


def padded(context: int) -> int:
    """The context that llama.cpp makes room for."""
    return -(-context // _PADDING) * _PADDING


def repacked_bytes(tensor: StoredTensor) -> int:
    """Bytes of the copy that a CPU may make of a tensor."""
    copied = _is_copied(tensor.name, tensor.shape, tensor.ggml_type)
    return tensor.blocks.nbytes if copied else 0


def _is_copied(name: str, shape: tuple[int, ...], kind: gguf.GGMLQuantizationType) -> bool:
    return kind in _REPACKED and shape[0] % _REPACKED_ROWS == 0 and name not in _EMBEDDINGS


def _weights(file: GGUFFile) -> int:
    return sum(tensor.blocks.nbytes + repacked_bytes(tensor) for tensor in file.tensors.values())


def _adapter_weights(file: GGUFFile) -> int:
    adapter = adapter_of(file)
    return _weights(adapter) if adapter else 0


def _need(config: GPTConfig, weights: int, context: int) -> MemoryNeed:
    context = min(context, config.context_length)
    return MemoryNeed(weights, _kv_cache(config, context), _compute_buffer(config, context))


def _kv_cache(config: GPTConfig, context: int) -> int:
    return 2 * config.n_layer * padded(context) * config.n_embd * _F16


def _compute_buffer(config: GPTConfig, context: int) -> int:
    """The wider of two moments of the graph, and the logits that are handed out.

    In a feed-forward layer its input and output are there, (batch, 4 C) each, beside the mask of
    attention (batch, context) in f16; at the end the logits (batch, V) beside three (batch, C).
    A model of one layer takes less: no later one needs the mask.
    """
    batch = min(_BATCH, context)
    feed_forward = 2 * config.n_ff * _F32 + padded(context) * _F16
    logits = (config.vocab_size + 3 * config.n_embd) * _F32
    return batch * max(feed_forward, logits) + config.vocab_size * _F32
