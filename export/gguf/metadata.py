"""The GGUF keys that llama.cpp and Ollama read of a `gpt2` model, from a checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import gguf
import numpy as np

from llmkit.architectures.registry import family_of
from llmkit.checkpoint.checkpoint import Checkpoint
from llmkit.export.gguf.keys import (
    ADAPTER_KEY,
    CHAT_TEMPLATE_KEY,
    LABELS_KEY,
    QUANTIZATION_KEY,
)
from llmkit.quant.types import FloatRows, PackedRows
from llmkit.quantization.tensor_types import Quantization, quantization_of
from llmkit.tokenizer import Tokenizer

# Keys of llmkit's own, which llama.cpp and Ollama pass over; more of them in keys.py.
# Of blocks that no rounding of the weights gives: how they were chosen, the hash of the text they
# were chosen with, and for each tensor the hash of its weights and blocks, as JSON.
METHOD_KEY = "llmkit.quantization.method"
CALIBRATION_KEY = "llmkit.quantization.calibration"
BLOCKS_KEY = "llmkit.quantization.blocks"
OF_QUANTIZATION = {
    gguf.Keys.General.FILE_TYPE,
    QUANTIZATION_KEY,
    METHOD_KEY,
    CALIBRATION_KEY,
    BLOCKS_KEY,
}


@dataclass(frozen=True)
class ChosenBlocks:
    """Blocks that are more than the rounded weights, by names in the checkpoint."""

    method: str
    calibration: str | None  # sha256 of the token ids; None: the checkpoint holds the blocks
    blocks: Mapping[str, PackedRows]
    hashes: Mapping[str, str]  # as `hash_of_choice` gives them; none where training chose


def hash_of_choice(weights: FloatRows, blocks: PackedRows) -> str:
    """The sha256 of a tensor's weights, row after row, and of the blocks chosen for them."""
    both = hashlib.sha256(np.ascontiguousarray(weights, np.float32).data)
    both.update(np.ascontiguousarray(blocks).data)
    return both.hexdigest()


@dataclass(frozen=True)
class MetadataEntry:
    """A key and its value with the value's GGUF type."""

    key: str
    value: str | int | float | bool | list[str] | list[int]
    kind: gguf.GGUFValueType


def quantization_entries(
    quantization: Quantization, chosen: ChosenBlocks | None
) -> list[MetadataEntry]:
    """What a file says of its blocks: the keys OF_QUANTIZATION, as far as they apply."""
    string = gguf.GGUFValueType.STRING
    file_type = int(quantization.file_type)
    entries = [MetadataEntry(gguf.Keys.General.FILE_TYPE, file_type, gguf.GGUFValueType.UINT32)]
    if quantization_of(quantization.file_type).name != quantization.name:
        entries.append(MetadataEntry(QUANTIZATION_KEY, quantization.name, string))
    if chosen is not None:
        entries.append(MetadataEntry(METHOD_KEY, chosen.method, string))
        if chosen.calibration is not None:
            entries.append(MetadataEntry(CALIBRATION_KEY, chosen.calibration, string))
            entries.append(MetadataEntry(BLOCKS_KEY, json.dumps(dict(chosen.hashes)), string))
    return entries


def metadata_of(
    checkpoint: Checkpoint,
    quantization: Quantization,
    name: str,
    adapter: str | None = None,
    chosen: ChosenBlocks | None = None,
) -> list[MetadataEntry]:
    """Every metadata entry of the file, in file order. `adapter`: the file that belongs to it."""
    config, tokenizer = checkpoint.config, checkpoint.tokenizer
    kind = gguf.GGUFValueType
    keys = gguf.Keys
    known = family_of(config)
    entries = [
        MetadataEntry(keys.General.ARCHITECTURE, known.name, kind.STRING),
        MetadataEntry(keys.General.TYPE, gguf.GGUFType.MODEL, kind.STRING),
        MetadataEntry(keys.General.NAME, name, kind.STRING),
        MetadataEntry(keys.General.QUANTIZATION_VERSION, int(gguf.GGML_QUANT_VERSION), kind.UINT32),
        *(
            MetadataEntry(size.key.format(arch=known.name), getattr(config, size.size), size.kind)
            for size in known.sizes
        ),
        # llama.cpp's tokenizer model `gpt2` is byte-level BPE, its pre the split into words.
        MetadataEntry(keys.Tokenizer.MODEL, "gpt2", kind.STRING),
        MetadataEntry(keys.Tokenizer.PRE, tokenizer.pre, kind.STRING),
        MetadataEntry(keys.Tokenizer.LIST, tokenizer.tokens, kind.ARRAY),
        MetadataEntry(keys.Tokenizer.TOKEN_TYPE, _token_types(tokenizer), kind.ARRAY),
        MetadataEntry(
            keys.Tokenizer.MERGES,
            [f"{left} {right}" for left, right in tokenizer.merges],
            kind.ARRAY,
        ),
        MetadataEntry(keys.Tokenizer.BOS_ID, tokenizer.end_of_text_id, kind.UINT32),
        MetadataEntry(keys.Tokenizer.EOS_ID, checkpoint.end_id, kind.UINT32),
        MetadataEntry(keys.Tokenizer.ADD_BOS, False, kind.BOOL),
        MetadataEntry(CHAT_TEMPLATE_KEY, checkpoint.prompt_format.chat_template, kind.STRING),
    ]
    entries += quantization_entries(quantization, chosen)
    if checkpoint.labels:
        labels = json.dumps(checkpoint.labels, ensure_ascii=False)
        entries.append(MetadataEntry(LABELS_KEY, labels, kind.STRING))
    if adapter is not None:
        entries.append(MetadataEntry(ADAPTER_KEY, adapter, kind.STRING))
    return entries


def adapter_metadata_of(checkpoint: Checkpoint, name: str) -> list[MetadataEntry]:
    """Every metadata entry of the adapter's file. Without a LoRA adapter: none of its own."""
    kind = gguf.GGUFValueType
    keys = gguf.Keys
    entries = [
        MetadataEntry(keys.General.ARCHITECTURE, checkpoint.config.architecture, kind.STRING),
        MetadataEntry(keys.General.TYPE, gguf.GGUFType.ADAPTER, kind.STRING),
        MetadataEntry(keys.General.NAME, name, kind.STRING),
        MetadataEntry(keys.Adapter.TYPE, "lora", kind.STRING),
    ]
    if checkpoint.lora is not None and checkpoint.lora.alpha is not None:
        entries.append(MetadataEntry(keys.Adapter.LORA_ALPHA, checkpoint.lora.alpha, kind.FLOAT32))
    return entries


def _token_types(tokenizer: Tokenizer) -> list[int]:
    """NORMAL, or CONTROL for special tokens: only those end a generation and are never text."""
    return [
        int(gguf.TokenType.CONTROL if token_id in tokenizer.special_ids else gguf.TokenType.NORMAL)
        for token_id in range(tokenizer.vocab_size)
    ]
