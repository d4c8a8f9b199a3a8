"""One command from another program's checkpoint to a verified model in the stand-in server."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from ollama_servers import stand_in
from ollama_stand_in import StandIn

from llmkit.architectures.gpt2 import GPT, GPTConfig
from llmkit.cli.main import main
from llmkit.errors import ConfigError, OllamaError
from llmkit.importing.deploy_source import deploy_source
from llmkit.importing.facts import ImportOptions

CHARACTERS = "\n !,.abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    with stand_in(tmp_path_factory.mktemp("server")) as found:
        yield found


@pytest.fixture(scope="module")
def nanogpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as nanoGPT's train.py leaves it, with the characters that it was trained on."""
    folder = tmp_path_factory.mktemp("nanogpt")
    torch.manual_seed(0)
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 32, "vocab_size": len(CHARACTERS)}
    model = GPT(GPTConfig(context_length=64, **sizes))
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3)
    weights = {f"transformer.{name}": tensor for name, tensor in model.state_dict().items()}
    weights["lm_head.weight"] = weights["transformer.wte.weight"]
    arguments = {**sizes, "block_size": 64, "bias": True, "dropout": 0.0}
    torch.save({"model": weights, "model_args": arguments, "iter_num": 1}, folder / "ckpt.pt")
    stoi = {character: number for number, character in enumerate(CHARACTERS)}
    with (folder / "meta.pkl").open("wb") as file:
        pickle.dump(
            {"vocab_size": len(stoi), "itos": dict(enumerate(CHARACTERS)), "stoi": stoi}, file
        )
    return folder


def test_a_nanogpt_checkpoint_is_imported_exported_proved_and_deployed(
    nanogpt: Path, server: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = deploy_source(nanogpt / "ckpt.pt", "nano/chars:1", host=server.url)
    assert done.deployment.passed
    assert done.imported is not None
    assert done.imported.recognised == "nanoGPT"
    assert done.exported is not None
    assert done.exported.passed
    assert "nano/chars:1" in server.models
    assert [command.split()[:2] for command in done.commands] == [
        ["llmkit", "import"],
        ["llmkit", "export"],
        ["llmkit", "deploy"],
        ["ollama", "run"],
    ]
    again = deploy_source("nano-chars-1-gguf", "other", host=server.url)
    assert again.deployment.passed
    assert again.imported is None
    assert again.exported is None


def test_the_commands_that_it_prints_can_be_typed(
    nanogpt: Path, server: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OLLAMA_HOST", server.url)
    assert main(["import", str(nanogpt), "--out", "own"]) == 0
    done = deploy_source("own", "third", host=server.url)
    assert done.deployment.passed
    assert len(done.commands) == 3
    assert main(done.commands[-2].split()[1:]) == 0


def test_nothing_is_made_where_no_server_answers(
    nanogpt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OllamaError, match=r"127\.0\.0\.1:9"):
        deploy_source(nanogpt, "x", host="127.0.0.1:9")
    assert not list(tmp_path.iterdir())


def test_options_of_import_need_something_to_import(
    nanogpt: Path, server: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["import", str(nanogpt), "--out", "own"])
    with pytest.raises(ConfigError, match="own"):
        deploy_source("own", "x", ImportOptions(n_head=2), host=server.url)


def test_a_gguf_file_is_deployed_as_it_is(
    nanogpt: Path, server: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["import", str(nanogpt), "--out", "own"]) == 0
    assert main(["export", "own", "--out", "files", "--quant", "q8_0", "--no-verify"]) == 0
    done = deploy_source("files/own-q8_0.gguf", "fourth", host=server.url)
    assert done.deployment.passed
    assert sorted(path.name for path in Path("fourth-gguf").iterdir()) == [
        "Modelfile",
        "own-q8_0.gguf",
    ]
    assert done.exported is None
