"""Deploying into a stand-in that answers as recorded, and into a real Ollama where there is one."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import ollama_stand_in
import pytest
from deployable import answering_checkpoint, exported, records_of, write_proof
from finetuned import with_adapter
from gguf_surgery import Kind, with_key
from ollama_servers import real_ollama, stand_in
from ollama_stand_in import StandIn, Trouble
from ollama_stand_in_models import Stored

from llmkit.checkpoint.checkpoint import Checkpoint
from llmkit.checkpoint.tensors import save_tensors
from llmkit.cli.main import main
from llmkit.errors import ConfigError, LlmkitError, ModelfileError, OllamaError
from llmkit.export.deploy.deploy import Deployment, deploy
from llmkit.export.doctor import machine
from llmkit.export.evaluation.eval_data import proof_prompts
from llmkit.export.ollama.address import full_name, unverified_name
from llmkit.export.ollama.server import OllamaServer, Said
from llmkit.export.ollama.store import Blob, copy, create, delete, upload
from llmkit.export.ollama.transport import Patience, Transport
from llmkit.export.verify.ollama_check import ollama_check
from llmkit.export.verify.target import open_target
from llmkit.modelfiles.modelfile import Modelfile, render
from llmkit.modelfiles.prompt_format import ALPACA, CHATML, Message, PromptFormat
from llmkit.modelfiles.reading import read_modelfile

NAME = "llmkit-test-tales"
UNHURRIED = Patience(connect=600, answer=600)  # for tests that outlast a busy machine
PATIENCE = Patience(connect=5, answer=3, compute=60, upload=1, create=5, pause=0.01)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return answering_checkpoint(tmp_path_factory.mktemp("deploy") / "c")


@pytest.fixture(scope="module")
def folder(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(checkpoint, tmp_path_factory.mktemp("deploy") / "out")


@pytest.fixture(scope="module")
def other(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another export of it."""
    return exported(checkpoint, tmp_path_factory.mktemp("deploy") / "out", "f16")


