"""Damaged Modelfiles and end tokens: the right check fails and names what is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from gguf_surgery import Kind, make_checkpoint, with_array, with_key
from verify_targets import complaints, proof_of, rewritten, said

from llmkit.checkpoint.checkpoint import Checkpoint, load_checkpoint
from llmkit.checkpoint.config import CheckpointConfig, save_config
from llmkit.export.convert import export
from llmkit.export.llamacpp.runtime import LlamaCpp
from llmkit.export.quantization.config import QuantConfig
from llmkit.export.verify.metadata_check import metadata_check
from llmkit.export.verify.prompt_check import prompt_check
from llmkit.export.verify.stop_check import stop_check
from llmkit.export.verify.target import open_target
from llmkit.export.verify.verify import verify
from llmkit.modelfiles import go_engine
from llmkit.modelfiles.modelfile import Modelfile
from llmkit.modelfiles.prompt_format import (
    ALPACA,
    CHATML,
    COMPLETION,
    USER_ASSISTANT,
    Message,
    PromptFormat,
    Turn,
)
from llmkit.modelfiles.reading import read_modelfile
from llmkit.tokenizer_training import train_bpe


def exported(form: PromptFormat, folder: Path) -> tuple[Checkpoint, Path]:
    """A checkpoint that answers in a format, and a good file of it beside its Modelfile."""
    tokenizer = train_bpe(["some words to merge, some more words"], 280)
    more = [token for token in form.stops if token != "<|endoftext|>"]
    tokenizer = tokenizer.with_tokens(special=more)
    made = make_checkpoint(folder / "c", tokenizer=tokenizer, context_length=128)
    save_config(made.folder, CheckpointConfig(made.config, form))
    answering = load_checkpoint(made.folder)
    done = export(answering.folder, folder / "out", QuantConfig(["f32"]), prove=False)
    return answering, done.files[0].path


def with_template(old: str, new: str) -> Callable[[Modelfile], Modelfile]:
    def change(modelfile: Modelfile) -> Modelfile:
        assert modelfile.template is not None
        assert old in modelfile.template
        return replace(modelfile, template=modelfile.template.replace(old, new, 1))

    return change


def with_parameters(**changes: Any) -> Callable[[Modelfile], Modelfile]:
    def change(modelfile: Modelfile) -> Modelfile:
        return replace(modelfile, parameters=replace(modelfile.parameters, **changes))

    return change


def without_stop(modelfile: Modelfile) -> Modelfile:
    return replace(modelfile, parameters=replace(modelfile.parameters, stop=()))


OWN = PromptFormat(
    "own", Turn("[", "]\n"), Turn("Q: ", "\n"), Turn("A:\n", "\n--\n"), end="<|done|>"
)
IN_MODELFILES: dict[str, tuple[PromptFormat, Callable[[Modelfile], Modelfile], dict[str, str]]] = {
    "TEMPLATE with one newline less": (
        ALPACA,
        with_template("### Response:\n", "### Response:"),
        {"prompt": "TEMPLATE, one question"},
    ),
    "TEMPLATE with one space more": (
        CHATML,
        with_template("<|im_start|>user\n", "<|im_start|>user \n"),
        {"prompt": "TEMPLATE"},
    ),
    "no separator between turns": (
        USER_ASSISTANT,
        with_template("{{ .Response }}<|endoftext|>\n", "{{ .Response }}<|endoftext|>"),
        {"prompt": "TEMPLATE, two turns"},
    ),
    "no end token between turns": (
        OWN,
        with_template("{{ .Response }}<|done|>", "{{ .Response }}"),
        {"prompt": "TEMPLATE, two turns"},
    ),
    "TEMPLATE of another format": (
        USER_ASSISTANT,
        lambda modelfile: replace(modelfile, template=CHATML.template),
        {"prompt": "TEMPLATE, one question"},
    ),
    "TEMPLATE without the system text": (
        CHATML,
        with_template("{{ .System }}", ""),
        {"prompt": "TEMPLATE, a system text"},
    ),
    "no TEMPLATE": (
        CHATML,
        lambda modelfile: replace(modelfile, template=None),
        {"prompt": "TEMPLATE"},
    ),
    "TEMPLATE that does not parse": (
        ALPACA,
        with_template("{{ .Prompt }}", "{{ .Prompt "),
        {"prompt": "template error"},
    ),
    "TEMPLATE with a misspelt variable": (
        ALPACA,
        with_template("{{ .Prompt }}", "{{ .Promt }}"),
        {"prompt": "<no value>"},
    ),
    "no SYSTEM": (
        ALPACA,
        lambda modelfile: replace(modelfile, system=None),
        {"prompt": "TEMPLATE, one question"},
    ),
    "a model of Ollama's own": (
        ALPACA,
        lambda modelfile: replace(modelfile, source="llama3.2"),
        {"metadata": "FROM llama3.2"},
    ),
    "another folder's file": (
        ALPACA,
        lambda modelfile: replace(modelfile, source="../elsewhere.gguf"),
        {"metadata": "FROM ../elsewhere.gguf"},
    ),
    "a second FROM": (
        ALPACA,
        lambda modelfile: replace(modelfile, more_sources=("llama3.2",)),
        {"metadata": "FROM llama3.2"},
    ),
    "a file that is not there": (
        ALPACA,
        lambda modelfile: replace(modelfile, source="./c-q8_0.gguf"),
        {"metadata": "FROM ./c-q8_0.gguf"},
    ),
    "an adapter that is not there": (
        ALPACA,
        lambda modelfile: replace(modelfile, adapter="./gone.gguf"),
        {"metadata": "ADAPTER ./gone.gguf"},
    ),
    "an adapter that is not there, of another model": (
        ALPACA,
        lambda modelfile: replace(modelfile, source="llama3.2", adapter="./gone.gguf"),
        {"metadata": "ADAPTER ./gone.gguf"},
    ),
    "a model as an adapter": (
        ALPACA,
        lambda modelfile: replace(modelfile, adapter="./c-f32.gguf"),
        {"metadata": "c-f32.gguf is a model"},
    ),
    "num_ctx past the context": (
        ALPACA,
        with_parameters(num_ctx=4096),
        {"metadata": "num_ctx 4096 "},
    ),
    "no stop": (CHATML, without_stop, {"stop": "no PARAMETER stop for '<|im_end|>'"}),
    "one stop missing": (
        CHATML,
        lambda modelfile: replace(
            modelfile, parameters=replace(modelfile.parameters, stop=modelfile.parameters.stop[:1])
        ),
        {"stop": "no PARAMETER stop for '<|im_start|>'"},
    ),
}


THROUGH_VERIFY = ("no TEMPLATE", "num_ctx past the context", "no stop")  # one of each check


@pytest.mark.parametrize("name", IN_MODELFILES)
def test_a_damaged_modelfile_is_caught_and_named(name: str, tmp_path: Path) -> None:
    form, change, expected = IN_MODELFILES[name]
    answering, gguf = exported(form, tmp_path)
    shutil.copy(gguf, tmp_path / "elsewhere.gguf")
    rewritten(gguf, change)
    target, modelfile = open_target(answering, gguf), gguf.parent / "Modelfile"
    read = read_modelfile(modelfile).modelfile
    with LlamaCpp(gguf) as llama:
        failed = complaints(
            metadata=metadata_check(target, modelfile),
            prompt=prompt_check(target, llama, read),
            stop=stop_check(target, llama, read),
        )
    assert set(failed) == set(expected)
    for check, words in expected.items():
        assert words in failed[check]
    if name in THROUGH_VERIFY:
        assert said(proof_of(answering, gguf)) == failed


@pytest.mark.slow
@pytest.mark.parametrize(
    "form", [ALPACA, CHATML, COMPLETION, USER_ASSISTANT, OWN], ids=lambda form: form.name
)
def test_a_good_modelfile_of_every_format_passes(form: PromptFormat, tmp_path: Path) -> None:
    answering, gguf = exported(form, tmp_path)
    proof = proof_of(answering, gguf)
    assert said(proof) == {}
    assert "Modelfile" in proof.sha256_of


def test_a_modelfile_that_ollama_refuses_is_caught(tmp_path: Path) -> None:
    answering, gguf = exported(ALPACA, tmp_path)
    with (gguf.parent / "Modelfile").open("a", encoding="utf-8") as file:
        file.write("PARAMETER temprature 1\n")
    proof = proof_of(answering, gguf)
    assert "unknown parameter 'temprature'" in said(proof).pop("metadata")
    assert set(said(proof)) == {"metadata"}
    assert "Modelfile" in proof.sha256_of


def test_what_is_a_users_choice_passes(tmp_path: Path) -> None:
    answering, gguf = exported(ALPACA, tmp_path)
    shutil.copy(gguf, gguf.with_name("another.gguf"))
    choices = with_parameters(temperature=5.0, num_predict=1, num_ctx=64)
    rewritten(gguf, lambda modelfile: replace(choices(modelfile), source="./another.gguf"))
    assert said(proof_of(answering, gguf)) == {}
    (tmp_path / "m").write_text((gguf.parent / "Modelfile").read_text().replace("./", "out/"))
    proof = verify(answering.folder, gguf, modelfile=tmp_path / "m", max_tokens=96)
    assert said(proof) == {}


@pytest.mark.parametrize("compiler", [None, "false"], ids=["none", "one that cannot build"])
def test_without_go_the_template_has_to_be_the_formats_own(
    compiler: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(go_engine, "find_go", lambda: compiler)
    answering, gguf = exported(ALPACA, tmp_path)
    proof = proof_of(answering, gguf)
    assert said(proof) == {}
    assert any("no working Go compiler" in check.detail for check in proof.checks)
    rewritten(gguf, with_template("### Response:\n", "### Response:"))
    assert "TEMPLATE: differs" in said(proof_of(answering, gguf))["prompt"]


def test_jinja_and_template_that_differ_are_caught(tmp_path: Path) -> None:
    answering, gguf = exported(ALPACA, tmp_path)
    name = "tokenizer.chat_template"
    other = with_key(gguf, tmp_path / "m.gguf", name, CHATML.chat_template, Kind.STRING)
    other.replace(gguf)
    failed = said(proof_of(answering, gguf))
    assert "the GGUF's Jinja, one question" in failed["prompt"]
    assert name in failed["metadata"]


def test_another_end_is_caught(tmp_path: Path) -> None:
    answering, gguf = exported(OWN, tmp_path)
    with_key(gguf, tmp_path / "m.gguf", "tokenizer.ggml.eos_token_id", 17, Kind.UINT32)
    failed = said(verify(answering.folder, tmp_path / "m.gguf", max_tokens=96))
    assert (
        f"eos_token_id is 17, but training ended answers with token {answering.end_id} "
        in failed["stop"]
    )
    assert "llama.cpp does not stop" in failed["stop"]
    assert "eos_token_id" in failed["metadata"]


def test_an_end_token_that_is_text_is_caught(tmp_path: Path) -> None:
    answering, gguf = exported(OWN, tmp_path)
    with_array(
        gguf, tmp_path / "m.gguf", "tokenizer.ggml.token_type", lambda items: [1] * len(items)
    )
    failed = said(verify(answering.folder, tmp_path / "m.gguf", max_tokens=96))
    assert "is not CONTROL" in failed["stop"]
    assert "must be CONTROL" in failed["tokenizer"]


def test_a_model_that_never_ends_is_caught(tmp_path: Path) -> None:
    answering, gguf = exported(OWN, tmp_path)
    record = {"messages": [asdict(Message("user", "Who?")), asdict(Message("assistant", "Ida."))]}
    answering.held_out_file.parent.mkdir()
    answering.held_out_file.write_text(json.dumps(record) + "\n", encoding="utf-8")
    failed = said(proof_of(answering, gguf))
    assert (
        "0 of 1 held-out answers end in PyTorch, 0 in llama.cpp: the model never stops"
        in failed["stop"]
    )
