"""Tokenizers by themselves: train one from text, and see what it does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmkit.console import progress
from llmkit.data.folders import content_bytes, note_left_out
from llmkit.data.prepared import checked_vocab_size, make_tokenizer, watched
from llmkit.data.sources import read_pieces
from llmkit.data.tokens import split_pieces
from llmkit.errors import ConfigError, DataError, unknown_name
from llmkit.files import StrPath
from llmkit.records.text_files import Reading
from llmkit.tokenizer import Tokenizer
from llmkit.tokenizer_files import load_tokenizer
from llmkit.tokenizer_training import KINDS

N_LONGEST = 10
MEASURED_BYTES = 1 << 22  # of held-out text


@dataclass(frozen=True)
class TokenizerStatistics:
    """A vocabulary, and what it makes of a text."""

    vocab_size: int
    n_merges: int
    looks_up_words: bool
    special: tuple[str, ...]
    longest: tuple[str, ...]  # the tokens with most bytes, if they have more than one
    n_bytes: int = 0  # of the text
    n_tokens: int = 0

    @property
    def bytes_per_token(self) -> float | None:
        """Of the text; None without one."""
        return self.n_bytes / self.n_tokens if self.n_tokens else None


def train_tokenizer(
    sources: StrPath | Sequence[StrPath],
    out: StrPath,
    *,
    kind: str = "bpe",
    vocab_size: int | None = None,
    text_column: str | None = None,
    delimiter: str | None = None,
    encoding: str = "utf-8",
) -> TokenizerStatistics:
    """Train a tokenizer on text and write it as the file `out`, a tokenizer.json.

    It is the tokenizer that `train` on the same text would make: of the part that is trained on.
    The statistics are of the held-out part. Raises LlmkitError: a kind that is not bpe, word or
    char, text that cannot be read, a file that is already there.
    """
    given = [sources] if isinstance(sources, str | Path) else sources
    paths, out = [Path(source) for source in given], Path(out)
    reading = Reading(text_column, None, delimiter, encoding)
    if kind not in KINDS:
        raise ConfigError(unknown_name("tokenizer", kind, KINDS))
    if out.exists():
        raise ConfigError(f"{out} already exists; choose another --out")
    size = checked_vocab_size(kind, vocab_size)
    total = content_bytes(paths)
    if not any(piece.text for _, piece in split_pieces(lambda: read_pieces(paths, reading))):
        raise DataError(f"{paths[0]} has no text to train on")
    for path in paths:
        note_left_out(path)
    with progress("train tokenizer", total, "bytes") as bar:
        pieces = split_pieces(lambda: read_pieces(paths, reading))
        made = make_tokenizer(kind, watched(pieces, bar), size, total)
    made.save(out)
    parts = split_pieces(lambda: read_pieces(paths, reading))
    return statistics(made, (piece.text for part, piece in parts if part == "validation"))


def tokenizer_statistics(tokenizer: StrPath, text: str = "") -> TokenizerStatistics:
    """Of a tokenizer file, or of a checkpoint's tokenizer. Raises CheckpointError."""
    return statistics(load_tokenizer(Path(tokenizer)), [text])


def statistics(tokenizer: Tokenizer, texts: Iterable[str]) -> TokenizerStatistics:
    """Of the vocabulary and the first bytes of texts."""
    n_bytes = n_tokens = 0
    for text in texts:
        n_bytes, n_tokens = n_bytes + len(text.encode()), n_tokens + len(tokenizer.encode(text))
        if n_bytes >= MEASURED_BYTES:
            break
    sizes = [len(tokenizer.decode_bytes([token_id])) for token_id in range(tokenizer.vocab_size)]
    longest = sorted(range(len(sizes)), key=lambda token_id: -sizes[token_id])[:N_LONGEST]
    return TokenizerStatistics(
        tokenizer.vocab_size,
        len(tokenizer.merges),
        tokenizer.looks_up_words,
        tuple(tokenizer.tokens[token_id] for token_id in sorted(tokenizer.special_ids)),
        tuple(token_text(tokenizer, token_id) for token_id in longest if sizes[token_id] > 1),
        n_bytes,
        n_tokens,
    )


def token_text(tokenizer: Tokenizer, token_id: int) -> str:
    """A token to be read; bytes that are no whole character in hexadecimal."""
    return tokenizer.decode_bytes([token_id]).decode("utf-8", errors="backslashreplace")
