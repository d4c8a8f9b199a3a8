"""What the README tells users to type works."""

import re
import shutil
from pathlib import Path

import pytest

from llmkit.cli.main import main

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^\$ (llmkit .*)$", README, flags=re.MULTILINE)
GROUPS = ("finetune",)  # of commands
SMALL = (
    'vocab_size=400, model={"n_layer": 1, "n_embd": 64, "context_length": 64}, '
    'training={"steps": 4, "eval_interval": 2, "eval_tokens": 512}'
)


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 5


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_and_their_options_exist(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, name, *words = command.split()
    names = [name, words[0]] if name in GROUPS else [name]
    assert main([*names, "--help"]) == 0
    known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    assert {word for word in words if word.startswith("--")} <= known


def test_the_table_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    there = set(re.findall(r"^  ([a-z]+)  ", capsys.readouterr().out, flags=re.MULTILINE))
    assert there
    assert there == set(re.findall(r"^\| `llmkit ([a-z]+)`", README, flags=re.MULTILINE))


@pytest.mark.slow
def test_the_notebook_example_runs(
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert 'preset="nano"' in example
    shutil.copy(corpus, tmp_path / "my-text.txt")
    monkeypatch.chdir(tmp_path)
    exec(example.replace('preset="nano"', SMALL), {})
    assert capsys.readouterr().out.strip()
    assert (tmp_path / "runs" / "mine-export" / "Modelfile").exists()
