"""Token ids on disk, memory-mapped: training holds one batch of them in memory at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmkit.data.sources import Piece
from llmkit.errors import DataError
from llmkit.files import written_beside
from llmkit.tokenizer import Tokenizer

BATCH_CHARACTERS = 1 << 20  # the tokenizer takes a few hundred bytes for each
PARTS = ("train", "validation")


@dataclass(frozen=True)
class Counts:
    """What a token file holds; `bytes` are those of its text."""

    tokens: int = 0
    documents: int = 0
    bytes: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.tokens + other.tokens, self.documents + other.documents, self.bytes + other.bytes
        )


def write_tokens(
    files: Mapping[str, Path], pieces: Iterable[tuple[str, Piece]], tokenizer: Tokenizer
) -> dict[str, Counts]:
    """Write the ids of each part's pieces into its file; return what the files hold.

    The end-of-text token follows each document. Little-endian uint16, or uint32 where the
    vocabulary needs it.
    """
    dtype = token_dtype(tokenizer.vocab_size)
    counts = dict.fromkeys(files, Counts())
    with ExitStack() as stack:
        opened = {
            part: stack.enter_context(stack.enter_context(written_beside(path)).open("wb"))
            for part, path in files.items()
        }
        for batch, encoded in _encoded(pieces, tokenizer):
            for (part, piece), ids in zip(batch, encoded, strict=True):
                if piece.ends:
                    ids.append(tokenizer.end_of_text_id)
                opened[part].write(np.asarray(ids, dtype).tobytes())
                counts[part] += Counts(len(ids), piece.ends, len(piece.text.encode()))
    return counts


_Batch = list[tuple[str, Piece]]


def _encoded(
    pieces: Iterable[tuple[str, Piece]], tokenizer: Tokenizer
) -> Iterator[tuple[_Batch, list[list[int]]]]:
    """Batches with their ids. One is encoded while the next is read."""
    with ThreadPoolExecutor(1) as thread:
        before: tuple[_Batch, Future[list[list[int]]]] | None = None
        for batch in _batches(pieces):
            future = thread.submit(tokenizer.encode_batch, [piece.text for _, piece in batch])
            if before is not None:
                yield before[0], before[1].result()
            before = batch, future
        if before is not None:
            yield before[0], before[1].result()


def _batches(pieces: Iterable[tuple[str, Piece]]) -> Iterator[_Batch]:
    batch: _Batch = []
    size = 0
    for part, piece in pieces:
        batch.append((part, piece))
        size += len(piece.text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def open_token_file(path: Path, vocab_size: int) -> NDArray[np.integer]:
    """Map a token file; shape (n_tokens,). Raises DataError where it is missing or empty."""
    try:
        return np.memmap(path, dtype=token_dtype(vocab_size), mode="r")
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read token file {path}: {error}") from error


class TokenShards:
    """Token files read as one sequence of ids."""

    def __init__(self, shards: Iterable[NDArray[np.integer]]) -> None:
        self.shards = list(shards)
        self.ends = np.cumsum([len(shard) for shard in self.shards])

    def __len__(self) -> int:
        return int(self.ends[-1]) if self.shards else 0

    def read(self, start: int, length: int) -> NDArray[np.int64]:
        """`length` ids from `start` on, which may lie in several files."""
        parts = []
        shard = int(np.searchsorted(self.ends, start, side="right"))
        while length:
            first = start - int(self.ends[shard]) + len(self.shards[shard])
            part = self.shards[shard][first : first + length]
            parts.append(part)
            start, length, shard = start + len(part), length - len(part), shard + 1
        return np.concatenate(parts).astype(np.int64)


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


FEW_DOCUMENTS = 200


def split_pieces(read: Callable[[], Iterable[Piece]]) -> Iterator[tuple[str, Piece]]:
    """The pieces that `read` gives, each with its part: about a tenth is held out.

    A document is held out by a hash of its first piece, so copies go together and no order or
    memory is needed. Of fewer than 200 documents the last tenth of each is held out.
    """
    lengths = _lengths_of_few(read())
    return _cut(read(), lengths) if lengths is not None else _by_hash(read())


def _lengths_of_few(pieces: Iterable[Piece]) -> list[int] | None:
    """Characters of each document; None where there are not few."""
    lengths, length = [], 0
    for piece in pieces:
        length += len(piece.text)
        if piece.ends:
            lengths.append(length)
            length = 0
            if len(lengths) == FEW_DOCUMENTS:
                return None
    return lengths


def _cut(pieces: Iterable[Piece], lengths: list[int]) -> Iterator[tuple[str, Piece]]:
    left = iter(lengths)
    n_train = n_held_out = 0  # characters left of the document
    for piece in pieces:
        if not n_train and not n_held_out:
            length = next(left)
            n_held_out = length // 10
            n_train = length - n_held_out
        head, tail = piece.text[:n_train], piece.text[n_train:]
        if head:
            n_train -= len(head)
            yield "train", Piece(head, not n_train)
        if tail:
            n_held_out -= len(tail)
            yield "validation", Piece(tail, not n_held_out)


def _by_hash(pieces: Iterable[Piece]) -> Iterator[tuple[str, Piece]]:
    part = ""  # of the document that has begun
    for piece in pieces:
        if not part:
            digest = hashlib.blake2b(piece.text.strip().encode(), digest_size=8).digest()
            part = "train" if int.from_bytes(digest) % 10 else "validation"
        yield part, piece
        if piece.ends:
            part = ""


def token_dtype(vocab_size: int) -> np.dtype[np.integer]:
    """What a token file holds: uint16 where all ids fit, else uint32."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")
