"""Calibration text for quantization: the training text, unless another is given."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmkit.checkpoint.checkpoint import Checkpoint
from llmkit.data.sources import read_documents
from llmkit.data.tokens import open_token_file, windows
from llmkit.errors import DataError
from llmkit.finetuning.held_out import held_out_examples, trained_examples

DEFAULT_TOKENS = 32768
# Tokens that two texts must have in common, one after the other, to be called copies: what Lee et
# al. 2021 ("Deduplicating Training Data Makes Language Models Better") take.
COPIED_TOKENS = 50
# Of a multiplicative hash of 64 bits: the multiplier of Knuth's MMIX generator.
_MULTIPLIER = np.uint64(6364136223846793005)
_NOTHING = np.empty(0, np.uint64)


@dataclass(frozen=True)
class Calibration:
    """Token ids that a quantization is calibrated with, (n, T)."""

    source: str
    tokens: Tensor

    @property
    def sha256(self) -> str:
        """Hash of the ids and how they are laid out."""
        ids = np.ascontiguousarray(self.tokens.numpy().astype("<i8"))
        return hashlib.sha256(repr(ids.shape).encode() + ids.tobytes()).hexdigest()


def calibration_of(
    source: Checkpoint, data: Path | None = None, max_tokens: int = DEFAULT_TOKENS
) -> Calibration:
    """Pieces of `data`, or of what the checkpoint was trained on, as long as the context.

    What is measured on a text must not have been fitted to it: training text that repeats
    COPIED_TOKENS of the held-out text is left out, `data` that does anywhere is refused. Raises
    DataError for that, where there is no text, and for tokens that the model does not have.
    """
    if data is not None:
        return _of_file(source, data, max_tokens)
    if source.trained_file.exists():
        return _of_records(source, max_tokens)
    if not source.train_tokens_file.exists():
        raise DataError(
            f"{source.folder} has no training text; pass a calibration text with --calibration"
        )
    tokens = open_token_file(source.train_tokens_file, source.config.vocab_size)
    rows = _rows(source, tokens, max_tokens)
    kept = rows[~_copies(source, rows)]
    if not len(kept):
        raise DataError(
            f"{source.train_tokens_file} only repeats the held-out text; "
            "pass another text with --calibration"
        )
    return Calibration(str(source.train_tokens_file), torch.from_numpy(kept))


def _of_file(source: Checkpoint, data: Path, max_tokens: int) -> Calibration:
    ids: list[int] = []
    for text in read_documents(data):
        ids += [*source.tokenizer.encode(text), source.tokenizer.end_of_text_id]
    tokens = np.asarray(ids, np.int64)
    rows = _rows(source, tokens, max_tokens)
    if _copies(source, tokens[None]).any():
        raise DataError(
            f"{data} shares {COPIED_TOKENS} consecutive tokens with the held-out text, so a "
            "comparison would be biased; pass another text with --calibration"
        )
    return Calibration(str(data), torch.from_numpy(rows))


def _of_records(source: Checkpoint, max_tokens: int) -> Calibration:
    """Records one after the other, each row beginning with one: positions matter to a GPT."""
    length = source.config.context_length
    rows: list[list[int]] = []
    row: list[int] = []
    for example in trained_examples(source):
        row += example.ids
        if len(row) >= length:
            rows.append(row[:length])
            row = []
        if len(rows) * length >= max_tokens:
            break
    if not (rows or row):
        raise DataError(f"{source.trained_file} has no records; pass a text with --calibration")
    if not rows:
        rows = [row]
    return Calibration(str(source.trained_file), torch.tensor(rows))


def _rows(source: Checkpoint, tokens: NDArray[np.integer], max_tokens: int) -> NDArray[np.int64]:
    if len(tokens) < 2:
        raise DataError("the calibration text is too short: it needs at least two tokens")
    length = min(source.config.context_length, len(tokens) - 1)
    rows = windows(tokens, length, max_tokens)[:, :-1]
    if rows.max() >= source.config.vocab_size:
        raise DataError(
            f"{source.train_tokens_file} has token id {rows.max()}, but the model has "
            f"{source.config.vocab_size} tokens; pass another text with --calibration"
        )
    return rows


def _copies(source: Checkpoint, rows: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Which rows (n, T) have COPIED_TOKENS in a row in common with the held-out text."""
    held_out: list[NDArray[np.integer]] = []
    if source.validation_tokens_file.exists():
        held_out.append(open_token_file(source.validation_tokens_file, source.config.vocab_size))
    if source.held_out_file.exists():
        held_out += [np.asarray(example.ids) for example in held_out_examples(source)]
    known = np.concatenate([_NOTHING, *(_hashes(text[None])[0] for text in held_out)])
    found: NDArray[np.bool_] = np.any(np.isin(_hashes(rows), known), axis=1)
    return found


def _hashes(tokens: NDArray[np.integer]) -> NDArray[np.uint64]:
    """A hash of each COPIED_TOKENS tokens in a row: (n, T) -> (n, T - COPIED_TOKENS + 1)."""
    n = max(0, tokens.shape[1] - COPIED_TOKENS + 1)
    hashes = np.zeros((len(tokens), n), np.uint64)
    for place in range(COPIED_TOKENS):
        hashes *= _MULTIPLIER
        hashes += tokens[:, place : place + n].astype(np.uint64) + np.uint64(1)
    return hashes
