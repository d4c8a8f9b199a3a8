"""`data prepare`: text of any size to a folder of token shards that training maps into memory.

The folder holds `tokenizer.json`, `index.json` and for each shard and part `PART-N.tokens` (ids,
with the end-of-text token behind each document). A shard is about SHARD_BYTES of text; index.json
lists those that are whole. After a kill the next call reads past their text and goes on; the bytes
are the same in any case.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from hashlib import sha256
from itertools import groupby, islice
from operator import add
from pathlib import Path
from typing import Any

from llmkit.console import Progress, progress, say
from llmkit.data.folders import content_bytes, content_sha256, note_left_out
from llmkit.data.sources import Piece, read_pieces
from llmkit.data.tokens import (
    PARTS,
    Counts,
    TokenShards,
    open_token_file,
    split_pieces,
    write_tokens,
)
from llmkit.errors import ConfigError, DataError
from llmkit.files import StrPath, cannot_read, sha256_of, write_text
from llmkit.records.text_files import Reading
from llmkit.tokenizer import Tokenizer
from llmkit.tokenizer_files import download_gpt2, load_tokenizer
from llmkit.tokenizer_training import KINDS, train_kind

SHARD_BYTES = 1 << 26  # of text, about 16 million tokens: less than a minute of two cores
# Of text that a tokenizer is trained on. The library takes more than a kilobyte for each word that
# is new to it, and a gigabyte of English has two million.
TOKENIZER_BYTES = 1 << 25
DEFAULT_VOCAB_SIZE = 2048
INDEX_FILE, TOKENIZER_FILE = "index.json", "tokenizer.json"


@dataclass(frozen=True)
class Prepared:
    """A folder that `data prepare` has finished."""

    folder: Path
    vocab_size: int
    tokenizer_sha256: str
    shards: list[dict[str, Counts]]  # by part

    def total(self, part: str) -> Counts:
        """What all shards of a part hold."""
        return reduce(add, (shard[part] for shard in self.shards), Counts())

    def tokens(self, part: str) -> TokenShards:
        """The ids of a part, mapped into memory."""
        return TokenShards(
            open_token_file(_file(self.folder, part, n), self.vocab_size)
            for n, shard in enumerate(self.shards)
            if shard[part].tokens
        )

    def sha256(self) -> str:
        """What the data are known by."""
        return sha256((self.folder / INDEX_FILE).read_bytes()).hexdigest()


def is_prepared(data: Path) -> bool:
    """Whether a path is a folder that `data prepare` wrote."""
    return (data / INDEX_FILE).is_file() and (data / TOKENIZER_FILE).is_file()


def open_prepared(folder: Path) -> Prepared:
    """A prepared folder. Raises DataError where it is unfinished or damaged."""
    index = _read_index(folder)
    if not index["finished"]:
        raise DataError(f"{folder} is not finished; run the same `llmkit data prepare` again")
    if sha256_of([folder / TOKENIZER_FILE]) != index["tokenizer_sha256"]:
        raise DataError(f"{folder / TOKENIZER_FILE} has changed since the text was tokenized")
    shards = [
        {part: Counts(**counts) for part, counts in shard.items()} for shard in index["shards"]
    ]
    return Prepared(folder, index["vocab_size"], index["tokenizer_sha256"], shards)


def prepare_data(
    sources: StrPath | Sequence[StrPath],
    out: StrPath,
    *,
    tokenizer: str = "bpe",
    vocab_size: int | None = None,
    text_column: str | None = None,
    delimiter: str | None = None,
    encoding: str = "utf-8",
) -> Prepared:
    """Tokenize text files, JSONL, Parquet or folders of them into the shards of the folder `out`.

    A source may also be a pattern, or a data set of the hub: `hf:USER/NAME[:CONFIG]`.
    `tokenizer`: `bpe`, `word` or `char` (trained on the text), `gpt2`, a tokenizer file or its
    folder. An unfinished folder is continued, a finished one left alone.
    Raises DataError for what cannot be read and where `out` holds something else.
    """
    given = [sources] if isinstance(sources, str | Path) else sources
    paths, folder = [Path(source) for source in given], Path(out)
    reading = Reading(text_column, None, delimiter, encoding)
    if any(path.is_dir() and folder.resolve().is_relative_to(path.resolve()) for path in paths):
        raise ConfigError(f"{folder} is inside the source; choose another --out")
    settings: dict[str, Any] = {
        "data": content_sha256(paths),
        "reading": asdict(reading),
        "tokenizer": tokenizer,
        "vocab_size": checked_vocab_size(tokenizer, vocab_size),
        "shard_bytes": SHARD_BYTES,
    }
    index = _begun(folder, settings)
    if index is not None and index["finished"]:
        say(f"{folder} is already finished")
        return open_prepared(folder)

    def pieces() -> Iterator[tuple[str, Piece]]:
        return split_pieces(lambda: read_pieces(paths, reading))

    for path in paths:
        note_left_out(path)
    total = content_bytes(paths)
    if index is None:
        if not any(piece.text for _, piece in pieces()):
            raise DataError(f"{paths[0]} has no text")
        with progress("train tokenizer", total, "bytes") as bar:
            made = make_tokenizer(tokenizer, watched(pieces(), bar), settings["vocab_size"], total)
        made.save(folder / TOKENIZER_FILE)
        index = {
            "settings": settings,
            "vocab_size": made.vocab_size,
            "tokenizer_sha256": sha256_of([folder / TOKENIZER_FILE]),
            "shards": [],
            "finished": False,
        }
        _write_index(folder, index)
    with progress("tokenize", total, "bytes") as bar:
        _write_shards(folder, index, watched(pieces(), bar))
    return open_prepared(folder)


def _write_shards(folder: Path, index: dict[str, Any], pieces: Iterable[tuple[str, Piece]]) -> None:
    tokenizer = load_tokenizer(folder)
    for half_written in folder.glob(".*.tmp"):
        half_written.unlink()
    for n, shard in _in_shards(pieces):
        if n < len(index["shards"]):
            continue
        counts = write_tokens({part: _file(folder, part, n) for part in PARTS}, shard, tokenizer)
        index["shards"].append({part: asdict(counts[part]) for part in PARTS})
        _write_index(folder, index)
    _write_index(folder, index | {"finished": True})


def _in_shards(
    pieces: Iterable[tuple[str, Piece]],
) -> Iterator[tuple[int, Iterator[tuple[str, Piece]]]]:
    done = 0

    def shard_of(piece: tuple[str, Piece]) -> int:
        nonlocal done
        n = done // SHARD_BYTES
        done += len(piece[1].text.encode())
        return n

    return groupby(pieces, shard_of)


def _file(folder: Path, part: str, n: int) -> Path:
    return folder / f"{part}-{n:05d}.tokens"


def _write_index(folder: Path, index: dict[str, Any]) -> None:
    write_text(folder / INDEX_FILE, json.dumps(index, indent=1) + "\n")


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX_FILE
    try:
        index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        index["finished"], index["settings"], index["shards"]
    except OSError as error:
        raise DataError(cannot_read(path, error)) from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}); prepare into another --out") from error
    return index


def _begun(folder: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The index of these settings in the folder; None where nothing has begun."""
    if is_prepared(folder):
        index = _read_index(folder)
        if differing := [
            name for name in settings if index["settings"].get(name) != settings[name]
        ]:
            raise DataError(
                f"{folder} was prepared with other settings ({', '.join(differing)}); "
                "choose another --out"
            )
        return index
    others = [path for path in folder.glob("*") if path.name != TOKENIZER_FILE]
    if folder.is_file() or [path for path in others if not path.match(".*.tmp")]:
        raise DataError(f"{folder} is not empty and not prepared data; choose another --out")
    return None


