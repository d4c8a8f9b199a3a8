"""`data list` and `data get`, against a server on this machine."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from llmkit.cli.main import main
from llmkit.data import known_sets
from llmkit.data.known_sets import KNOWN_SETS, KnownSet, get_data
from llmkit.errors import ConfigError, DataError

pytest.importorskip("pooch", reason="data get needs the extra `data`")

TEXT = bytes(range(256)) * 4000


@dataclass
class Server:
    """What it serves, where it breaks off, and what was asked."""

    files: dict[str, bytes]
    breaks_after: int | None = None
    ranges: list[str | None] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    served = Server({"/text": TEXT, "/zip": zipped(), "/tgz": tarred()})

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = served.files.get(self.path)
            if content is None:
                return self.send_error(404)
            asked = self.headers["Range"]
            served.ranges.append(asked)
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked else 0  # type: ignore[index]
            if start >= len(content):
                return self.send_error(416)
            self.send_response(206 if asked else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            end = len(content) if served.breaks_after is None else start + served.breaks_after
            self.wfile.write(content[start:end])
            return None

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        served.url = f"http://127.0.0.1:{http.server_port}"
        yield served
        http.shutdown()


def zipped() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("folder/inside.tsv", "ham\thello\n")
    return content.getvalue()


def tarred() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        info = tarfile.TarInfo("folder/inside.csv")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"1,a\n"))
    return content.getvalue()


@pytest.fixture
def known(server: Server, monkeypatch: pytest.MonkeyPatch) -> KnownSet:
    sha256 = hashlib.sha256(TEXT).hexdigest()
    one = KnownSet("text", "free", f"{server.url}/text", "one.txt", sha256, 1, "train")
    unpublished = replace(one, file="none.txt", sha256=None)
    archives = {
        "json": replace(one, file="json.json"),
        "zip": replace(one, url=f"{server.url}/zip", file="a.tsv", sha256=None,
                       member="folder/inside.tsv"),
        "tgz": replace(one, url=f"{server.url}/tgz", file="b.csv", sha256=None,
                       member="folder/inside.csv"),
    }  # fmt: skip
    sets = {"one": one, "unpublished": unpublished, **archives}
    monkeypatch.setattr(known_sets, "KNOWN_SETS", sets)
    return one


def test_download_is_verified_and_happens_once(
    server: Server, known: KnownSet, tmp_path: Path
) -> None:
    got = get_data("one", tmp_path)
    assert got.file.read_bytes() == TEXT
    assert got.verified
    assert got.sha256 == known.sha256
    assert get_data("one", tmp_path) == got
    assert len(server.ranges) == 1
    note = json.loads((tmp_path / "one.source.json").read_text(encoding="utf-8"))
    assert note == {"url": known.url, "licence": "free", "sha256": known.sha256}


def test_interrupted_download_continues(server: Server, known: KnownSet, tmp_path: Path) -> None:
    server.breaks_after = 300_000
    for _ in range(2):
        with pytest.raises(DataError, match="continues"):
            get_data("one", tmp_path)
    assert not (tmp_path / "one.txt").exists()
    server.breaks_after = None
    assert get_data("one", tmp_path).file.read_bytes() == TEXT
    assert server.ranges == [None, "bytes=300000-", "bytes=600000-"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.source.json", "one.txt"]


def test_whole_download_that_was_not_moved_is_taken(
    server: Server, known: KnownSet, tmp_path: Path
) -> None:
    (tmp_path / ".one.txt.part").write_bytes(TEXT)
    assert get_data("one", tmp_path).file.read_bytes() == TEXT


def test_other_content_is_refused_and_fetched_anew(
    server: Server, known: KnownSet, tmp_path: Path
) -> None:
    server.files["/text"] = TEXT[:-1] + b"!"
    with pytest.raises(DataError, match=str(known.sha256)):
        get_data("one", tmp_path)
    assert list(tmp_path.iterdir()) == []
    server.files["/text"] = TEXT
    assert get_data("one", tmp_path).verified


def test_first_download_without_a_published_checksum_is_pinned(
    server: Server, known: KnownSet, tmp_path: Path
) -> None:
    first = get_data("unpublished", tmp_path)
    assert not first.verified
    assert first.sha256 == known.sha256
    assert get_data("unpublished", tmp_path).verified
    first.file.unlink()
    server.files["/text"] = b"changed"
    with pytest.raises(DataError, match=first.sha256):
        get_data("unpublished", tmp_path)


def test_note_does_not_replace_a_set_of_the_same_name(
    server: Server, known: KnownSet, tmp_path: Path
) -> None:
    assert get_data("json", tmp_path).file.read_bytes() == TEXT


@pytest.mark.parametrize(("name", "file"), [("one", "one.txt"), ("zip", "a.tsv")])
def test_file_of_the_user_is_left_alone(
    server: Server, known: KnownSet, tmp_path: Path, name: str, file: str
) -> None:
    (tmp_path / file).write_text("mine")
    with pytest.raises(DataError, match=file):
        get_data(name, tmp_path)
    assert (tmp_path / file).read_text() == "mine"


@pytest.mark.parametrize(("name", "text"), [("zip", "ham\thello\n"), ("tgz", "1,a\n")])
def test_member_of_an_archive_is_extracted(
    server: Server, known: KnownSet, tmp_path: Path, name: str, text: str
) -> None:
    file = get_data(name, tmp_path).file
    assert file.read_text(encoding="utf-8") == text
    assert sorted(tmp_path.iterdir()) == sorted([file, tmp_path / f"{name}.source.json"])


def test_what_cannot_be_got_is_refused(server: Server, known: KnownSet, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'two'"):
        get_data("two", tmp_path)
    del server.files["/text"]
    with pytest.raises(DataError, match="404"):
        get_data("one", tmp_path)


def test_table_shows_licence_and_checksum_of_every_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "list"]) == 0
    table = capsys.readouterr().out
    assert main(["data", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out).keys() == KNOWN_SETS.keys()
    for name, known in KNOWN_SETS.items():
        assert name in table
        assert known.licence.split()[0] in table
        assert (known.sha256 or "none published")[:14] in table


def test_copy_in_the_shared_data_has_the_checksum(shared_data: Path) -> None:
    copy = (shared_data / "tinyshakespeare.txt").read_bytes()
    assert hashlib.sha256(copy).hexdigest() == KNOWN_SETS["tiny-shakespeare"].sha256
