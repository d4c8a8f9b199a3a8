"""Prepared data: the same bytes however often a preparation is killed, and training on them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_runs import killed_at, metrics, run

from llmkit.data import folders, hub, prepared, sources
from llmkit.data.prepared import Prepared, open_prepared, prepare_data
from llmkit.data.sampler import window_starts
from llmkit.data.tokens import PARTS
from llmkit.errors import CheckpointError, ConfigError, DataError
from llmkit.tokenizer import Tokenizer
from llmkit.tokenizer_files import load_tokenizer
from llmkit.tokenizer_training import train_bpe


@pytest.fixture(autouse=True)
def small_shards() -> Iterator[None]:
    """Shards of 3000 bytes, and text files above 2000 bytes are read in chunks of 500."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepared, "SHARD_BYTES", 3000)
        patch.setattr(sources, "LONG_TEXT", 2000)
        patch.setattr(sources, "CHUNK", 500)
        yield


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint: Path) -> str:
    return str(tiny_checkpoint)


def documents(data: Prepared, part: str) -> list[str]:
    """What the shards of a part hold, as text."""
    ids = np.concatenate([data.tokens(part).read(0, len(data.tokens(part)))])
    tokenizer = load_tokenizer(data.folder)
    ends = np.flatnonzero(ids == tokenizer.end_of_text_id)
    return [tokenizer.decode(each) for each in np.split(ids, ends + 1)[:-1]]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_few_documents_come_back_whole(short_text: Path, tokenizer: str, tmp_path: Path) -> None:
    data = prepare_data(short_text, tmp_path / "out", tokenizer=tokenizer)
    texts = short_text.read_text(encoding="utf-8").split("<|endoftext|>")
    train, validation = (documents(data, part) for part in PARTS)
    assert [a + b for a, b in zip(train, validation, strict=True)] == texts
    assert len(data.shards) > 3
    totals = [data.total(part) for part in PARTS]
    assert sum(total.bytes for total in totals) == sum(len(text.encode()) for text in texts)
    assert [total.documents for total in totals] == [40, 40]
    assert [total.tokens for total in totals] == [len(data.tokens(part)) for part in PARTS]


@pytest.mark.parametrize("name", ["long.txt", "book.jsonl", "book.parquet"])
def test_long_files_of_every_kind_give_the_same_documents(
    tokenizer: str, tmp_path: Path, name: str
) -> None:
    texts = [f"Tale {n}: " + f"the fox {n % 7} ran üß 日本\n" * (n % 20) for n in range(230)]
    if name.endswith("txt"):
        text = "\ufeff" + "<|endoftext|>".join([*texts, " \n"])
        (tmp_path / name).write_text(text, encoding="utf-8")
    elif name.endswith("jsonl"):
        lines = [json.dumps({"text": text}) for text in texts]
        (tmp_path / name).write_text("\n".join(lines), encoding="utf-8")
    else:
        pyarrow = pytest.importorskip("pyarrow")
        table = pyarrow.table({"id": range(230), "text": texts})
        pytest.importorskip("pyarrow.parquet").write_table(table, tmp_path / name)
    data = prepare_data(tmp_path / name, tmp_path / "out", tokenizer=tokenizer)
    train, validation = (documents(data, part) for part in PARTS)
    assert sorted(train + validation) == sorted(texts)
    assert 10 < len(validation) < 45