def checked_vocab_size(tokenizer: str, vocab_size: int | None) -> int:
    """The size, or the default's. Raises ConfigError where the tokenizer has a fixed one."""
    if vocab_size is not None:
        refuse_vocab_size(tokenizer)
    return vocab_size or DEFAULT_VOCAB_SIZE


def refuse_vocab_size(tokenizer: str) -> None:
    """Raise ConfigError where the tokenizer has a vocabulary of fixed size."""
    if tokenizer in ("char", "gpt2") or (tokenizer not in KINDS and Path(tokenizer).exists()):
        raise ConfigError(
            f"the vocabulary of tokenizer {tokenizer} has a fixed size; omit vocab_size"
        )


def make_tokenizer(
    name: str, pieces: Iterable[tuple[str, Piece]], vocab_size: int, n_bytes: int = 0
) -> Tokenizer:
    """The tokenizer of that name, file or folder; KINDS are trained on the training part.

    `n_bytes`: of all pieces, 0 where nobody knows. Of a long text, `bpe` and `word` see a part.
    """
    if name in KINDS:
        texts = (piece.text for part, piece in pieces if part == "train")
        return train_kind(name, texts if name == "char" else _some(texts, n_bytes), vocab_size)
    if name == "gpt2":
        return download_gpt2()
    if not Path(name).exists():
        kinds = ", ".join(KINDS)
        raise DataError(f"unknown tokenizer {name!r}; choose {kinds}, gpt2, a folder or a file")
    return load_tokenizer(Path(name))


def _some(texts: Iterable[str], n_bytes: int) -> Iterator[str]:
    """About TOKENIZER_BYTES of them, from all over the text."""
    left = 2 * TOKENIZER_BYTES  # of compressed files, and where the size is not known
    for text in islice(texts, 0, None, max(1, n_bytes // TOKENIZER_BYTES)):
        if left <= 0:
            return
        left -= len(text)
        yield text


def watched(pieces: Iterable[tuple[str, Piece]], bar: Progress) -> Iterator[tuple[str, Piece]]:
    """The pieces, with a bar that shows how many characters of them have passed."""
    done = 0
    for part, piece in pieces:
        yield part, piece
        done += len(piece.text)  # close enough to bytes, and free
        bar.update(done)
