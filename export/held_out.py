"""The text on which a model and its file are compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmkit.checkpoint import Checkpoint
from llmkit.data.sources import read_documents
from llmkit.data.tokens import open_token_file, windows
from llmkit.errors import DataError


def held_out_windows(
    checkpoint: Checkpoint, data: Path | None, max_tokens: int
) -> NDArray[np.int64]:
    """Windows (n, T + 1) of `data`, or of what training held out; T is at most the context.

    Raises DataError where there is no text or too little of it.
    """
    tokens = _tokens(checkpoint, data)
    if len(tokens) < 2:
        raise DataError(f"{data or checkpoint.folder}: two tokens of text or more are needed")
    found = windows(tokens, min(checkpoint.config.context_length, len(tokens) - 1), max_tokens)
    if found.max() >= checkpoint.config.vocab_size:
        raise DataError(
            f"{checkpoint.validation_tokens_file} holds token {found.max()}, the model has "
            f"{checkpoint.config.vocab_size}; give other text with --data"
        )
    return found


def _tokens(checkpoint: Checkpoint, data: Path | None) -> NDArray[np.integer]:
    if data is None:
        if not checkpoint.validation_tokens_file.exists():
            raise DataError(
                f"{checkpoint.folder} has no held-out text of its training; give some with --data"
            )
        return open_token_file(checkpoint.validation_tokens_file, checkpoint.config.vocab_size)
    ids: list[int] = []
    for text in read_documents(data):
        ids += [*checkpoint.tokenizer.encode(text), checkpoint.tokenizer.end_of_text_id]
    return np.asarray(ids)
