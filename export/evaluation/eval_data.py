"""The text on which a model and its file are compared."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmkit.checkpoint.checkpoint import Checkpoint
from llmkit.data.sources import read_documents
from llmkit.data.tales import tales
from llmkit.data.tokens import open_token_file, windows
from llmkit.errors import DataError
from llmkit.export.gguf.reader import GGUFFile
from llmkit.export.llamacpp.runtime import LlamaCpp
from llmkit.finetuning.examples import Example
from llmkit.finetuning.held_out import held_out_examples

N_PROMPTS, PROMPT_TOKENS = 100, 16
MAX_PROMPT_TEXT = 50_000  # tokens that the prompts are taken from
# Of a long text with a short label one token counts: without a bound it would take minutes.
READ_PER_COUNTED = 4
MAX_WINDOW = 512  # tokens, as llama-perplexity reads a text of a model with a long context
TALES_SEED, N_TALES = 2, 60
BEGINNING = 40  # characters
Item = TypeVar("Item")


@dataclass(frozen=True)
class TextSequence:
    """Token ids (T + 1,), and after which of the first T the next token counts.

    All count in running text; of a conversation only what the model itself has to say.
    """

    ids: NDArray[np.int64]
    counts: NDArray[np.bool_]

    @property
    def inputs(self) -> Tensor:
        """What the model reads: (T,)."""
        return torch.from_numpy(self.ids[:-1])

    @property
    def targets(self) -> Tensor:
        """What follows each: (T,)."""
        return torch.from_numpy(self.ids[1:])


def held_out_sequences(
    checkpoint: Checkpoint, data: Path | None, max_tokens: int
) -> list[TextSequence]:
    """Sequences of `data`, or of what training held out; T is at most the context.

    Raises DataError where there is no text or too little of it.
    """
    if data is None and checkpoint.held_out_file.exists():
        return _records(held_out_examples(checkpoint), checkpoint, max_tokens)
    return _windows(checkpoint, _tokens(checkpoint, data), data, max_tokens)


def compared_sequences(
    checkpoint: Checkpoint, data: Path | None, max_tokens: int
) -> list[TextSequence]:
    """The same, but of a classifier only where a label follows: it has nothing else to say.

    Raises DataError also where none does.
    """
    found = held_out_sequences(checkpoint, data, max_tokens)
    if not checkpoint.labels:
        return found
    labels = np.asarray(checkpoint.label_ids)
    answers = [
        TextSequence(text.ids, text.counts & np.isin(text.ids[1:], labels)) for text in found
    ]
    answers = [text for text in answers if text.counts.any()]
    if not answers:
        raise DataError(
            f"{data or checkpoint.folder}: no text ends with a label of the classifier; omit "
            "--data to compare on the records that fine-tuning held out"
        )
    return answers


def proof_sequences(
    checkpoint: Checkpoint, data: Path | None, max_tokens: int
) -> tuple[str, list[TextSequence]]:
    """The same with a name for what was taken; tales where nothing was held out.

    Any text shows whether two programs compute the same, what it costs only the model's own.
    """
    if data is not None:
        return str(data), held_out_sequences(checkpoint, data, max_tokens)
    for file in (checkpoint.held_out_file, checkpoint.validation_tokens_file):
        if file.exists():
            return str(file), held_out_sequences(checkpoint, data, max_tokens)
    text = "\n".join(islice(tales(TALES_SEED), N_TALES))
    tokens = np.asarray([*checkpoint.tokenizer.encode(text), checkpoint.tokenizer.end_of_text_id])
    return "built-in tales", _windows(checkpoint, tokens, data, max_tokens)


def file_sequences(file: GGUFFile, data: Path | None, max_tokens: int) -> list[TextSequence]:
    """Sequences of `data`, or of built-in tales, cut by a file's own tokenizer.

    They begin as the file wants it, and are at most MAX_WINDOW tokens long. Raises DataError where
    the text has not two tokens.
    """
    documents = read_documents(data) if data else islice(tales(TALES_SEED), N_TALES)
    with LlamaCpp(file.path) as llama:
        ids = file_tokens(llama, documents)
        length = min(llama.context_length - llama.adds_bos, MAX_WINDOW, len(ids) - 1)
        if length < 1:
            raise DataError(f"{data}: the text needs at least two tokens")
        found = [
            np.asarray(llama.with_bos(ids.tolist()))
            for ids in windows(np.asarray(ids), length, max_tokens)
        ]
        # What follows the token that begins all texts, nothing can foretell.
        return [TextSequence(ids, np.arange(len(ids) - 1) >= llama.adds_bos) for ids in found]


def tale_beginnings(n: int) -> list[str]:
    """Texts of a few words, to be continued."""
    return [tale[:BEGINNING] for tale in islice(tales(TALES_SEED), n)]


def file_tokens(llama: LlamaCpp, documents: Iterable[str]) -> list[int]:
    """Ids of texts, with the token between them that a file has for it."""
    # A chat's texts end with another token than answers do: with the one that texts begin with.
    ends = [token_id for token_id in (llama.bos_id, llama.eos_id) if token_id >= 0][:1]
    return [token for text in documents for token in (*llama.tokenize(text), *ends)]


def _windows(
    checkpoint: Checkpoint, tokens: NDArray[np.integer], data: Path | None, max_tokens: int
) -> list[TextSequence]:
    if len(tokens) < 2:
        raise DataError(f"{data or checkpoint.folder}: the text needs at least two tokens")
    found = windows(tokens, min(checkpoint.config.context_length, len(tokens) - 1), max_tokens)
    if found.max() >= checkpoint.config.vocab_size:
        raise DataError(
            f"{checkpoint.validation_tokens_file} has token id {found.max()}, but the model has "
            f"{checkpoint.config.vocab_size} tokens; pass another text with --data"
        )
    return [TextSequence(window, np.ones(len(window) - 1, bool)) for window in found]


def proof_prompts(checkpoint: Checkpoint, data: Path | None) -> list[list[int]]:
    """Up to N_PROMPTS beginnings: a conversation's up to its answer, else pieces of the text."""
    _, texts = proof_sequences(checkpoint, data, MAX_PROMPT_TEXT)
    conversations = [text for text in texts if not text.counts.all()]
    if conversations:
        found = [text.ids[: int(text.counts.argmax()) + 1] for text in conversations]
    else:
        size = min(PROMPT_TOKENS, max(1, len(texts[0].inputs) // 2))
        found = [
            text.ids[start : start + size]
            for text in texts
            for start in range(0, len(text.inputs) - size, size)
        ]
    return [ids.tolist() for ids in _spread(found, N_PROMPTS)]


def _records(
    examples: list[Example], checkpoint: Checkpoint, max_tokens: int
) -> list[TextSequence]:
    """As many records as have `max_tokens` that count, one at least, from all over the part."""
    found = [
        TextSequence(np.asarray(example.ids, np.int64), np.asarray(example.is_answer)[1:])
        for example in examples
        if 2 <= len(example.ids) <= checkpoint.config.context_length + 1
    ]
    if not found:
        raise DataError(f"{checkpoint.held_out_file} has no records; pass a text with --data")
    n_counted = sum(int(text.counts.sum()) for text in found)
    n_read = sum(len(text.inputs) for text in found)
    share = max_tokens / max(n_counted, n_read / READ_PER_COUNTED)
    return _spread(found, max(1, int(len(found) * share)))


def _spread(items: list[Item], n: int) -> list[Item]:
    """At most n of the items, evenly spread."""
    places = np.linspace(0, len(items) - 1, min(n, len(items))).astype(int)
    return [items[place] for place in places]


def _tokens(checkpoint: Checkpoint, data: Path | None) -> NDArray[np.integer]:
    if data is None:
        if not checkpoint.validation_tokens_file.exists():
            raise DataError(f"{checkpoint.folder} has no held-out text; pass a text with --data")
        return open_token_file(checkpoint.validation_tokens_file, checkpoint.config.vocab_size)
    ids: list[int] = []
    for text in read_documents(data):
        ids += [*checkpoint.tokenizer.encode(text), checkpoint.tokenizer.end_of_text_id]
    return np.asarray(ids)
