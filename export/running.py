"""Generating text from a checkpoint in PyTorch or from a GGUF file in llama.cpp, the same way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from llmkit.checkpoint import load_checkpoint
from llmkit.export.gguf_file import MAGIC
from llmkit.export.llama_cpp import LlamaCpp
from llmkit.generation import Sampling, generate_ids, prompt_ids, stream_text
from llmkit.model.device import choose_device


def generate(model: Path, prompt: str, sampling: Sampling | None = None) -> Iterator[str]:
    """Yield the text that follows `prompt`, piece by piece.

    `model`: a checkpoint folder or a GGUF file. The same sampler with the same seed works on
    both. Raises LlmkitError: a file that cannot be read, a prompt that fills the context.
    """
    sampling = sampling or Sampling()
    if is_gguf(model):
        yield from _from_gguf(model, prompt, sampling)
    else:
        yield from _from_checkpoint(model, prompt, sampling)


def is_gguf(path: Path) -> bool:
    """Whether a path is meant as a GGUF file: by its name or by its first bytes."""
    if path.suffix.lower() == ".gguf":
        return True
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _from_checkpoint(folder: Path, prompt: str, sampling: Sampling) -> Iterator[str]:
    checkpoint = load_checkpoint(folder)
    model = checkpoint.load_model(choose_device())
    tokenizer = checkpoint.tokenizer
    ids = prompt_ids(tokenizer.encode(prompt), tokenizer.end_of_text_id)
    new_ids = generate_ids(model, ids, sampling, tokenizer.end_of_text_id)
    yield from stream_text(tokenizer.decode_bytes([token_id]) for token_id in new_ids)


def _from_gguf(path: Path, prompt: str, sampling: Sampling) -> Iterator[str]:
    with LlamaCpp(path, exact=False) as llama:
        ids = prompt_ids(llama.tokenize(prompt), llama.bos_id)
        new_ids = _llama_ids(llama, ids, sampling)
        yield from stream_text(llama.token_bytes(token_id) for token_id in new_ids)


def _llama_ids(llama: LlamaCpp, prompt: list[int], sampling: Sampling) -> Iterator[int]:
    generator = sampling.generator()
    new = prompt
    for _ in range(sampling.limit(len(prompt), llama.n_ctx)):
        logits = torch.from_numpy(llama.evaluate(new, all_positions=False)[0])
        new = [sampling.choose(logits, generator)]
        if llama.is_end_of_generation(new[0]):
            return
        yield new[0]
