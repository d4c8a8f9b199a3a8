from __future__ import annotations

import csv
import io
import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.data.folders import note_left_out, source_files
from llmkit.data.sources import Piece, read_documents, read_pieces
from llmkit.data.tokens import (
    FEW_DOCUMENTS,
    Counts,
    open_token_file,
    split_pieces,
    windows,
    write_tokens,
)
from llmkit.errors import DataError
from llmkit.records.text_files import AS_IT_COMES, Reading
from llmkit.tokenizer import END_OF_TEXT, Tokenizer, safe_pieces
from llmkit.tokenizer_training import train_bpe


def refused(source: Path, reading: Reading = AS_IT_COMES) -> str:
    with pytest.raises(DataError) as caught:
        list(read_documents(source, reading))
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- documents --------------------------------------------------------------------------------


def test_text_file_is_split_at_end_of_text(tmp_path: Path) -> None:
    file = tmp_path / "book.txt"
    file.write_text(f"One.{END_OF_TEXT}\nTwo\n.{END_OF_TEXT} \n{END_OF_TEXT}Three", "utf-8")
    assert list(read_documents(file)) == ["One.", "\nTwo\n.", "Three"]


def test_file_of_any_name_can_be_given(tmp_path: Path) -> None:
    file = tmp_path / "book"
    file.write_text("text", encoding="utf-8")
    assert list(read_documents(file)) == ["text"]


def test_byte_order_mark_is_dropped_and_line_ends_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "windows.txt"
    file.write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n\x0c\xc2\x85")
    assert list(read_documents(file)) == ["one\r\ntwo\rthree\n\x0c\x85"]


def test_folder_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    for name in ("b.txt", "a.md", "c/a.TXT", "skipped.py", "z.jsonl", "B.txt", "folder.txt/x.txt"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({"text": name}) if "json" in name else name, encoding="utf-8")
    expected = ["B.txt", "a.md", "b.txt", "c/a.TXT", "folder.txt/x.txt", "z.jsonl"]
    assert [f.relative_to(tmp_path).as_posix() for f in source_files(tmp_path)] == expected
    assert list(read_documents(tmp_path)) == expected


def test_numbers_of_any_size_and_texts_about_gguf_are_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": 10**310}) + "\n")
    assert list(read_documents(tmp_path / "a.jsonl")) == [str(10**310)]
    (tmp_path / "a.txt").write_text("GGUF is a file format.")
    assert list(read_documents(tmp_path / "a.txt")) == ["GGUF is a file format."]


@pytest.mark.parametrize("suffix", ["jsonl", "ndjson", "JSONL"])
def test_jsonl_lines_are_documents(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"data.{suffix}"
    texts = ["One\r\ntwo", f"with {END_OF_TEXT} inside", "日本 🙂", "a\u2028\x85b"]
    lines = [
        json.dumps({"text": text, "other": 1}, ensure_ascii=n % 2 == 0)
        for n, text in enumerate(texts)
    ]
    empty = json.dumps({"text": " \n"})
    content = "\ufeff" + "\r\n".join([lines[0], "", *lines[1:], empty])
    file.write_bytes(content.encode())
    assert list(read_documents(file)) == texts


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"text": "x"', ["JSON"]),
        (b"text", ["JSON"]),
        (b"[" * 200_000, ["JSON"]),
        (b'{"text": 1' + b"0" * 5000 + b"}", ["JSON"]),
        (b'{"txt": "x"}', ['field "text"', " txt;", "--text-column"]),
        (b'{"text": [5]}', ['"text"', "list"]),
        (b'{"text": null}', ['"text"', "null"]),
        (b'["text"]', ["object"]),
        (b'"text"', ["object"]),
        (b'{"text": "caf\xe9"}', ["UTF-8"]),
        (b'{"text": "\\ud83d"}', ['"text"', "surrogate"]),
    ],
)
def test_bad_jsonl_line_is_named(tmp_path: Path, line: bytes, words: list[str]) -> None:
    file = tmp_path / "data.jsonl"
    file.write_bytes(b'{"text": "fine"}\n\n' + line + b'\n{"text": "fine"}\n')
    place, found, fault = refused(file).partition(f"{file}, line 3: ")
    assert (place, found) == ("", f"{file}, line 3: ")
    assert all(word in fault for word in words), fault


