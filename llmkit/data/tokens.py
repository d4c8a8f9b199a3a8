"""Token ids on disk, memory-mapped: training holds one batch of them in memory at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmkit.errors import DataError
from llmkit.files import written_beside
from llmkit.tokenizer import Tokenizer, safe_pieces

PIECES_PER_BATCH = 64


def write_token_file(path: Path, documents: Iterable[str], tokenizer: Tokenizer) -> int:
    """Write the ids of all documents, the end-of-text token after each; return the text's bytes.

    Little-endian uint16, or uint32 where the vocabulary needs it.
    """
    dtype = token_dtype(tokenizer.vocab_size)
    n_bytes = 0
    with written_beside(path) as beside, beside.open("wb") as file:
        pieces = _pieces(documents)
        while batch := list(islice(pieces, PIECES_PER_BATCH)):
            for ids, (text, ends) in zip(
                tokenizer.encode_batch([text for text, _ in batch]), batch, strict=True
            ):
                n_bytes += len(text.encode())
                if ends:
                    ids.append(tokenizer.end_of_text_id)
                file.write(np.asarray(ids, dtype).tobytes())
    return n_bytes


def open_token_file(path: Path, vocab_size: int) -> NDArray[np.integer]:
    """Map a token file; shape (n_tokens,). Raises DataError where it is missing or empty."""
    try:
        return np.memmap(path, dtype=token_dtype(vocab_size), mode="r")
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read token file {path}: {error}") from error


def windows(tokens: NDArray[np.integer], length: int, max_tokens: int) -> NDArray[np.int64]:
    """Non-overlapping windows (n, length + 1), spread evenly over the tokens.

    A window's last token is only predicted, never read. At least one window is returned; raises
    DataError where the tokens do not fill it.
    """
    n_there = (len(tokens) - 1) // length
    if n_there < 1:
        raise DataError(f"the text has {len(tokens)} tokens; at least {length + 1} are needed")
    n = max(1, min(n_there, max_tokens // length))
    starts = np.linspace(0, n_there - 1, n).astype(np.int64) * length
    return np.stack([tokens[start : start + length + 1] for start in starts]).astype(np.int64)


def split_documents(documents: Iterable[str], part: str) -> Iterator[str]:
    """The `train` or the `validation` part of documents: about a tenth is held out.

    Of many documents every tenth is held out whole; a copy of an earlier one goes where that
    went. Of fewer than 20, the last tenth of each is held out.
    """
    stream = iter(documents)
    first = list(islice(stream, 20))
    if len(first) < 20:
        for text in first:
            cut = len(text) - len(text) // 10
            if piece := text[:cut] if part == "train" else text[cut:]:
                yield piece
        return
    held_out: dict[bytes, bool] = {}
    for index, text in enumerate(chain(first, stream)):
        digest = hashlib.blake2b(text.strip().encode(), digest_size=8).digest()
        if held_out.setdefault(digest, index % 10 == 9) == (part == "validation"):
            yield text


def _pieces(documents: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """Pieces of documents, each with whether a document ends with it."""
    for text in documents:
        *inner, last = safe_pieces(text)
        for piece in inner:
            yield piece, False
        yield last, True


def token_dtype(vocab_size: int) -> np.dtype[np.integer]:
    """What a token file holds: uint16 where all ids fit, else uint32."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")
