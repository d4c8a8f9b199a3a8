from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest
import torch
from finetuned import as_classifier
from gguf_surgery import Kind, make_checkpoint, with_key, without_key
from typer.testing import CliRunner
from verify_targets import chatml_checkpoint, lora_checkpoint

from llmkit.checkpoint.checkpoint import Checkpoint
from llmkit.checkpoint.config import CheckpointConfig, save_config
from llmkit.cli.main import app
from llmkit.errors import CheckpointError, ConfigError, GGUFError, ModelfileError
from llmkit.export.convert import export
from llmkit.export.modelfile.lint import lint_modelfile
from llmkit.export.modelfile.write import write_modelfile
from llmkit.export.quantization.config import QuantConfig
from llmkit.export.quantization.imatrix import collect_importance, write_imatrix
from llmkit.modelfiles.modelfile import Modelfile
from llmkit.modelfiles.parameters import Parameters
from llmkit.modelfiles.prompt_format import ALPACA, COMPLETION, PROMPT_FORMATS
from llmkit.modelfiles.reading import read_modelfile
from llmkit.tokenizer_training import train_bpe

JINJA = gguf.Keys.Tokenizer.CHAT_TEMPLATE


def exported(checkpoint: Checkpoint, out: Path) -> tuple[Path, Modelfile]:
    """The GGUF file alone, and what export's own Modelfile said."""
    done = export(checkpoint.folder, out, QuantConfig(["f32"]), prove=False)
    said = read_modelfile(done.modelfile).modelfile
    done.modelfile.unlink()
    return done.files[0].path, said


def without_comment(modelfile: Modelfile) -> Modelfile:
    return Modelfile(**{**vars(modelfile), "comment": ()})


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return exported(make_checkpoint(tmp_path / "c"), tmp_path / "out")[0]


@pytest.mark.parametrize("kind", [*PROMPT_FORMATS, "lora", "classifier"])
def test_a_gguf_file_says_what_export_would_write(kind: str, tmp_path: Path) -> None:
    if kind == "chatml":
        checkpoint = chatml_checkpoint(tmp_path / "c")
    elif kind == "lora":
        checkpoint = lora_checkpoint(tmp_path / "c")
    elif kind == "classifier":
        labels = ("ham", "spam")
        tokenizer = train_bpe(["some words to merge, some more words"], 280).with_tokens(
            words=labels
        )
        untied = make_checkpoint(tmp_path / "u", tokenizer=tokenizer, tie_embeddings=False)
        checkpoint = as_classifier(untied, tmp_path / "c", labels)
    else:
        checkpoint = make_checkpoint(tmp_path / "c")
        config = CheckpointConfig(checkpoint.config, PROMPT_FORMATS[kind])
        save_config(checkpoint.folder, config)
    file, said = exported(checkpoint, tmp_path / "out")
    written = write_modelfile(file)
    assert written == file.parent / "Modelfile"
    assert read_modelfile(written).modelfile == without_comment(said)
    assert lint_modelfile(written).findings == ()
    written.unlink()
    again = write_modelfile(checkpoint.folder, gguf_file=file)
    assert read_modelfile(again).modelfile == without_comment(said)


def test_a_base_model_without_chat_format_gets_a_completion_template(base: Path) -> None:
    bare = without_key(base, base.with_name("bare.gguf"), JINJA)
    written = write_modelfile(bare)
    assert read_modelfile(written).modelfile.template == COMPLETION.template
    assert lint_modelfile(written).findings == ()


def test_a_foreign_chat_template_needs_its_format_named(base: Path) -> None:
    foreign = with_key(base, base.with_name("foreign.gguf"), JINJA, "{{ x }}", Kind.STRING)
    with pytest.raises(ConfigError, match="--format: completion, alpaca"):
        write_modelfile(foreign)
    written = write_modelfile(foreign, form=ALPACA)
    assert read_modelfile(written).modelfile.template == ALPACA.template


def test_the_end_token_of_the_file_is_a_stop(base: Path) -> None:
    tokens = gguf.GGUFReader(base).fields[gguf.Keys.Tokenizer.LIST].contents()
    other = with_key(
        base, base.with_name("other.gguf"), gguf.Keys.Tokenizer.EOS_ID, 65, Kind.UINT32
    )
    stops = read_modelfile(write_modelfile(other)).modelfile.parameters.stop
    assert stops == (tokens[65], "<|endoftext|>")