TEXTS = ['One, "two"\nand {three}', "日本 🙂", f"with {END_OF_TEXT} inside"]
ROWS = [{"id": n, "text": text, "body": text[::-1]} for n, text in enumerate(TEXTS)]


def table(rows: Sequence[Sequence[object]], delimiter: str = ",") -> str:
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter).writerows(rows)
    return file.getvalue()


STRUCTURED = {
    "list": json.dumps(ROWS, indent=1),
    "list of texts": json.dumps(TEXTS),
    "lines": "".join(json.dumps(row) + "\n" for row in ROWS),
    "one line": json.dumps({"text": {str(n): text for n, text in enumerate(TEXTS)}}),
    "columns": json.dumps({"text": {str(n): text for n, text in enumerate(TEXTS)}}, indent=2),
    "lists": json.dumps({"id": [0, 1, 2], "text": TEXTS}, ensure_ascii=False),
}


@pytest.mark.parametrize("form", STRUCTURED)
@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.txt", "a"])
def test_json_is_found_by_its_content(tmp_path: Path, form: str, name: str) -> None:
    file = tmp_path / name
    file.write_text(STRUCTURED[form], "utf-8")
    assert list(read_documents(file)) == TEXTS


def test_another_field_or_column_can_be_the_text(tmp_path: Path) -> None:
    bodies = [text[::-1] for text in TEXTS]
    cells = [[*ROWS[0]], *([*row.values()] for row in ROWS)]
    for name, content in (
        ("a.json", STRUCTURED["list"]),
        ("a.jsonl", STRUCTURED["lines"]),
        ("a.csv", table(cells)),
        ("b.csv", table(cells, ";")),
        ("a.tsv", table(cells, "\t")),
    ):
        file = tmp_path / name
        file.write_text(content, "utf-8", newline="")
        assert list(read_documents(file, Reading(text_column="body"))) == bodies
        assert "no " in refused(file, Reading(text_column="none"))
    assert list(read_documents(file, Reading(text_column="3"))) == ["body", *bodies]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "id,text\n1,Once\n", ["table", " id, text;", "--text-column"]),
        ("a.csv", "text\nOnce\nTwice\n", ["table", " text;", "--text-column"]),
        ("a.txt", "id\ttext\n1\tOnce\n2\tTwice\n", ["table", " id, text;", "--text-column"]),
        ("a.json", '{"title": "x", "chapters": [{"p": "y"}]}', ['"text"', "title, chapters;"]),
        ("a.json", "[[1, 2]]", ["record 1, line 1: ", "list"]),
        ("a.json", "Once upon a time", ["JSON", "JSONL"]),
        ("a.json", '{"text": "x"', [", line 1: ", "JSON"]),
        ("a.txt", '[{"text": "x"},\n]', [", line 2: ", "JSON"]),
        ("a.txt", '{\n"text": "x",\n}', ["JSON"]),
        ("a.html", "<p>Once</p>", ["HTML"]),
        ("a.txt", "<p>Once</p>\n<div class='x'>upon</div>\n", ["HTML"]),
        ("a.dump", "<wiki>\n<page>Once</page>\n</wiki>\n", ["XML"]),
        ("a.txt", "O\0n\0c\0e\0", ["UTF-16", "--encoding"]),
        ("a.txt", "\n<!-- saved --> <!DOCTYPE HTML>\n<html>", ["HTML"]),
        ("a", "<?xml version='1.0'?><a/>", ["XML"]),
        ("a.txt", "%PDF-1.7 ...", ["PDF"]),
        ("a.docx", "PK\x03\x04...", ["ZIP"]),
        ("a.txt", "{\\rtf1 ...}", ["RTF"]),
    ],
)
def test_file_that_is_not_text_is_named(
    tmp_path: Path, name: str, content: str, words: list[str]
) -> None:
    file = tmp_path / name
    file.write_text(content, "utf-8")
    place, found, fault = refused(file).partition(str(file))
    assert (place, found) == ("", str(file))
    assert all(word in fault for word in words), fault


