import json
import pickle
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from llmkit.cli.main import main
from llmkit.export.convert import Export

Files = dict[str, Path]


@pytest.fixture
def files(tmp_path: Path, corpus: Path, tiny_checkpoint: Path, tiny_export: Export) -> Files:
    short = tmp_path / "short.txt"
    short.write_text("Too short.")
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    latin1 = tmp_path / "latin1.txt"
    latin1.write_bytes(b"first line\nna\xefve\n")
    no_text = tmp_path / "records.jsonl"
    no_text.write_text('{"text": "fine"}\n{"body": "no text"}\n')
    (tmp_path / "no-text-files").mkdir()
    gguf = tiny_export.files[-1].path
    truncated = tmp_path / "truncated.gguf"
    truncated.write_bytes(gguf.read_bytes()[:-5000])
    foreign = tmp_path / "foreign.gguf"
    foreign.write_bytes(b"PK\x03\x04 a zip file, perhaps")
    damaged = tmp_path / "damaged"
    shutil.copytree(tiny_checkpoint, damaged)
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    pickled = tmp_path / "model.pt"
    pickled.write_bytes(pickle.dumps(_Bomb(tmp_path / "unpickled")))
    bad_toml = tmp_path / "bad.toml"
    bad_toml.write_text("[model]\nn_layers = 2\n")
    return {
        "tmp": tmp_path,
        "corpus": corpus,
        "short": short,
        "empty": empty,
        "latin1": latin1,
        "no_text": no_text,
        "no_text_files": tmp_path / "no-text-files",
        "checkpoint": tiny_checkpoint,
        "gguf": gguf,
        "truncated": truncated,
        "foreign": foreign,
        "damaged": damaged,
        "pickled": pickled,
        "bad_toml": bad_toml,
    }


class _Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return Path.touch, (self.path,)