@pytest.fixture(scope="module")
def module_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    with stand_in(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def server(module_server: StandIn) -> Iterator[StandIn]:
    """An empty stand-in without troubles."""
    module_server.trouble = Trouble()
    module_server.models.clear()
    module_server.asked.clear()
    shutil.rmtree(module_server.folder / "blobs", ignore_errors=True)
    yield module_server
    module_server.trouble = Trouble()


@pytest.fixture(scope="module", params=["stand-in", "real Ollama"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that may be a real one; the tests' models are removed from it."""
    if request.param == "stand-in":
        with stand_in(tmp_path_factory.mktemp("server")) as server:
            yield server.url
        return
    with real_ollama(tmp_path_factory.mktemp("ollama")) as found:
        yield found
        with OllamaServer(found) as server, suppress(OllamaError):
            delete(server.http, NAME)


def names(url: str) -> dict[str, str]:
    """What a server has: digests by name."""
    with OllamaServer(url) as server:
        models = server.http.ask("GET", "/api/tags").get("models") or []
    return {model["name"]: model["digest"] for model in models}


def crosses(done: Deployment) -> dict[str, str]:
    return {check.name: check.detail for check in done.checks if not check.passed}


def take_name(server: StandIn, folder: Path) -> dict[str, str]:
    """Give the name to another model; what the server then has."""
    modelfile = read_modelfile(folder / "Modelfile").modelfile
    server.models[f"{NAME}:latest"] = Stored(next(folder.glob("*.gguf")), modelfile, "before")
    return names(server.url)


# Against any server


def test_a_model_is_verified_and_gets_its_name(folder: Path, url: str) -> None:
    before = names(url)
    done = deploy(folder, NAME, host=url)
    assert done.passed, crosses(done)
    assert names(url).keys() - before.keys() == {f"{NAME}:latest"}
    found = {check.name: check.detail for check in done.checks}
    assert list(found)[-6:] == ["upload", "create", "stored", "prompt", "logprobs", "stop"]
    assert found["logprobs"].split()[0] != "0"
    assert found["stop"] == "5 of 5 answers end by themselves"
    assert done.summary.endswith(f"Run it: ollama run {NAME}")


def test_a_verified_model_replaces_the_one_that_had_the_name(
    folder: Path, other: Path, url: str
) -> None:
    deploy(folder, NAME, host=url)
    before = names(url)
    done = deploy(other, NAME, host=url)
    assert done.passed, crosses(done)
    assert done.taken
    assert "replac" in done.summary
    after = names(url)
    assert after.keys() == before.keys()
    assert after[f"{NAME}:latest"] != before[f"{NAME}:latest"]


def test_what_the_server_has_is_not_sent_again(folder: Path, url: str) -> None:
    deploy(folder, NAME, host=url)
    done = deploy(folder, NAME, host=url)
    (found,) = (check.detail for check in done.checks if check.name == "upload")
    assert "already" in found


def test_bytes_under_another_digest_are_refused(folder: Path, url: str) -> None:
    gguf = next(folder.glob("*.gguf"))
    wrong = Blob(gguf, f"sha256:{'0' * 64}", gguf.stat().st_size)
    with OllamaServer(url) as server, pytest.raises(OllamaError, match="digest mismatch"):
        upload(server.http, wrong)


def test_a_template_that_go_refuses_is_not_created(folder: Path, url: str) -> None:
    before = names(url)
    with OllamaServer(url) as server:
        blob = _blob(folder)
        upload(server.http, blob)
        bad = Modelfile("./tales.gguf", template="{{ .Prompt")
        with pytest.raises(OllamaError, match="template error"):
            create(server.http, f"{NAME}-bad", bad, blob, None)
    assert names(url) == before


def test_an_adapter_goes_with_its_base(checkpoint: Checkpoint, tmp_path: Path, url: str) -> None:
    made = with_adapter(checkpoint, tmp_path / "adapted")
    done = deploy(exported(made, tmp_path / "out"), NAME, host=url)
    assert done.passed, crosses(done)


TURNS = (
    Message("system", "Be brief."),
    Message("user", "Some words?"),
    Message("assistant", "words"),
)


@pytest.mark.parametrize("form", [CHATML, ALPACA], ids=lambda form: form.name)
def test_a_format_with_special_tokens_in_its_prompts_is_compared(
    form: PromptFormat, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = answering_checkpoint(tmp_path / "c", form, records_of(TURNS))
    folder = exported(made, tmp_path / "out")
    done = deploy(folder, NAME, host=url)
    assert done.passed, crosses(done)
    found = {check.name: check.detail for check in done.checks}
    assert int(found["logprobs"].split()[0]) >= 25  # several for each of the five prompts
    monkeypatch.setenv("OLLAMA_HOST", url)
    target = open_target(made, next(folder.glob("*.gguf")))
    modelfile = read_modelfile(folder / "Modelfile").modelfile
    check = ollama_check(target, modelfile, proof_prompts(made, None), NAME)
    assert check.passed, check.detail
    assert 0 < check.value <= check.limit


# Against the stand-in in every trouble: the model that had the name stays, and nothing else is left


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        (
            Trouble(cut_uploads=9),
            "tales-f16.gguf.* [0-9,]+ of [0-9,]+ bytes",
        ),
        (Trouble(damages_uploads=True), "^tales-f16.gguf.*digest mismatch"),
        (Trouble(refuses_create="no space left"), "no space left"),
        (Trouble(cut_create=2), "lost.*'verifying conversion'"),
        (Trouble(cut_create=0), "lost.*before any status"),
        (
            Trouble(broken={"/api/create": (200, b'{"status": "parsing GGUF"}')}),
            "lost.*'parsing GGUF'",
        ),
        (Trouble(silent_at="/api/show"), "/api/show .*in time"),
        (
            Trouble(broken={"/api/copy": (500, b'{"error": "disk full"}')}),
            "/api/copy: disk full",
        ),
        (
            Trouble(broken={"/api/show": (200, b"<html>")}),
            "/api/show .*not an Ollama",
        ),
    ],
    ids=lambda value: None if isinstance(value, Trouble) else value,
)
def test_a_server_in_trouble_is_one_line_and_nothing_changes(
    trouble: Trouble, message: str, server: StandIn, folder: Path, other: Path
) -> None:
    before = take_name(server, folder)
    server.trouble = trouble
    with pytest.raises(OllamaError, match=message) as caught:
        deploy(other, NAME, host=server.url, patience=PATIENCE)
    assert "\n" not in str(caught.value)
    server.trouble = Trouble()
    assert names(server.url) == before


@pytest.mark.parametrize(
    ("trouble", "check", "message"),
    [
        (Trouble(version="0.5.7"), "version", "Ollama 0.5.7 is too old"),
        (Trouble(broken={"/api/version": (200, b"hello")}), "server", "is not Ollama"),
        (
            Trouble(renders=lambda text: text.replace("User:", "Human:")),
            "prompt",
            r"Ollama renders one question as 'Human:\\nWho is it\?",
        ),
        (Trouble(never_stops=True), "stop", "the model never stops: 5 of 5 "),
    ],
    ids=["old version", "port held by another program", "rendered differently", "never stops"],
)
def test_a_check_that_fails_ends_it_and_nothing_changes(
    trouble: Trouble, check: str, message: str, server: StandIn, folder: Path, other: Path
) -> None:
    before = take_name(server, folder)
    server.trouble = trouble
    done = deploy(other, NAME, host=server.url, patience=PATIENCE)
    assert not done.passed
    ((name, found),) = crosses(done).items()
    assert name == check
    assert re.search(message, found)
    server.trouble = Trouble()
    assert names(server.url) == before


def test_where_nothing_was_compared_no_cause_is_guessed(
    folder: Path, server: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OllamaServer, "continued", lambda *_: Said("", (), "stop"))
    (check,) = (c for c in deploy(folder, NAME, host=server.url).checks if not c.passed)
    assert (check.name, check.advice) == ("logprobs", "")
    assert check.detail.startswith("no log-probability was compared")
    assert not server.models


def test_no_server_is_a_cross(folder: Path) -> None:
    done = deploy(folder, NAME, host="127.0.0.1:9")
    assert list(crosses(done)) == ["server"]
    assert "http://127.0.0.1:9" in crosses(done)["server"]
    assert NAME in done.summary
    assert "ollama run" not in done.summary


def test_too_little_memory_is_a_cross_before_anything_is_sent(
    folder: Path, server: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "free_memory", lambda: 1000)
    monkeypatch.setattr(machine, "free_gpu_memory", lambda: 0)
    done = deploy(folder, NAME, host=server.url)
    assert list(crosses(done)) == ["memory"]
    assert "tales-q8_0.gguf" in crosses(done)["memory"]
    assert {method for method, _ in server.asked} == {"GET"}


def test_a_full_disk_is_a_cross_before_anything_is_sent(
    folder: Path, server: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "free_disk", lambda folder: 1000)
    assert list(crosses(deploy(folder, NAME, host=server.url))) == ["disk"]
    assert {method for method, _ in server.asked} == {"GET"}


def test_a_server_that_dies_midway_is_told_with_what_it_may_keep(
    folder: Path, server: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    with stand_in(server.folder / "own") as dying:
        dying.trouble = Trouble(dies_at="/api/generate")
        with pytest.raises(OllamaError, match="/api/generate"):
            deploy(folder, NAME, host=dying.url, patience=PATIENCE)
        assert f"{NAME}:latest" not in dying.models
        (left,) = dying.models
    assert f"ollama rm {left}" in capsys.readouterr().err


def test_an_upload_that_breaks_off_once_is_sent_again(folder: Path, server: StandIn) -> None:
    server.trouble = Trouble(cut_uploads=2)
    assert deploy(folder, NAME, host=server.url, patience=PATIENCE).passed


def test_create_is_never_asked_twice(folder: Path, server: StandIn) -> None:
    server.trouble = Trouble(cut_create=0)
    with pytest.raises(OllamaError):
        deploy(folder, NAME, host=server.url, patience=PATIENCE)
    assert server.asked.count(("POST", "/api/create")) == 1


@pytest.fixture
def signals() -> Iterator[None]:
    """Handlers as they were before a command set its own."""
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="not on Windows")
@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_leaves_nothing(
    name: str,
    folder: Path,
    server: StandIn,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    number = getattr(signal, name)
    monkeypatch.setattr(OllamaServer, "show", lambda *_: os.kill(os.getpid(), number))
    words = ["deploy", str(folder), "--name", NAME, "--host", server.url]
    assert main(words) == 128 + number
    assert capsys.readouterr().err.splitlines()[-1] == "llmkit: interrupted"
    assert ("POST", "/api/create") in server.asked
    assert not server.models


@pytest.mark.usefixtures("signals")
def test_a_second_interrupt_says_what_is_left(
    folder: Path,
    server: StandIn,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(OllamaServer, "show", interrupted)
    monkeypatch.setattr("llmkit.export.deploy.deploy.delete", interrupted)
    assert main(["deploy", str(folder), "--name", NAME, "--host", server.url]) == 130
    (left,) = server.models
    assert f"ollama rm {left}" in capsys.readouterr().err


def test_two_deployments_at_once_do_not_mix(folder: Path, other: Path, server: StandIn) -> None:
    """Each is made and verified as if alone, under a name of its own."""
    done: dict[str, Deployment] = {}

    def deploy_as(name: str, what: Path) -> None:
        done[name] = deploy(what, name, host=server.url, patience=UNHURRIED)

    threads = [
        threading.Thread(target=deploy_as, args=asked) for asked in ((NAME, folder), ("b", other))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {name: crosses(one) for name, one in done.items()} == {NAME: {}, "b": {}}
    assert set(server.models) == {f"{NAME}:latest", "b:latest"}


def test_the_stand_in_lists_its_models_while_one_is_removed(
    folder: Path, server: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_name(server, folder)
    server.models["b:latest"] = server.models[f"{NAME}:latest"]
    details = ollama_stand_in.details

    def details_and_removal(stored: Stored) -> dict[str, object]:
        server.models.pop("b:latest", None)
        return details(stored)

    monkeypatch.setattr(ollama_stand_in, "details", details_and_removal)
    assert f"{NAME}:latest" in names(server.url)


def test_of_two_deployments_under_one_name_one_model_is_left(
    folder: Path, other: Path, server: StandIn
) -> None:
    ended: list[str] = []

    def deploy_one(what: Path) -> None:
        try:
            done = deploy(what, NAME, host=server.url, patience=UNHURRIED)
            ended.append(str(done.passed))
        except OllamaError as error:
            ended.append(str(error))

    threads = [threading.Thread(target=deploy_one, args=[what]) for what in (folder, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "True" in ended
    assert all(end == "True" or f"{NAME} is another model" in end for end in ended)
    assert list(server.models) == [f"{NAME}:latest"]


def test_a_name_that_another_deployment_takes_is_an_error(
    folder: Path, server: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copy_and_lose(http: Transport, source: str, destination: str) -> None:
        copy(http, source, destination)
        take_name(server, folder)

    monkeypatch.setattr("llmkit.export.deploy.deploy.copy", copy_and_lose)
    with pytest.raises(OllamaError, match=NAME):
        deploy(folder, NAME, host=server.url)
    assert [stored.digest for stored in server.models.values()] == ["before"]


# What cannot be deployed


def test_a_file_that_was_changed_after_its_proof_is_a_cross(
    checkpoint: Checkpoint, server: StandIn, tmp_path: Path
) -> None:
    made = exported(checkpoint, tmp_path / "out")
    gguf = next(made.glob("*.gguf"))
    write_proof(checkpoint, gguf, sha256="0" * 64)
    assert crosses(deploy(made, NAME, host=server.url)) == {
        "proof": "tales-q8_0.gguf has changed since it was verified"
    }
    write_proof(checkpoint, gguf, passed=False)
    assert "failed" in crosses(deploy(made, NAME, host=server.url))["proof"]
    assert not server.models
    checks = [{"name": "tensors", "passed": True}, {"name": "ollama", "passed": False}]
    write_proof(checkpoint, gguf, passed=False, checks=checks)  # `verify --ollama` without a server
    assert not crosses(deploy(made, NAME, host=server.url))


def test_an_adapter_that_was_replaced_after_its_proof_is_a_cross(
    checkpoint: Checkpoint, server: StandIn, tmp_path: Path
) -> None:
    made = exported(with_adapter(checkpoint, tmp_path / "adapted"), tmp_path / "out")
    adapter, alpha = made / "tales-adapter.gguf", "adapter.lora.alpha"
    with_key(adapter, tmp_path / "other.gguf", alpha, 3.0, Kind.FLOAT32).replace(adapter)
    assert crosses(deploy(made, NAME, host=server.url)) == {
        "proof": "tales-adapter.gguf has changed since it was verified"
    }
    assert not server.models


def test_a_modelfile_without_the_adapter_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    made = exported(with_adapter(checkpoint, tmp_path / "adapted"), tmp_path / "out")
    modelfile = read_modelfile(made / "Modelfile").modelfile
    assert modelfile.adapter is not None
    (made / "Modelfile").write_text(render(replace(modelfile, adapter=None)), encoding="utf-8")
    with pytest.raises(ModelfileError, match=r"ADAPTER.*tales-q8_0\.gguf"):
        deploy(made, NAME)


def test_a_checkpoint_that_was_trained_on_after_the_proof_is_a_cross(
    checkpoint: Checkpoint, server: StandIn, tmp_path: Path
) -> None:
    made = exported(checkpoint, tmp_path / "out")
    other = tmp_path / "c"
    shutil.copytree(checkpoint.folder, other)
    weights = dict(checkpoint.load_model().state_dict())
    weights["wpe.weight"] = weights["wpe.weight"] + 0.01
    save_tensors(other / "model.safetensors", weights, step=0)
    done = deploy(made, NAME, host=server.url, checkpoint=other)
    assert crosses(done) == {"proof": f"{other} has changed since tales-q8_0.gguf was verified"}
    assert not server.models


def test_the_checkpoint_is_the_proofs_or_the_named_one(
    checkpoint: Checkpoint, server: StandIn, tmp_path: Path
) -> None:
    made = exported(checkpoint, tmp_path / "out")
    gguf = next(made.glob("*.gguf"))
    write_proof(checkpoint, gguf, checkpoint="gone")
    with pytest.raises(LlmkitError, match=r"gone.*--checkpoint"):
        deploy(made, NAME, host=server.url)
    (made / "parity.json").unlink()
    done = deploy(made, NAME, host=server.url)
    assert done.passed, crosses(done)
    proof = next(check for check in done.checks if check.name == "proof")
    assert "not compared with PyTorch" in proof.detail
    assert "--checkpoint" in proof.advice
    done = deploy(made, NAME, host=server.url, checkpoint=checkpoint.folder)
    assert done.passed, crosses(done)
    assert "not verified" in next(c.detail for c in done.checks if c.name == "proof")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("PARAMETER temprature 1", "'temperature'"),
        ("DRAFT ./d.gguf", "ollama create"),
        ("MESSAGE user Hello", "ollama create"),
        ("PARAMETER num_ctx 9999", "num_ctx 9999 .* 256"),
    ],
)
def test_a_modelfile_that_would_surprise_is_refused(
    line: str, message: str, folder: Path, tmp_path: Path
) -> None:
    made = tmp_path / "out"
    shutil.copytree(folder, made)
    with (made / "Modelfile").open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")
    with pytest.raises(ModelfileError, match=message):
        deploy(made, NAME)


@pytest.mark.parametrize("name", ["", "my tales", "-tales", "tales:", "a/b/c/d", "tales:v 2"])
def test_what_is_no_name_is_refused(name: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match="model name"):
        deploy(folder, name)


def test_names_have_tags() -> None:
    assert full_name("tales") == "tales:latest"
    assert full_name("host:80/someone/tales") == "host:80/someone/tales:latest"
    assert unverified_name("tales:v2", "ab") == "tales:v2-llmkit-unverified-ab"


def test_the_command_prints_how_to_run_it(
    folder: Path, server: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["deploy", str(folder), "--name", NAME, "--host", server.url]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "✔ logprobs: " in printed
    assert printed.splitlines()[-1].endswith(f"ollama run {NAME}")
    assert main([*words[:-1], "127.0.0.1:9", "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert list(said) == ["passed", "summary", "name", "url", "file", "taken", "checks", "commands"]
    assert not said["passed"]
    assert {tuple(c) for c in said["checks"]} == {("name", "passed", "found", "advice")}
    server.trouble = Trouble(refuses_create="no")
    assert main(words) == 2
    assert capsys.readouterr().err.endswith(": no\n")


def _blob(folder: Path) -> Blob:
    gguf = next(folder.glob("*.gguf"))
    digest = hashlib.sha256(gguf.read_bytes()).hexdigest()
    return Blob(gguf, f"sha256:{digest}", gguf.stat().st_size)
