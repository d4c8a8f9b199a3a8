"""The help of the commands: quick, whole, and the same in docs/commands.md."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from llmkit.cli.main import main

DOCS = Path(__file__).parents[2] / "docs"
HEAVY = {
    "asyncio", "gguf", "httpx", "importlib.metadata", "jinja2", "llama_cpp", "matplotlib", "numpy",
    "psutil", "pydantic", "rich.console", "safetensors", "streamlit", "tokenizers", "torch",
}  # fmt: skip


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from llmkit.cli.main import main; main(['--help']); print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(run.stdout.splitlines()[-1].split())
    assert "llmkit.cli.main" in loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize("group", [[], ["data"], ["finetune"], ["modelfile"], ["tokenizer"]])
def test_no_line_of_help_is_cut_short(
    group: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*group, "--help"]) == 0
    _, commands = capsys.readouterr().out.split("Commands:")
    assert "..." not in commands


def test_no_help_shows_a_python_type() -> None:
    page = runpy.run_path(str(DOCS / "write_commands.py"))["page"]()
    assert page.count("Usage: ") > 25
    assert page.count("Usage: ") > 25
    assert page.count("Usage: ") > 25
    found = set(re.findall(r"<[^>\n]*>", page))
    assert all(re.fullmatch(r"<[a-z_.]+(\|[a-z_.]+)*>", choices) for choices in found)
    assert {"<gguf|hf>", "<rtn|gptq|llama.cpp>", "<llama.cpp>", "<pre|post>"} <= found


def test_the_command_reference_is_what_help_says() -> None:
    written = runpy.run_path(str(DOCS / "write_commands.py"))
    assert (DOCS / "commands.md").read_text(encoding="utf-8") == written["page"]()
