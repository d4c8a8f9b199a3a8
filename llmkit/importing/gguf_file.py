"""A GGUF file back into a checkpoint: weights dequantized, tokens and prompt format as they are."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import gguf
import numpy as np
import torch
from tokenizers import models

from llmkit.architectures.base import ModelConfig
from llmkit.architectures.registry import tensor_specs
from llmkit.checkpoint.checkpoint import load_checkpoint
from llmkit.checkpoint.config import CheckpointConfig, save_config
from llmkit.checkpoint.layout import MODEL_FILE, TOKENIZER_FILE
from llmkit.checkpoint.tensors import write_tensors
from llmkit.errors import CheckpointError, ConfigError, GGUFError
from llmkit.export.gguf.keys import CHAT_TEMPLATE_KEY, LABELS_KEY
from llmkit.export.gguf.reader import GGUFFile, config_of, read_gguf
from llmkit.importing.assemble import Vocabulary
from llmkit.importing.facts import Fact, ImportOptions
from llmkit.importing.made import Import, staged
from llmkit.importing.prompt_formats import find_prompt_format
from llmkit.importing.reference import ReferenceLogits, check_reference, prove
from llmkit.importing.steps import Step
from llmkit.importing.tokenizers.imported import completed
from llmkit.tokenizer import END_OF_TEXT, GPT2_SPLIT, LLAMA3_SPLIT, Tokenizer, byte_level

_KEYS = gguf.Keys.Tokenizer
_SPLITS = (GPT2_SPLIT, "gpt2", None, LLAMA3_SPLIT)


def is_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF files do."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def import_gguf(
    path: Path, out: Path, options: ImportOptions, reference: ReferenceLogits | None
) -> Import:
    """Write the checkpoint `out`. Raises LlmkitError for a file that llmkit has no family for."""
    if options != ImportOptions(prompt_format=options.prompt_format):
        raise ConfigError("a GGUF file states all of this itself; omit all but --prompt-format")
    file = read_gguf(path)
    config = _with_short_numbers(config_of(file))
    tokenizer, n_own = _tokenizer(file)
    if tokenizer.vocab_size != n_own:
        raise GGUFError(
            f"{path} lacks {tokenizer.vocab_size - n_own} of the tokens that llmkit needs: all "
            "bytes and one that ends a text; import the checkpoint that it was made from"
        )
    end_id = file.metadata.get(_KEYS.EOS_ID)
    end = tokenizer.tokens[end_id] if isinstance(end_id, int) else END_OF_TEXT
    template = file.metadata.get(CHAT_TEMPLATE_KEY)
    form, notes = find_prompt_format(options, template, end, tokenizer)
    specs = [spec for spec in tensor_specs(config) if not spec.is_absent]
    for spec in specs:
        stored = file.tensors.get(spec.gguf_name)
        if stored is None or stored.shape != spec.shape:
            found = "is missing" if stored is None else f"has shape {stored.shape}"
            raise GGUFError(f"{path}: tensor {spec.gguf_name} {found}; copy the file again")
    types = sorted({stored.ggml_type.name.lower() for stored in file.tensors.values()})
    rounded = [name for name in types if name not in ("f32", "f16", "bf16")]
    if rounded:
        notes.append(
            f"weights of type {', '.join(rounded)} were dequantized: they are the rounded ones, "
            "not those that were trained"
        )
    with staged(out) as folder:
        write_tensors(
            folder / MODEL_FILE,
            {spec.checkpoint_name: spec.shape for spec in specs},
            {
                spec.checkpoint_name: lambda s=spec: torch.from_numpy(  # type: ignore[misc]
                    file.tensors[s.gguf_name].dequantized()
                ).view(s.shape)
                for spec in specs
            },
            {"step": "0"},
        )
        tokenizer.save(folder / TOKENIZER_FILE)
        labels = tuple(json.loads(str(file.metadata.get(LABELS_KEY, "[]"))))
        save_config(folder, CheckpointConfig(config, form, labels))
        checkpoint = load_checkpoint(folder)
        proof = None
        if reference is not None:
            check_reference(reference, config.vocab_size, config.context_length)
            proof = prove(checkpoint.load_model(), reference, Vocabulary(config.vocab_size, 0))
            if not proof.passed:
                raise CheckpointError(
                    f"the logits differ from the reference by up to {proof.max_difference:.3g} "
                    f"(limit {proof.limit:.1g})"
                )
    steps = [Step(f"{len(specs)} tensors", "the same tensors", f"from {', '.join(types)}")]
    facts = [("n_head", Fact(config.n_head, "the file"))]
    kind = f"GGUF file, {file.metadata.get(gguf.Keys.General.ARCHITECTURE)}"
    name = str(file.metadata.get(gguf.Keys.General.NAME, path.stem))
    return Import(out, name, kind, config, steps, facts, "the file", notes, proof, None)


def _with_short_numbers(config: ModelConfig) -> ModelConfig:
    """Floats that a file keeps in float32 as the decimals that they were: 1e-5, not 9.99e-6."""
    values = {
        field.name: float(str(np.float32(value)))
        for field in fields(config)
        if isinstance(value := getattr(config, field.name), float)
    }
    return replace(config, **values)


def _tokenizer(file: GGUFFile) -> tuple[Tokenizer, int]:
    """The tokenizer, and how many tokens the file has."""
    found = {key: file.metadata.get(key) for key in (_KEYS.LIST, _KEYS.MERGES, _KEYS.TOKEN_TYPE)}
    tokens, merges, kinds = found.values()
    pre = file.metadata.get(_KEYS.PRE)
    if file.metadata.get(_KEYS.MODEL) != "gpt2" or pre not in _SPLITS:
        raise GGUFError(
            f"{file.path} has the tokenizer {file.metadata.get(_KEYS.MODEL)} with the split {pre}; "
            "llmkit reads byte-level BPE with GPT-2's or Llama 3's split"
        )
    if not isinstance(tokens, list) or not isinstance(merges, list):
        raise GGUFError(f"{file.path} has no tokens or merges; copy the file again")
    control = gguf.TokenType.CONTROL
    special = [t for t, kind in zip(tokens, kinds or [], strict=False) if kind == control]
    vocab = {str(token): number for number, token in enumerate(tokens)}
    pairs = [(left, right) for left, right in (str(merge).split(" ") for merge in merges)]
    try:
        hf = byte_level(models.BPE(vocab=vocab, merges=pairs, ignore_merges=pre == LLAMA3_SPLIT))
    except Exception as error:  # the library raises bare Exception
        raise GGUFError(f"{file.path}: its merges do not fit its tokens: {error}") from error
    return completed(hf, len(tokens), "the file", special, ()).tokenizer, len(tokens)
