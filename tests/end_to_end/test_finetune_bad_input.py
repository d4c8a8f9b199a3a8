"""Fine-tuning on what cannot be used: one line, exit code 2, nothing written."""

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from llmkit.checkpoint.checkpoint import load_checkpoint
from llmkit.cli.main import main

RECORD = {"instruction": "Say it.", "output": "It."}
FILES: dict[str, Any] = {
    "good.jsonl": [{"prompt": f"{n}?", "completion": "Yes."} for n in range(8)],
    "no-field.jsonl": [RECORD, RECORD, {"instruction": "Say it."}],
    "empty.answer": [RECORD, {**RECORD, "output": "  "}],
    "no-text": [RECORD, {**RECORD, "output": [5]}],
    "few.jsonl": [RECORD, RECORD],
    "long.jsonl": [{**RECORD, "output": "word " * 200}] * 5,
    "roles.jsonl": [{"messages": [{"role": "assistant", "content": "Hi"}]}],
    "record.json": '[\n {"instruction": "a", "output": "b"},\n {"instruction": "a"}\n]',
    "broken.jsonl": json.dumps(RECORD) + "\n" + '{"instruction": "a", \n',
    "broken.json": '[\n {"instruction": "a"},\n {"instruction" "b"}\n]',
    "table.tsv": "ham\tHello\nspam\tBuy now\n",
    "empty.jsonl": "",
    "train.tsv": "".join(f"{label}\ttext {n} {label}\n" for n in range(9) for label in ("a", "b")),
    "test.tsv": "a\tsome text\nb\tmore\na\tand more\nc\tan unknown label\nb\tlast\n",
    "own.toml": 'name = "own"\nsytem = {}\n',
}


@pytest.fixture
def files(tmp_path: Path, tiny_checkpoint: Path) -> dict[str, str]:
    for name, content in FILES.items():
        text = content if isinstance(content, str) else "\n".join(map(json.dumps, content))
        (tmp_path / name).write_text(text, encoding="utf-8")
    return {"tmp": str(tmp_path), "base": str(tiny_checkpoint)}


