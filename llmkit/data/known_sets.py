"""Well-known data sets: where they are, their licences and checksums, and how to get them."""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import httpx

from llmkit.console import progress, say
from llmkit.errors import ConfigError, DataError, unknown_name
from llmkit.files import StrPath, cannot_write, write_text, written_beside

HUGGING_FACE = "https://huggingface.co/datasets"
GITHUB = "https://raw.githubusercontent.com"
TIMEOUT_S = 30.0


@dataclass(frozen=True)
class KnownSet:
    """A data set. `sha256` is that of the download; None where nobody publishes one."""

    about: str
    licence: str
    url: str
    file: str  # the name it gets
    sha256: str | None
    megabytes: float  # to download, about
    used_by: str  # the command, and options that it needs
    member: str | None = None  # of the archive at `url`


# A checksum stands here if several independent projects publish the same one, or if it was computed
# from a copy of the file; otherwise the first download is pinned.
KNOWN_SETS = {
    "tiny-shakespeare": KnownSet(
        "plays of Shakespeare, 40,000 lines",
        "public domain",
        f"{GITHUB}/karpathy/char-rnn/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/"
        "tinyshakespeare/input.txt",
        "tiny-shakespeare.txt",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        1.1,
        "train",
    ),
    "tinystories": KnownSet(
        "2.7 million short stories by GPT-4, in the words of small children",
        "CDLA-Sharing-1.0",
        f"{HUGGING_FACE}/roneneldan/TinyStories/resolve/"
        "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64/TinyStoriesV2-GPT4-train.txt",
        "tinystories.txt",
        "6418d412de72888f52b5142c761ac21a582f7d1166f0bfbdb5f03ccfdec90443",
        2228,
        "data prepare, train",
    ),
    "wikitext-2": KnownSet(
        "Wikipedia articles, 2 million words (raw, training part)",
        "CC BY-SA 3.0",
        f"{HUGGING_FACE}/ggml-org/ci/resolve/927b3642933080f1b0e811e2f916e14c292992f9/"
        "wikitext-2-raw-v1.zip",
        "wikitext-2.txt",
        "ef7edb566e3e2b2d31b29c1fdb0c89a4cc683597484c3dc2517919c615435a11",
        4.7,
        "train",
        "wikitext-2-raw/wiki.train.raw",
    ),
    "sms-spam": KnownSet(
        "5,574 text messages, ham or spam",
        "CC BY 4.0",
        "https://archive.ics.uci.edu/static/public/228/sms+spam+collection.zip",
        "sms-spam.tsv",
        "1587ea43e58e82b14ff1f5425c88e17f8496bfcdb67a583dbff9eefaf9963ce3",
        0.2,
        "finetune classify",
        "SMSSpamCollection",
    ),
    "amazon-polarity": KnownSet(
        "3.6 million product reviews: 1 is negative, 2 is positive",
        "not stated",
        "https://s3.amazonaws.com/fast-ai-nlp/amazon_review_polarity_csv.tgz",
        "amazon-polarity.csv",
        None,
        690,
        "finetune classify --label-column 1 --text-column 3",
        "amazon_review_polarity_csv/train.csv",
    ),
    "alpaca": KnownSet(
        "52,002 instructions and answers by GPT-3.5",
        "CC BY-NC 4.0 (not for commercial use)",
        f"{GITHUB}/tatsu-lab/stanford_alpaca/761dc5bfbdeeffa89b8bff5d038781a4055f796a/"
        "alpaca_data.json",
        "alpaca.json",
        "2eddafc6b977608d778aaab8dfc7e50e547b3af9826dfb9e909d9fc362e4a419",
        23,
        "finetune instruct",
    ),
    "dolly-15k": KnownSet(
        "15,011 instructions and answers by employees of Databricks",
        "CC BY-SA 3.0",
        f"{HUGGING_FACE}/databricks/databricks-dolly-15k/resolve/"
        "bdd27f4d94b9c1f951818a7da7fd7aeea5dbff1a/databricks-dolly-15k.jsonl",
        "dolly-15k.jsonl",
        "2df9083338b4abd6bceb5635764dab5d833b393b55759dffb0959b6fcbf794ec",
        13.1,
        "finetune instruct",
    ),
}