def test_the_modelfile_may_stand_elsewhere(base: Path, tmp_path: Path) -> None:
    for out, source in (
        (tmp_path / "Modelfile", "./out/c-f32.gguf"),
        (tmp_path / "else" / "Modelfile", base.resolve().as_posix()),
    ):
        written = write_modelfile(base, out)
        assert read_modelfile(written).modelfile.source == source
        assert lint_modelfile(written).findings == ()


def test_what_is_asked_for_is_written(base: Path) -> None:
    parameters = Parameters(temperature=0.5, num_ctx=16, use_mmap=False, stop=("\n\n",))
    written = write_modelfile(base, system='Say "hi".', parameters=parameters)
    said = read_modelfile(written).modelfile
    assert said.system == 'Say "hi".'
    assert said.parameters == Parameters(
        stop=("<|endoftext|>", "\n\n"), temperature=0.5, num_ctx=16, use_mmap=False
    )


def test_what_cannot_be_written_leaves_nothing(base: Path, tmp_path: Path) -> None:
    target = base.parent / "Modelfile"
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ModelfileError, match=r"^SYSTEM: "):
        write_modelfile(base, system='a"""\nb"\n')
    with pytest.raises(ConfigError, match=r"exported.*--gguf"):
        write_modelfile(tmp_path / "c")
    with pytest.raises(CheckpointError, match=r"notes\.txt .*checkpoint"):
        write_modelfile(tmp_path / "notes.txt")
    with pytest.raises(ConfigError, match=r"already.*--gguf"):
        write_modelfile(base, gguf_file=base)
    other = make_checkpoint(tmp_path / "d", context_length=8)
    with pytest.raises(ConfigError, match=r"\b32\b.*\b8\b"):
        write_modelfile(other.folder, gguf_file=base)
    with pytest.raises(GGUFError, match=r"none\.gguf does not exist"):
        write_modelfile(base.with_name("none.gguf"))
    assert not target.exists()


def test_importances_have_no_modelfile(tmp_path: Path) -> None:
    made = make_checkpoint(tmp_path / "c")
    matrix = tmp_path / "imatrix.gguf"
    write_imatrix(matrix, collect_importance(made.load_model(), torch.arange(32)[None], "text"))
    with pytest.raises(GGUFError, match=r"general.architecture"):
        write_modelfile(matrix)


def test_an_adapter_has_no_modelfile_of_its_own(tmp_path: Path) -> None:
    file, _ = exported(lora_checkpoint(tmp_path / "c"), tmp_path / "out")
    (adapter,) = file.parent.glob("*-adapter.gguf")
    with pytest.raises(GGUFError, match="adapter"):
        write_modelfile(adapter)


def test_a_modelfile_that_is_there_stays(base: Path) -> None:
    there = base.parent / "Modelfile"
    there.write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match="Modelfile"):
        write_modelfile(base)
    assert there.read_text(encoding="utf-8") == "mine"


def test_the_commands_write_check_and_explain(base: Path) -> None:
    def run(*words: str) -> tuple[int, str]:
        found = CliRunner().invoke(app, ["modelfile", *words])
        return found.exit_code, found.stdout

    out = base.parent / "M"
    code, shown = run("write", str(base), "--out", str(out), "--parameter", "top_k=3")
    assert code == 0
    assert shown.startswith(f"{out}: ")
    assert len(shown.splitlines()) == 1
    code, shown = run("show", str(out))
    assert code == 0
    assert "top_k: 3: " in shown
    code, shown = run("show", str(out), "--json")
    first = json.loads(shown)["explanations"][0]
    assert first["subject"] == "FROM"
    assert f"./{base.name}" in first["text"]
    out.unlink()
    code, shown = run("write", str(base), "--out", str(out), "--parameter", "num_ctx=64", "--json")
    assert code == 1
    assert json.loads(shown)["findings"][0]["level"] == "error"
    assert run("write", str(base), "--parameter", "top_k")[0] == 1
    assert run("write", str(base), "--format", "alpca")[0] == 1