INSTRUCT = "finetune instruct {base} --out {tmp}/out --format user-assistant --data {tmp}/"
CLASSIFY = "finetune classify {base} --out {tmp}/out --data {tmp}/"
CASES: dict[str, tuple[str, str | tuple[str, ...]]] = {
    # command, what the one line must say
    "missing file": (INSTRUCT + "none.jsonl", "none.jsonl does not exist"),
    "record without the field": (
        INSTRUCT + "no-field.jsonl",
        'no-field.jsonl, line 3: no field "output"',
    ),
    "record of a list without the field": (
        INSTRUCT + "record.json",
        'record.json, record 2, line 3: no field "output"',
    ),
    "empty answer": (INSTRUCT + "empty.answer", 'empty.answer, line 2: "output" is empty'),
    "answer that is no text": (INSTRUCT + "no-text", 'no-text, line 2: "output"'),
    "answer without a question": (INSTRUCT + "roles.jsonl", "roles.jsonl, line 1"),
    "wrong format": (INSTRUCT + "table.tsv", "table.tsv, line 2: no field of a known format"),
    "empty file": (INSTRUCT + "empty.jsonl", "empty.jsonl is empty"),
    "broken line": (INSTRUCT + "broken.jsonl", ("broken.jsonl, line 2: ", "JSON")),
    "broken list": (INSTRUCT + "broken.json", ("broken.json, line 3: ", "JSON")),
    "too few records": (INSTRUCT + "few.jsonl", "1 different record"),
    "rank 0": (INSTRUCT + "good.jsonl --lora 0", "LoRA: rank"),
    "dropout 1": (INSTRUCT + "good.jsonl --lora 4 --lora-dropout 1", "LoRA: dropout"),
    "alpha 0": (INSTRUCT + "good.jsonl --lora 4 --lora-alpha 0", "LoRA: alpha"),
    "unknown target": (
        INSTRUCT + "good.jsonl --lora 4 --lora-targets attn.c_atn",
        "did you mean 'attn.c_attn'?",
    ),
    "unknown target without a rank": (
        INSTRUCT + "good.jsonl --lora-targets attn.c_atn",
        "did you mean 'attn.c_attn'?",
    ),
    "unknown blocks": (INSTRUCT + "good.jsonl --qlora q4_O", "did you mean 'q4_0'?"),
    "no epochs": (INSTRUCT + "good.jsonl --epochs 0", "epochs"),
    "endless epochs": (INSTRUCT + "good.jsonl --epochs inf", "epochs"),
    "no records in a batch": (INSTRUCT + "good.jsonl --batch-size 0", ("batch_size", "not 0")),
    "unknown sweep": (INSTRUCT + "good.jsonl --sweep lorra=2,4", "did you mean 'lora'?"),
    "sweep of rank 0": (INSTRUCT + "good.jsonl --sweep lora=0", ("--sweep lora=0: ", "full")),
    "sweep of what another kind has": (
        INSTRUCT + "good.jsonl --sweep unfreeze=head",
        ("--sweep unfreeze: ", "lora, qlora, mask-prompt"),
    ),
    "sweep without values": (INSTRUCT + "good.jsonl --sweep lora", ("lora", "lora=8,16")),
    "unknown plot": (INSTRUCT + "good.jsonl --sweep lora=2 --plot {tmp}/a.pdff", "a.pdff"),
    "plot of nothing": (INSTRUCT + "good.jsonl --plot {tmp}/a.png", ("--plot ", "--sweep")),
    "unknown plot of a classifier": (CLASSIFY + "train.tsv --plot {tmp}/a.pdff", "a.pdff"),
    "unknown prompt format": (INSTRUCT + "good.jsonl --format chatmll", "did you mean 'chatml'?"),
    "own format with a slip": (
        INSTRUCT + "good.jsonl --format {tmp}/own.toml",
        ("own.toml", "'sytem'", "'system'"),
    ),
    "missing special tokens": (INSTRUCT + "good.jsonl --format chatml", "--add-tokens"),
    "new tokens with LoRA": (
        INSTRUCT + "good.jsonl --format chatml --add-tokens --lora 2",
        "LoRA does not train embeddings",
    ),
    "missing base": (
        "finetune instruct {tmp}/none --out {tmp}/out --data {tmp}/good.jsonl",
        "none does not exist",
    ),
    "unknown label in the test split": (
        CLASSIFY + "train.tsv --test-data {tmp}/test.tsv --add-tokens",
        "test.tsv, line 4",
    ),
    "records that are all too long": (INSTRUCT + "long.jsonl", ("long.jsonl", "all 5 records")),
}
NOTED_CASES = {
    # command, the note before the one line of the error, what that must say
    "base as out": (
        INSTRUCT + "good.jsonl --out {base}",
        "% of the tokens",
        "choose another --out",
    ),
    "foreign folder": (
        INSTRUCT + "good.jsonl --out {tmp}",
        "% of the tokens",
        "is not empty",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_line_and_exit_code_2(
    name: str, files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    command, expected = CASES[name]
    lines = refused(command, files, capsys)
    assert len(lines) == 1, lines
    for words in expected if isinstance(expected, tuple) else (expected,):
        assert words in lines[0]


@pytest.mark.parametrize("name", NOTED_CASES)
def test_what_is_noted_before_an_error_stands_above_its_line(
    name: str, files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    command, noted, expected = NOTED_CASES[name]
    note, error = refused(command, files, capsys)
    assert noted in note
    assert expected in error


def refused(command: str, files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What a command says that ends with exit code 2 and has changed nothing."""
    before = [_snapshot(Path(files[name])) for name in ("tmp", "base")]
    code = main([word.format(**files) for word in command.split()])
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert lines[-1].startswith("llmkit: ")
    assert not lines[-1].startswith("llmkit: unexpected")
    assert [_snapshot(Path(files[name])) for name in ("tmp", "base")] == before
    return lines


def test_a_fine_tuned_model_talks_and_json_is_one_object(
    files: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = (INSTRUCT + "good.jsonl --lora-targets attn.c_attn --json").format(**files)
    assert main(command.split()) == 0
    told = json.loads(capsys.readouterr().out)
    made = load_checkpoint(tmp_path / "out")
    assert told["checkpoint"] == str(tmp_path / "out")
    assert told["n_records"] == [6, 1, 1]
    assert 0 < told["n_trained"] < told["n_parameters"]
    assert made.lora is not None
    assert (made.lora.rank, made.lora.targets) == (16, ("attn.c_attn",))
    for end in ("", "/bye\nnever read\n"):
        monkeypatch.setattr("sys.stdin", io.StringIO(f"1?\n\n2?\n{end}"))
        assert main(f"chat {tmp_path}/out --temperature 0 --max-tokens 3".split()) == 0
        assert capsys.readouterr().out.count("\n") >= 2
    assert main(command.removesuffix(" --json").split()) == 0  # finished: it is told again
    out = capsys.readouterr().out
    assert "answers end by themselves" in out
    assert f"next: llmkit export {tmp_path}/out --out {tmp_path}/out-export" in out


def test_a_classifier_is_drawn_with_json_too(
    files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = (CLASSIFY + "train.tsv --add-tokens --epochs 1 --plot {tmp}/a.svg").format(**files)
    for option in (["--json"], []):
        assert main([*command.split(), *option]) == 0
        assert "<svg" in (tmp_path / "a.svg").read_text(encoding="utf-8")
        (tmp_path / "a.svg").unlink()
        told = capsys.readouterr().out
        assert json.loads(told)["labels"] == ["a", "b"] if option else "next: llmkit export" in told


@pytest.mark.parametrize("command", [INSTRUCT, CLASSIFY, INSTRUCT.replace("instruct", "prefer")])
def test_fine_tuning_loads_no_plots_unasked(
    command: str,
    files: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for module in ("plot", "sweep", "confusion"):
        monkeypatch.setitem(sys.modules, f"llmkit.export.{module}", None)
    words = command.replace("--format user-assistant", "").format(**files).split()
    assert main([*words[:-1], f"{words[-1]}none"]) == 2
    assert "none does not exist" in capsys.readouterr().err


def test_a_chat_forgets_what_no_longer_fits(
    files: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = tmp_path / "base"
    shutil.copytree(files["base"], base)
    monkeypatch.setattr("sys.stdin", io.StringIO("The fox and the hare\n" * 12))
    assert main(f"chat {base} --temperature 0 --max-tokens 4".split()) == 0
    captured = capsys.readouterr()
    assert "the context is full" in captured.err
    monkeypatch.setattr("sys.stdin", io.StringIO("word" * 300))
    assert main(f"chat {base}".split()) == 2
    assert "shorten the prompt" in capsys.readouterr().err


def _snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in folder.rglob("*")
        if path.is_file() or path.is_dir()
    }