CASES: dict[str, tuple[str, str | tuple[str, ...]]] = {
    # command, what the one line must say
    "missing text": ("train --data {tmp}/none.txt --out {tmp}/out", "none.txt does not exist"),
    "empty text": ("train --data {empty} --out {tmp}/out", "empty.txt"),
    "short text": ("train --data {short} --out {tmp}/out", "too short"),
    "not UTF-8": ("train --data {latin1} --out {tmp}/out", "latin1.txt, line 2: byte 0xef"),
    "no text field": ("train --data {no_text} --out {tmp}/out", "records.jsonl, line 2"),
    "empty folder": (
        "train --data {no_text_files} --out {tmp}/out",
        ("no-text-files ", ".txt, .md"),
    ),
    "unknown preset": (
        "train --data {corpus} --out {tmp}/out --preset nanno",
        "did you mean 'nano'?",
    ),
    "unknown field": (
        "train --data {corpus} --out {tmp}/out --config {bad_toml}",
        "n_layers",
    ),
    "unknown tokenizer": (
        "train --data {corpus} --out {tmp}/out --tokenizer bpee",
        "tokenizer 'bpee'",
    ),
    "vocabulary too small": (
        "train --data {corpus} --out {tmp}/out --vocab-size 100",
        "vocab_size 100 ",
    ),
    "no steps": ("train --data {corpus} --out {tmp}/out --steps 0", "steps"),
    "another run": (
        "train --data {corpus} --out {checkpoint}",
        ("model.vocab_size", " 512,", " 2048,", "--out"),
    ),
    "foreign folder": ("train --data {corpus} --out {tmp}", "is not empty"),
    "missing checkpoint": ("export {tmp}/none --out {tmp}/out", "none does not exist"),
    "a pickle": ("export {pickled} --out {tmp}/out", ("model.pt ", "pickle")),
    "truncated weights": ("export {damaged} --out {tmp}/out", "truncated"),
    "unknown type": ("export {checkpoint} --out {tmp}/out --quant q4_O", "did you mean 'q4_0'?"),
    "no type": ("export {checkpoint} --out {tmp}/out --quant ,", "quantization type"),
    "type that fails after another": (
        "export {checkpoint} --out {tmp}/new/out --quant f16,iq2_xxs --no-verify",
        ("iq2_xxs", "importance"),
    ),
    "distill on short text": (
        "finetune distill {checkpoint} --data {short} --qat q4_0 --out {tmp}/out",
        "too short",
    ),
    "export into a checkpoint": ("export {checkpoint} --out {checkpoint}", "is a checkpoint"),
    "foreign GGUF": ("verify {checkpoint} {foreign}", "is not a GGUF file"),
    "a name that is too long": (f"train --data {'a' * 300} --out {{tmp}}/out", "cannot use aaa"),
    "a prompt that is not UTF-8": (
        "generate {checkpoint} --prompt caf\udce9",
        ("UTF-8", "character 4"),
    ),
    "deploy a folder without a model": ("deploy {tmp} --name a", "no tensors"),
    "missing GGUF": ("verify {checkpoint} {tmp}/none.gguf", "none.gguf"),
    "compare with a foreign file": ("compare {checkpoint} {foreign}", "is not a GGUF file"),
    "compare on short text": ("compare {checkpoint} {gguf} --data {empty}", "empty.txt"),
    "unknown plot": ("compare {checkpoint} {gguf} --plot {tmp}/a.pdff", "a.pdff"),
    "context too long": (
        "generate {checkpoint} --prompt " + "word" * 400,
        ("1200 tokens", " 64;"),
    ),
    "context too long for GGUF": (
        "generate {gguf} --prompt " + "word" * 400,
        ("1200 tokens", " 64;"),
    ),
    "negative temperature": (
        "generate {checkpoint} --prompt Hi --temperature -1",
        ("temperature", "not -1.0"),
    ),
    "inspect a text file": ("inspect {short}", ("short.txt", "checkpoint folder", "GGUF file")),
    "unknown option": ("train --dta {corpus}", ("'--dta'", "--data")),
    "unknown command": ("trian --data {corpus}", ("'trian'", "'train'")),
    "missing option": ("train --data {corpus}", "option '--out'"),
    "missing value": ("train --data {corpus} --out", "'--out'"),
    "not a number": ("train --data {corpus} --out {tmp}/out --steps many", "'--steps'"),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_line_and_exit_code_2(
    name: str, files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    command, expected = CASES[name]
    before = _snapshot(files["tmp"])

    code = main([word.format(**files) for word in command.split()])

    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1, captured.err
    assert captured.err.startswith("llmkit: ")
    for words in expected if isinstance(expected, tuple) else (expected,):
        assert words in captured.err
    assert _snapshot(files["tmp"]) == before


def test_every_command_names_a_truncated_gguf_and_the_remedy(
    files: Files, tiny_export: Export, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = files["tmp"] / "exported"
    shutil.copytree(tiny_export.folder, folder)
    gguf = folder / files["gguf"].name  # the smallest, so that of the Modelfile
    for n_bytes in (gguf.stat().st_size - 1000, 2):
        gguf.write_bytes(gguf.read_bytes()[:n_bytes])
        for command in (
            "generate {gguf} --prompt Hi",
            "chat {gguf}",
            "compare {checkpoint} {gguf}",
            "verify {checkpoint} {gguf}",
            "inspect {gguf}",
            "quantize {gguf} --out {tmp}/new.gguf --quant q4_0",
            "modelfile write {gguf}",
            "deploy {folder} --checkpoint {checkpoint} --name a",
        ):
            words = {**files, "gguf": gguf, "folder": folder}
            assert main([word.format(**words) for word in command.split()]) == 2
            (line,) = capsys.readouterr().err.splitlines()
            for word in (f"{gguf.name} is truncated", "download", "export"):
                assert word in line, command


def _raise(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("fail", "words"),
    [
        (lambda: _raise(MemoryError()), "out of memory; use a smaller"),
        (lambda: torch.empty(1 << 50), "out of memory; use a smaller"),
        (
            lambda: _raise(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")),
            "out of memory; use a smaller",
        ),
        (
            lambda: _raise(RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)")),
            "out of memory; use a smaller",
        ),
        (lambda: _raise(RuntimeError("a slip")), "unexpected RuntimeError: a slip; --debug"),
    ],
)
def test_no_more_memory_is_told_as_such(
    fail: Callable[[], object],
    words: str,
    files: Files,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("llmkit.export.inspection.inspect", lambda path: fail())
    assert main(["inspect", str(files["checkpoint"])]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"llmkit: {words}")


def test_without_a_command_the_help_says_enough(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    printed = capsys.readouterr()
    assert "Usage:" in printed.out
    assert printed.err == ""


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"llmkit {version('llmkit')}\n"


def test_debug_shows_the_traceback(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--debug", str(files["tmp"] / "none"), "--out", "x"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "traceback"),
    [
        ("--debug inspect none", True),
        ("finetune --debug instruct none --data x --out y", True),
        ("finetune instruct none --data x --out y --debug", True),
        ("inspect none", False),
        ("generate none --prompt --debug", False),  # the value of another option
        ("generate none --prompt=--debug", False),
        ("inspect -- --debug", False),
    ],
)
def test_debug_is_an_option_of_every_command(
    command: str, traceback: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command.split()) == 2
    said = capsys.readouterr().err
    assert ("Traceback" in said) == traceback
    assert "does not exist" in said.splitlines()[-1]


@pytest.mark.parametrize(
    ("command", "help_of"),
    [
        ("train --dta x", "llmkit train"),
        ("finetune instruct --dta x", "llmkit finetune instruct"),
        ("finetune none", "llmkit finetune"),
        ("none", "llmkit"),
        ("--debug train --data", "llmkit train"),
    ],
)
def test_wrong_use_names_the_help_of_its_command(
    command: str, help_of: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command.split()) == 2
    assert capsys.readouterr().err.endswith(f"; see {help_of} --help\n")


@pytest.mark.slow
def test_json_is_one_object_on_stdout(
    files: Files, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    gguf = tmp_path / files["gguf"].name
    shutil.copy(files["gguf"], gguf)
    for command in (
        f"verify {files['checkpoint']} {gguf} --json",
        f"compare {files['checkpoint']} {gguf} --json",
        f"inspect {gguf} --json",
        f"inspect {files['checkpoint']} --json",
        f"export {files['checkpoint']} --out {tmp_path}/out --quant q8_0 --json",
    ):
        assert main(command.split()) == 0
        assert isinstance(json.loads(capsys.readouterr().out), dict)


def test_a_failed_check_is_exit_code_1(
    files: Files, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.gguf"
    content = bytearray(files["gguf"].read_bytes())
    content[-1000] ^= 0x10  # one bit of the last tensors
    broken.write_bytes(content)
    assert main(["verify", str(files["checkpoint"]), str(broken)]) == 1
    assert "✘" in capsys.readouterr().out


def _snapshot(folder: Path) -> set[str]:
    return {f"{path.relative_to(folder)}" for path in folder.rglob("*")}