def test_a_pattern_names_files(tokenizer: str, tmp_path: Path) -> None:
    for name in ("a/one.txt", "a/b/two.txt", "a/b/three.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"the tale of {name}, which is long enough", encoding="utf-8")
    data = prepare_data(tmp_path / "a/**/*.txt", tmp_path / "out", tokenizer=tokenizer)
    assert [text[:15] for text in documents(data, "train")] == [
        "the tale of a/b",
        "the tale of a/o",
    ]
    with pytest.raises(DataError, match=r"\*\.csv"):
        prepare_data(tmp_path / "a/*.csv", tmp_path / "none", tokenizer=tokenizer)


def test_a_data_set_of_the_hub_by_its_name(
    tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("datasets")
    texts = [f"Tale {n}: the fox ran üß 日本" for n in range(30)]
    (tmp_path / "set").mkdir()
    lines = "".join(json.dumps({"story": text}) + "\n" for text in texts)
    (tmp_path / "set" / "train.jsonl").write_text(lines, encoding="utf-8")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    commits = {f"hf:{tmp_path}/set": "first"}  # of a repository; here a folder stands for one
    monkeypatch.setattr(folders, "revision", lambda source: commits[str(source)])
    monkeypatch.setattr(hub, "revision", lambda source: commits[str(source)])
    source, out = f"hf:{tmp_path}/set", tmp_path / "out"
    data = prepare_data(source, out, tokenizer=tokenizer, text_column="story")
    train, validation = (documents(data, part) for part in PARTS)
    assert [a + b for a, b in zip(train, validation, strict=True)] == texts
    with pytest.raises(DataError, match=r"no column 'text'.*story"):
        prepare_data(source, tmp_path / "other", tokenizer=tokenizer)
    options: dict[str, Any] = {"text_column": "story", "training": {"steps": 2, "batch_size": 2}}
    run(source, tmp_path / "run", **options)
    commits[source] = "second"
    run(source, tmp_path / "run", **options, resume=True)  # its tokens are there
    with pytest.raises(CheckpointError, match="data differ"):
        run(source, tmp_path / "run", **options)
    with pytest.raises(DataError, match=r"other settings \(data\)"):
        prepare_data(source, out, tokenizer=tokenizer, text_column="story")


def test_a_tokenizer_is_trained_on_a_part_of_a_long_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepared, "TOKENIZER_BYTES", 2000)
    seen: list[str] = []

    def train_kind(kind: str, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        seen.extend(texts)
        return train_bpe(seen, vocab_size)

    monkeypatch.setattr(prepared, "train_kind", train_kind)
    texts = [f"{n:04d}" * 10 for n in range(1000)]
    (tmp_path / "a.txt").write_text("<|endoftext|>".join(texts), encoding="utf-8")
    prepare_data(tmp_path / "a.txt", tmp_path / "out", vocab_size=257)
    assert 1000 < sum(map(len, seen)) < 3000
    assert int(seen[0][:4]) < 100
    assert int(seen[-1][:4]) > 900


def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(
    short_text: Path, tmp_path: Path
) -> None:
    def prepare(out: Path) -> None:
        prepare_data(short_text, out, vocab_size=300)

    prepare(tmp_path / "whole")
    whole, n = contents(tmp_path / "whole"), 0
    while killed_at(n := n + 7, lambda: prepare(tmp_path / "out")):
        pass
    prepare(tmp_path / "out")
    assert n > 50
    assert contents(tmp_path / "out") == whole


def test_only_missing_shards_are_tokenized(
    short_text: Path, tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    data = prepare_data(short_text, out, tokenizer=tokenizer)
    before = contents(out)
    index = json.loads(before["index.json"])
    index = {**index, "shards": index["shards"][:-1], "finished": False}
    (out / "index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(DataError, match="data prepare"):
        open_prepared(out)
    written, original = [], prepared.write_tokens
    monkeypatch.setattr(
        prepared, "write_tokens", lambda files, *rest: written.append(1) or original(files, *rest)
    )
    prepare_data(short_text, out, tokenizer=tokenizer)
    assert len(written) == 1 < len(data.shards)
    assert contents(out) == before
    prepare_data(short_text, out, tokenizer=tokenizer)  # finished: nothing to do
    assert len(written) == 1


def test_other_settings_and_foreign_folders_are_refused(
    short_text: Path, tokenizer: str, tmp_path: Path
) -> None:
    prepare_data(short_text, tmp_path / "out", tokenizer=tokenizer)
    with pytest.raises(DataError, match="tokenizer"):
        prepare_data(short_text, tmp_path / "out", tokenizer="char")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").touch()
    with pytest.raises(DataError, match="notes"):
        prepare_data(short_text, tmp_path / "notes", tokenizer=tokenizer)
    with pytest.raises(ConfigError, match="vocab_size"):
        run(tmp_path / "out", tmp_path / "run", vocab_size=300)
    (tmp_path / "out" / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        run(tmp_path / "out", tmp_path / "run", vocab_size=None)


def test_text_without_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DataError, match=r"empty\.txt"):
        prepare_data(tmp_path / "empty.txt", tmp_path / "out")
    assert not (tmp_path / "out" / "index.json").exists()


def test_bad_byte_of_a_long_text_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"a line of text\n" * 400 + b"caf\xe9\n" + b"a line\n" * 400)
    with pytest.raises(DataError, match=r"a\.txt, line 401: byte 0xe9"):
        prepare_data(tmp_path / "a.txt", tmp_path / "out", tokenizer="char")


def test_training_on_shards_is_training_on_the_text(short_text: Path, tmp_path: Path) -> None:
    prepare_data(short_text, tmp_path / "data", vocab_size=300)
    run(short_text, tmp_path / "text")
    run(tmp_path / "data", tmp_path / "shards", vocab_size=None)
    text, shards = metrics(tmp_path / "text"), metrics(tmp_path / "shards")
    assert [(m["train_loss"], m["val_bits_per_byte"]) for m in text] == [
        (m["train_loss"], m["val_bits_per_byte"]) for m in shards
    ]
    assert len(shards) == 3


# --- sampler ----------------------------------------------------------------------------------


@given(
    n_tokens=st.integers(2, 800),
    length=st.integers(1, 50),
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 3),
    batch=st.integers(1, 40),
)
@settings(max_examples=50, deadline=None)
def test_every_epoch_reads_each_window_once(
    n_tokens: int, length: int, seed: int, epoch: int, batch: int
) -> None:
    length = min(length, n_tokens - 1)
    n = max((n_tokens - length) // length, 1)
    starts = window_starts(n_tokens, length, seed, epoch * n, n)
    assert starts.min() >= 0
    assert starts.max() + length + 1 <= n_tokens
    assert (np.diff(np.sort(starts)) == length).all()  # side by side, none twice
    steps = [window_starts(n_tokens, length, seed, first, batch) for first in range(0, n, batch)]
    whole = window_starts(n_tokens, length, seed, 0, len(steps) * batch)
    assert np.concatenate(steps).tolist() == whole.tolist()


def test_order_is_random_and_of_the_seed() -> None:
    first, second, other = (
        window_starts(64_000, 64, seed, begin, 999) // 64
        for seed, begin in ((1, 0), (1, 999), (2, 0))
    )
    for a, b in ((first, second), (first, other), (first, np.arange(999))):
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.15  # 4.7 standard deviations
    assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 0.15
