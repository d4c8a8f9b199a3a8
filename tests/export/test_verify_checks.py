"""The table of checks: how `verify` walks over it, and what the docs say of it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from llmkit.export.check import Outcome
from llmkit.export.llamacpp.runtime import LlamaCpp
from llmkit.export.verify.checks import CHECKS, CheckContext, Needs, RegisteredCheck
from llmkit.export.verify.verify import verify

ROOT = Path(__file__).parents[2]


def section(path: str, title: str) -> str:
    _, _, after = (ROOT / path).read_text("utf-8").partition(f"## {title}\n")
    assert after, f"{path} has no section {title}"
    return after.partition("\n## ")[0]


def test_the_docs_list_the_checks_in_their_order() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", section("docs/parity.md", "The checks"), re.MULTILINE)
    assert rows == [check.name for check in CHECKS]


def test_the_readme_lists_the_checks_in_their_order() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    (line,) = re.findall(r"^\| `llmkit verify` \| .*: ([a-z, ]+)\. Says", text, re.MULTILINE)
    assert line.split(", ") == [check.name for check in CHECKS]


def test_contributing_names_files_that_exist() -> None:
    steps = section("CONTRIBUTING.md", "Add a check to `verify`")
    named = re.findall(r"`((?:export|tests|docs)/[\w/.]+)`", steps.replace("NAME", "logits"))
    assert "export/verify/checks.py" in named
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("name", [check.name for check in CHECKS])
def test_each_check_has_a_module_of_its_name(name: str) -> None:
    assert (ROOT / f"export/verify/{name}_check.py").exists()


def test_llama_cpp_is_loaded_once_after_layers(
    files: dict[str, Path], tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: dict[str, LlamaCpp | None] = {}

    def noting(check: RegisteredCheck) -> RegisteredCheck:
        def run(context: CheckContext) -> Outcome:
            loaded[check.name] = getattr(context, "llama", None)
            return Outcome(True, "")

        return replace(check, compute=run)

    noted = tuple(noting(check) for check in CHECKS if check.needs is not Needs.OLLAMA)
    monkeypatch.setattr("llmkit.export.verify.verify.CHECKS", noted)
    monkeypatch.setattr("llmkit.export.verify.verify.keep", lambda _: None)
    proof = verify(tiny_checkpoint, files["f32"], max_tokens=64)
    assert [check.name for check in proof.checks] == [check.name for check in noted]
    assert list(loaded)[:3] == ["metadata", "tensors", "layers"]
    assert [loaded.pop(name) for name in ("metadata", "tensors", "layers")] == [None] * 3
    assert isinstance(loaded["logits"], LlamaCpp)
    assert len(set(map(id, loaded.values()))) == 1
    exact = [check.name for check in proof.checks if "depend on hardware" in check.detail]
    assert exact == ["metadata", "tensors"]