@dataclass(frozen=True)
class Got:
    """A data set on this machine."""

    file: Path
    licence: str
    sha256: str  # of the download
    verified: bool  # against a published checksum, or one from an earlier download


def get_data(name: str, out: StrPath = "data") -> Got:
    """Download a known data set into the folder `out` and verify its checksum.

    An interrupted download continues. `out/NAME.source.json` notes source, licence and checksum; a
    set without a published checksum is verified against that note from then on. Raises ConfigError
    for an unknown name or without pooch, DataError for a download that fails or has another
    checksum, and for another file of that name.
    """
    if name not in KNOWN_SETS:
        raise ConfigError(unknown_name("data set", name, KNOWN_SETS))
    known, out = KNOWN_SETS[name], Path(out)
    note, file = out / f"{name}.source.json", out / known.file
    noted = _noted(note)
    expected = known.sha256 or noted.get("sha256")
    if file.exists() and not noted and (known.member or _sha256(file) != known.sha256):
        raise DataError(
            f"{file} exists and is not the known file; move it away, or choose another --out"
        )
    if not (file.exists() and expected == noted.get("sha256") is not None):
        download = _downloaded(known, out, expected)
        noted = {"sha256": _sha256(download)}
        if known.member is not None:
            with written_beside(file) as beside, beside.open("wb") as target:
                _extract(download, known.member, target)
            download.unlink()
        about = {"url": known.url, "licence": known.licence, **noted}
        write_text(note, json.dumps(about, indent=2) + "\n")
    return Got(file, known.licence, noted["sha256"], expected is not None)


def _noted(note: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(note.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _downloaded(known: KnownSet, out: Path, expected: str | None) -> Path:
    """The file at the URL, verified."""
    try:
        import pooch
    except ImportError as error:
        raise ConfigError("data get needs pooch: pip install 'llmkit[data]'") from error
    pooch.get_logger().setLevel("ERROR")
    name = known.file if known.member is None else known.url.rpartition("/")[2]
    part = out / f".{name}.part"
    try:
        found = pooch.retrieve(
            known.url,
            known_hash=expected,
            fname=name,
            path=out,
            downloader=lambda url, target, _: _continue(str(url), part, Path(str(target))),
        )
    except ValueError as error:
        raise DataError(
            f"{known.url} is not the known file: its SHA-256 is not {expected}; try again later, "
            "or get the data from another place"
        ) from error
    except httpx.HTTPError as error:
        done = part.stat().st_size / 1e6 if part.exists() else 0.0
        raise DataError(
            f"cannot download {known.url}: {error}; the same command continues after the first "
            f"{done:.1f} MB"
        ) from error
    except OSError as error:
        raise cannot_write(out / name, error) from error
    return Path(found)


def _continue(url: str, part: Path, target: Path) -> None:
    """Download what is missing of `part`, then move it to `target`."""
    there = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={there}-"} if there else {})}
    with httpx.stream(
        "GET", url, headers=headers, follow_redirects=True, timeout=TIMEOUT_S
    ) as response:
        if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            part.replace(target)  # all of it is there; the checksum tells
            return
        response.raise_for_status()
        if response.status_code != httpx.codes.PARTIAL_CONTENT:
            there = 0
        if there:
            say(f"continuing after {there / 1e6:.1f} MB")
        total = there + int(response.headers.get("Content-Length", 0))
        with part.open("ab" if there else "wb") as file, progress("get", total, "bytes") as bar:
            for chunk in response.iter_bytes():
                file.write(chunk)
                there += len(chunk)
                bar.update(there)
    part.replace(target)


def _extract(archive: Path, member: str, target: IO[bytes]) -> None:
    try:
        with _opened(archive, member) as source:
            shutil.copyfileobj(source, target)
    except (KeyError, tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"{archive} is damaged or has no {member}: {error}") from error


@contextmanager
def _opened(archive: Path, member: str) -> Iterator[IO[bytes]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped, zipped.open(member) as source:
            yield source
    else:
        with tarfile.open(archive) as tar:
            source_in_tar = tar.extractfile(member)
            if source_in_tar is None:
                raise KeyError(member)
            yield source_in_tar


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def known_sets_as_json() -> dict[str, dict[str, Any]]:
    """The table, by name."""
    return {name: asdict(known) for name, known in KNOWN_SETS.items()}
