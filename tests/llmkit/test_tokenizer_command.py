from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmkit.cli.main import main
from llmkit.data.prepared import prepare_data
from llmkit.data.tokenizers import tokenizer_statistics, train_tokenizer
from llmkit.errors import ConfigError, DataError
from llmkit.tokenizer_files import load_tokenizer

TEXT = "The fox saw the hen. " * 40 + "Zwei Äpfel, 12 Birnen.\n" * 30
SIZES = {"bpe": 280, "word": 265, "char": None}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", SIZES)
def test_training_one_is_what_training_a_model_does(
    kind: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, size = tmp_path / "made.json", SIZES[kind]
    words = ["tokenizer", "train", str(source), "--kind", kind, "--out", str(made), "--json"]
    assert main([*words, *(["--vocab-size", str(size)] if size else [])]) == 0
    found = json.loads(capsys.readouterr().out)
    tokenizer = load_tokenizer(made)
    assert found["vocab_size"] == tokenizer.vocab_size == (size or 256 + 1 + 1)  # Ä
    assert found["looks_up_words"] == (kind == "word")
    # Of the held-out tenth.
    assert len(TEXT.encode()) // 12 < found["n_bytes"] < len(TEXT.encode()) // 8
    ids = tokenizer.encode(TEXT.encode()[-found["n_bytes"] :].decode())
    assert found["n_tokens"] == len(ids)
    assert found["bytes_per_token"] == found["n_bytes"] / len(ids)

    prepared = tmp_path / "prepared"
    prepare_data(source, prepared, tokenizer=kind, vocab_size=size)
    assert made.read_bytes() == (prepared / "tokenizer.json").read_bytes()
    prepare_data(source, tmp_path / "again", tokenizer=str(made))
    assert made.read_bytes() == (tmp_path / "again/tokenizer.json").read_bytes()


def test_a_text_is_shown_in_tokens(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "made.json"
    train_tokenizer(source, made, kind="word", vocab_size=262)
    text = " the fox Äé"
    assert main(["tokenizer", "show", str(made), "--text", text]) == 0
    shown = capsys.readouterr().out
    assert " the| fox| |" in shown
    assert shown.splitlines()[-2].replace("|", "") == r" the fox \xc3\x84\xc3\xa9"
    ids = load_tokenizer(made).encode(text)
    assert shown.splitlines()[-1] == " ".join(map(str, ids))
    assert main(["tokenizer", "show", str(made), "--text", text, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [token["id"] for token in found["tokens"]] == ids
    assert (found["n_bytes"], found["n_tokens"]) == (len(text.encode()), len(ids))
    assert main(["tokenizer", "show", str(made), "--file", str(source)]) == 0
    assert f"{len(TEXT.encode()):,} bytes" in capsys.readouterr().out


def test_the_longest_tokens_come_first(source: Path, tmp_path: Path) -> None:
    made = tmp_path / "made.json"
    found = train_tokenizer(source, made, kind="word", vocab_size=270)
    assert found.longest[0] == " Birnen"
    sizes = [len(token.encode()) for token in found.longest]
    assert sizes == sorted(sizes, reverse=True)
    assert tokenizer_statistics(made, TEXT).n_bytes == len(TEXT.encode())
    train_tokenizer(source, tmp_path / "char.json", kind="char")
    assert tokenizer_statistics(tmp_path / "char.json").longest == ("Ä",)
    assert tokenizer_statistics(made).bytes_per_token is None


def test_a_gguf_file_is_not_a_tokenizer_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF\x03\0\0\0\xff")
    assert main(["tokenizer", "show", str(tmp_path / "m.gguf")]) == 2
    assert "m.gguf is a GGUF file; give its checkpoint" in capsys.readouterr().err


def test_what_cannot_be_trained_is_refused(source: Path, tmp_path: Path) -> None:
    for kind, size, out, word in (
        ("wrod", None, tmp_path / "o.json", "'word'"),
        ("char", 300, tmp_path / "o.json", "char"),
        ("bpe", 300, source, "text.txt"),
    ):
        with pytest.raises(ConfigError, match=word):
            train_tokenizer(source, out, kind=kind, vocab_size=size)
    assert source.read_text(encoding="utf-8") == TEXT
    empty = tmp_path / "empty.txt"
    empty.touch()
    with pytest.raises(DataError, match=r"empty\.txt"):
        train_tokenizer(empty, tmp_path / "o.json")
    assert not (tmp_path / "o.json").exists()