@pytest.mark.parametrize(
    "text",
    [
        "[Enter HAMLET]\nTo be, or not to be\n",
        "{ a brace\n}",
        '{"a": 1}\nis JSON\n',
        "<p> is a tag\n",
        "One,\ntwo, three\n",
        "A\ttab\nand none\n",
        "\tA verse\n\tthat is indented\n",
        "<story>\nOnce\n</story>\n",
        '["Hello," he said.]\n',
    ],
)
def test_prose_stays_prose(tmp_path: Path, text: str) -> None:
    file = tmp_path / "a.txt"
    file.write_text(text, "utf-8")
    assert list(read_documents(file)) == [text]


def test_another_encoding_is_read_where_it_is_given(tmp_path: Path) -> None:
    for encoding in ("latin-1", "utf-16"):
        file = tmp_path / f"{encoding}.txt"
        file.write_text("Müßig\n", encoding)
        assert encoding in refused(file)
        assert list(read_documents(file, Reading(encoding=encoding))) == ["Müßig\n"]


# --- folders ----------------------------------------------------------------------------------


def written(folder: Path, *names: str) -> None:
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"text of {name}", "utf-8")


def names_of(folder: Path) -> list[str]:
    return [file.relative_to(folder).as_posix() for file in source_files(folder)]


HIDDEN = [
    "._story.txt",
    ".hidden/a.txt",
    "__MACOSX/a/._story.txt",
    ".ipynb_checkpoints/story-checkpoint.txt",
    "a/__pycache__/a.txt",
    "node_modules/a/README.md",
    ".venv/lib/LICENSE.txt",
    "env/lib/LICENSE.txt",
    "lib/site-packages/x/LICENSE.txt",
    "my.egg-info/SOURCES.txt",
]


def test_hidden_and_generated_files_are_left_out_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / ".data" / "corpus"  # names above it do not count
    written(source, "story.txt", "a/b.md", "env/pyvenv.cfg", ".DS_Store", *HIDDEN)
    assert names_of(source) == ["a/b.md", "story.txt"]
    assert capsys.readouterr().err == ""
    note_left_out(source)
    (line,) = capsys.readouterr().err.splitlines()
    assert f" {len(HIDDEN)} text files" in line.removeprefix(str(source))
    note_left_out(source / "a" / "b.md")
    (source / "sub").mkdir()
    note_left_out(source / "sub")
    assert capsys.readouterr().err == ""


def test_a_file_is_read_once_and_what_is_not_read_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path, "b.txt", "c.json", "d/e.csv")
    (tmp_path / "a.txt").symlink_to(tmp_path / "b.txt")
    assert names_of(tmp_path) == ["b.txt"]
    note_left_out(tmp_path)
    link, others = capsys.readouterr().err.splitlines()
    assert "1 link" in link
    assert "a.txt" in link
    assert "2 files" in others
    assert "c.json" in others


def test_links_to_folders_are_followed_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    written(source, "b/own.txt")
    written(tmp_path / "elsewhere", "far.txt", "deep/er.txt")
    for link, target in (
        ("a", tmp_path / "elsewhere"),
        ("c", tmp_path / "elsewhere" / "deep"),  # read already
        ("again", source / "b"),  # read already
        ("loop", source),
        ("up", tmp_path),
        ("gone", tmp_path / "nowhere"),
        ("gone.txt", tmp_path / "nowhere.txt"),
        (".hidden", tmp_path / "elsewhere"),
    ):
        (source / link).symlink_to(target)
    (tmp_path / "elsewhere" / "back").symlink_to(source)
    assert names_of(source) == ["a/deep/er.txt", "a/far.txt", "b/own.txt"]
    note_left_out(source)
    (line,) = capsys.readouterr().err.splitlines()
    assert " 7 links" in line.removeprefix(str(source))


