"""A checkpoint as a folder that Hugging Face's transformers and PEFT read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmkit.architectures.base import HEAD, HuggingFace, TensorSpec
from llmkit.architectures.registry import (
    family_of,
    head_spec,
    in_llama_cpp,
    model_without_weights,
    tensor_specs,
)
from llmkit.checkpoint.checkpoint import Checkpoint, load_checkpoint
from llmkit.checkpoint.config import refuse_checkpoint
from llmkit.checkpoint.layout import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_FILE,
    CONFIG_FILE,
    MODEL_FILE,
    TOKENIZER_FILE,
)
from llmkit.checkpoint.tensors import TensorReader, check_tensor, write_tensors
from llmkit.errors import ConfigError
from llmkit.export.model_card import MODEL_CARD, model_card
from llmkit.files import StrPath, all_or_nothing, write_text, written_beside
from llmkit.lora import peft_config
from llmkit.modelfiles.prompt_format import END_OF_TEXT

_HELLO_WORLD = [15496, 995]  # the ids of GPT-2's own tokenizer
GENERATION_FILE = "generation_config.json"
_OPTIONAL = {GENERATION_FILE, ADAPTER_FILE, ADAPTER_CONFIG_FILE}  # not in every folder


@dataclass(frozen=True)
class HFExport:
    """A folder that transformers loads."""

    folder: Path
    files: list[str]
    notes: list[str]  # what the folder cannot say, or other programs make otherwise of it


def export_to_hf(
    checkpoint: StrPath, out: StrPath, *, name: str | None = None, merge: bool = False
) -> HFExport:
    """Write weights, tokenizer, settings and a model card into the folder `out`.

    A LoRA adapter lies beside the weights as PEFT reads it, or with `merge` becomes part of them.
    Weights that were trained as quantized blocks are written as the numbers of the blocks. NAME
    is the checkpoint folder's unless given. The model card has the proofs of GGUF files of this
    checkpoint that were exported to `out` before. Raises LlmkitError: damaged checkpoint, a family
    that transformers lacks, a folder that is a checkpoint, full disk.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    source = load_checkpoint(checkpoint)
    if merge and source.lora is None:
        raise ConfigError(f"{checkpoint} has no adapter to merge; omit --merge")
    theirs = family_of(source.config).huggingface
    if theirs.config is None:
        raise ConfigError(f"transformers has no model of the family {source.config.architecture}")
    refuse_checkpoint(out)
    name = name or checkpoint.resolve().name
    is_apart = source.lora is not None and not merge
    texts = _settings(source, theirs.config(source.config, bool(source.labels)))
    if source.lora is not None and is_apart:
        source.add_adapter(model_without_weights(source.config))  # checks its names and shapes
        texts[ADAPTER_CONFIG_FILE] = peft_config(source.lora, name, family_of(source.config))
    files = {*texts, MODEL_FILE, TOKENIZER_FILE, MODEL_CARD, *([ADAPTER_FILE] if is_apart else [])}
    with all_or_nothing(out):
        with source.open_base() if is_apart else source.open_merged() as weights:
            tensors = _tensors(source, weights, theirs)
            step = (weights.metadata() or {}).get("step", "0")
            write_tensors(
                out / MODEL_FILE,
                {new: shape for new, (shape, _) in tensors.items()},
                {new: make for new, (_, make) in tensors.items()},
                {"format": "pt", "step": step},
            )
        if is_apart:
            with written_beside(out / ADAPTER_FILE) as beside:
                shutil.copyfile(source.adapter_file, beside)
        source.tokenizer.save(out / TOKENIZER_FILE)
        for file, content in texts.items():
            write_text(out / file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        write_text(out / MODEL_CARD, model_card(source, name, out, is_merged=not is_apart))
        for other in _OPTIONAL - files:  # of what was exported to the folder before
            (out / other).unlink(missing_ok=True)
    return HFExport(out, sorted(files), _notes(source, is_apart=is_apart))


def _settings(source: Checkpoint, config: dict[str, Any]) -> dict[str, Any]:
    """Contents of the JSON files, by name."""
    form, labels = source.prompt_format, source.labels
    bos_eos_pad = (END_OF_TEXT, form.end, END_OF_TEXT)
    names = ("bos_token", "eos_token", "pad_token")
    special = dict(zip(names, bos_eos_pad, strict=True))
    ids = {f"{name}_id": source.tokenizer.special_id(token) for name, token in special.items()}
    settings = {
        CONFIG_FILE: {
            **config,
            **ids,
            **({"id2label": dict(enumerate(labels))} if labels else {}),
            **({"label2id": {label: i for i, label in enumerate(labels)}} if labels else {}),
            "dtype": "float32",
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",  # tokenizer.json as it is
            **special,
            "add_bos_token": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": source.config.context_length,
            "chat_template": form.chat_template,
        },
        "special_tokens_map.json": special,
    }
    if not labels:
        settings[GENERATION_FILE] = {**ids, "eos_token_id": sorted(source.stop_ids)}
    return settings


def _tensors(
    source: Checkpoint, weights: TensorReader, theirs: HuggingFace
) -> dict[str, tuple[tuple[int, ...], Callable[[], Tensor]]]:
    """Shape of each tensor and how it is made, by its name in transformers."""

    def is_turned(spec: TensorSpec) -> bool:
        return theirs.is_in_out and spec.is_block_matrix

    def make(spec: TensorSpec) -> Tensor:
        if spec.is_absent:
            return torch.zeros(spec.shape)
        tensor = weights.get_tensor(spec.checkpoint_name)
        check_tensor(weights.path, spec.checkpoint_name, tensor, spec.shape)
        return (tensor.T if is_turned(spec) else tensor).float().contiguous()

    found: dict[str, tuple[tuple[int, ...], Callable[[], Tensor]]] = {}
    for spec in tensor_specs(source.config):
        name = spec.checkpoint_name
        if name != HEAD or not source.labels:
            new = name if name == HEAD else theirs.prefix + name
            shape = spec.shape[::-1] if is_turned(spec) else spec.shape
            found[new] = (shape, partial(make, spec))
    if source.labels:
        head = head_spec(source.config)
        shape = (len(source.labels), source.config.n_embd)
        found[theirs.label_head] = (shape, lambda: make(head)[source.label_ids])
    return found


def _notes(source: Checkpoint, *, is_apart: bool) -> list[str]:
    notes = []
    if any(spec.is_absent for spec in tensor_specs(source.config)):
        notes.append(
            "the model has no bias of queries, keys and values; transformers needs one, so zeros "
            "were written, which `llmkit import` leaves out again"
        )
    if quant := source.base_quant or source.qat:
        notes.append(f"the matrices have the numbers of their {quant} blocks")
    if is_apart and family_of(source.config).huggingface.is_in_out:
        notes.append(
            "llama.cpp's convert_lora_to_gguf.py swaps the matrices of this adapter; `llmkit "
            "export` writes its GGUF file"
        )
    if not source.labels:
        if in_llama_cpp(source.config, lambda _: "f32")[0] != source.config:
            notes.append(
                "llama.cpp's convert_hf_to_gguf.py ignores the activation, so its file computes "
                "something else; `llmkit export` writes a correct one"
            )
        if source.tokenizer.encode("Hello world") != _HELLO_WORLD:
            notes.append(
                "llama.cpp's convert_hf_to_gguf.py knows tokenizers by a hash and refuses this "
                "one; `llmkit export` writes the GGUF file"
            )
    return notes