def test_text_that_is_not_utf8_is_named_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "latin.txt"
    file.write_bytes("fine: é\r\n\nbroken: ".encode() + b"caf\xe9 \n and on")
    message = refused(file)
    assert f"{file}, line 3: byte 0xe9 is not UTF-8" in message
    file.write_bytes(b"\xff\xfeU\0T\0F\0")
    assert f"{file}, line 1: byte 0xff" in refused(file)
    file.write_bytes(b"one\ntwo\nends inside \xe6\x97")
    assert f"{file}, line 3: byte 0xe6" in refused(file)


def test_missing_and_empty_sources_are_named(tmp_path: Path) -> None:
    assert f"{tmp_path / 'no.txt'} does not exist" in refused(tmp_path / "no.txt")
    folder = tmp_path / "empty"
    folder.mkdir()
    assert ".txt, .md, .jsonl, .ndjson" in refused(folder).removeprefix(str(folder))
    (folder / "picture.png").touch()
    assert ".txt, .md, .jsonl, .ndjson" in refused(folder).removeprefix(str(folder))


@pytest.mark.parametrize("name", ["gone.txt", "gone.jsonl"])
def test_unreadable_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    file = tmp_path / name
    file.touch()

    def no_permission(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", no_permission)
    monkeypatch.setattr(Path, "read_bytes", no_permission)
    assert refused(file) == f"cannot read {file}: Permission denied"


# --- splitting --------------------------------------------------------------------------------


def split(texts: Sequence[str], size: int = 1 << 16) -> dict[str, list[str]]:
    """The documents of each part, of pieces of about `size` characters."""

    def pieces() -> Iterator[Piece]:
        for text in texts:
            *inner, last = safe_pieces(text, size)
            yield from (Piece(piece, False) for piece in inner)
            yield Piece(last, True)

    documents: dict[str, list[str]] = {"train": [], "validation": []}
    begun = dict.fromkeys(documents, "")
    for part, piece in split_pieces(pieces):
        begun[part] += piece.text
        if piece.ends:
            documents[part].append(begun[part])
            begun[part] = ""
    assert not any(begun.values())
    return documents


@given(texts=st.lists(st.text(min_size=1), max_size=19), size=st.integers(1, 5))
def test_few_documents_are_each_cut_into_two_parts(texts: list[str], size: int) -> None:
    train, rest = split(texts, size).values()
    assert all(train + rest)
    for text, head in zip(texts, train, strict=True):
        tail = rest.pop(0) if len(text) > len(head) else ""
        assert head + tail == text
        assert len(tail) == len(text) // 10
    assert not rest


def test_about_a_tenth_of_many_documents_is_held_out() -> None:
    texts = [f"{index} is its number" for index in range(2000)]
    train, validation = split(texts, 3).values()
    assert sorted(train + validation) == sorted(texts)
    assert 150 < len(validation) < 250
    assert split(texts[::-1], 3)["validation"] == validation[::-1]  # whatever the order


@given(
    distinct=st.integers(1, 40), copies=st.lists(st.integers(0, 39), max_size=60), seed=st.randoms()
)
@settings(max_examples=20)
def test_copies_of_a_document_stay_on_one_side(
    distinct: int, copies: list[int], seed: random.Random
) -> None:
    texts = [f"document {n}" for n in range(distinct)]
    texts += [f"document {n % distinct}\n" for n in copies]
    texts += [f"more {n}" for n in range(FEW_DOCUMENTS)]
    seed.shuffle(texts)
    train, validation = split(texts).values()
    assert sorted(train + validation) == sorted(texts)
    assert not {text.strip() for text in train} & {text.strip() for text in validation}


# --- token files ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["some words to train on, some more words"], 280)


def counts_of(path: Path, texts: Iterable[str], tokenizer: Tokenizer) -> Counts:
    pieces = (("train", Piece(text, True)) for text in texts)
    return write_tokens({"train": path}, pieces, tokenizer)["train"]


def test_token_file_holds_the_ids_and_the_end_of_each_document(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    texts = ["some words", "日本", "more\nwords"] * 50
    path = tmp_path / "train.tokens"
    expected = [i for t in texts for i in [*tokenizer.encode(t), tokenizer.end_of_text_id]]
    n_bytes = sum(len(t.encode()) for t in texts)
    assert counts_of(path, texts, tokenizer) == Counts(len(expected), 150, n_bytes)
    assert np.fromfile(path, "<u2").tolist() == expected
    assert open_token_file(path, tokenizer.vocab_size).tolist() == expected


@pytest.mark.slow
def test_document_longer_than_a_piece_has_the_same_ids(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    text = "some words\nto train on\n" * 50_000  # two pieces
    path = tmp_path / "train.tokens"
    (tmp_path / "text.txt").write_text(f"{text}{END_OF_TEXT}end", encoding="utf-8")
    pieces = (("train", piece) for piece in read_pieces([tmp_path / "text.txt"]))
    write_tokens({"train": path}, pieces, tokenizer)
    ids = open_token_file(path, tokenizer.vocab_size)
    end = tokenizer.end_of_text_id
    assert np.flatnonzero(ids == end).tolist() == [len(tokenizer.encode(text)), len(ids) - 1]
    assert ids[: len(ids) - 2 - len(tokenizer.encode("end"))].tolist() == tokenizer.encode(text)


class LargeTokenizer:
    """Gives ids that two bytes hold, or do not."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.end_of_text_id = vocab_size - 1

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [[0, self.vocab_size - 2] for _ in texts]


@pytest.mark.parametrize(("vocab_size", "width"), [(65_536, 2), (65_537, 4), (200_000, 4)])
def test_ids_take_two_bytes_where_the_vocabulary_lets_them(
    tmp_path: Path, vocab_size: int, width: int
) -> None:
    path = tmp_path / "train.tokens"
    counts_of(path, ["text"], LargeTokenizer(vocab_size))  # type: ignore[arg-type]
    assert path.stat().st_size == 3 * width
    assert open_token_file(path, vocab_size).tolist() == [0, vocab_size - 2, vocab_size - 1]


def test_document_that_cannot_be_read_leaves_no_token_file(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("fine", encoding="utf-8")
    (tmp_path / "b.txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"b\.txt, line 1"):
        counts_of(tmp_path / "train.tokens", read_documents(tmp_path), tokenizer)
    assert {file.name for file in tmp_path.iterdir()} == {"a.txt", "b.txt"}


def test_token_file_that_cannot_be_mapped_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.tokens"
    named = rf"token file {re.escape(str(path))}: "
    with pytest.raises(DataError, match=named):
        open_token_file(path, 300)
    for content in (b"", b"odd"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=named):
            open_token_file(path, 300)


# --- windows ----------------------------------------------------------------------------------


@given(n_tokens=st.integers(2, 5000), length=st.integers(1, 300), max_tokens=st.integers(0, 6000))
def test_windows_are_spread_over_the_tokens_without_overlap(
    n_tokens: int, length: int, max_tokens: int
) -> None:
    tokens = np.arange(n_tokens, dtype=np.uint16)
    if n_tokens < length + 1:
        with pytest.raises(DataError, match=rf" {n_tokens} tokens\b.* {length + 1} "):
            windows(tokens, length, max_tokens)
        return
    found = windows(tokens, length, max_tokens)
    n_that_fit = (n_tokens - 1) // length
    assert found.dtype == np.int64
    assert found.shape == (max(1, min(n_that_fit, max_tokens // length)), length + 1)
    starts = found[:, 0]
    assert (found == starts[:, None] + np.arange(length + 1)).all()  # each is one stretch of text
    gaps = np.diff(starts)
    assert (gaps >= length).all()  # no token is predicted twice
    assert starts[0] == 0
    if len(starts) > 1:
        assert starts[-1] == (n_that_fit - 1) * length  # the last one ends where the text ends
        assert gaps.max() - gaps.min() <= length  # evenly


def test_all_tokens_are_predicted_where_there_is_room() -> None:
    found = windows(np.arange(101, dtype=np.uint16), 10, 1000)
    assert found[:, 1:].flatten().tolist() == list(range(1, 101))
