"""What may be asked twice, how long is waited, and what a Modelfile becomes on its way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ollama_servers import stand_in
from ollama_stand_in import StandIn, Trouble

from llmkit.errors import OllamaError
from llmkit.export.ollama.server import OllamaServer
from llmkit.export.ollama.store import Blob, create_request, delete
from llmkit.export.ollama.transport import (
    TRIES,
    BrokenOffError,
    NoServerError,
    NotOllamaError,
    Patience,
    RefusedError,
    TooSlowError,
    Transport,
)
from llmkit.modelfiles.reading import parse

QUICK = Patience(connect=5, answer=2, compute=2, pause=0.01)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    with stand_in(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def server(running: StandIn) -> Iterator[StandIn]:
    running.trouble = Trouble()
    running.asked.clear()
    yield running
    running.trouble = Trouble()


def test_what_is_slow_is_not_asked_again(server: StandIn) -> None:
    server.trouble = Trouble(silent_at="/api/version")
    with OllamaServer(server.url, QUICK) as found, pytest.raises(TooSlowError, match="in time"):
        found.version()
    assert len(server.asked) == 1


def test_a_connection_that_is_lost_is_tried_again_where_that_does_no_harm(
    tmp_path: Path, server: StandIn
) -> None:
    with stand_in(tmp_path) as dying, OllamaServer(dying.url, QUICK) as found:
        found.version()
        dying.trouble = Trouble(dies_at="/api")
        dying.asked.clear()
        with pytest.raises(BrokenOffError, match="/api/tags"):
            found.digest("x")
        assert dying.asked == [("GET", "/api/tags")] * TRIES
        dying.asked.clear()
        with pytest.raises(BrokenOffError, match="/api/generate"):
            found.continued("x", "y", 1, 8)
        assert dying.asked == [("POST", "/api/generate")]


def test_nobody_and_somebody_else_are_told_apart(server: StandIn) -> None:
    with OllamaServer("127.0.0.1:9", QUICK) as nobody, pytest.raises(NoServerError):
        nobody.version()
    server.trouble = Trouble(broken={"/api/version": (404, b"404 page not found")})
    with OllamaServer(server.url) as other, pytest.raises(NotOllamaError):
        other.version()


def test_a_refusal_keeps_the_servers_words(server: StandIn) -> None:
    with OllamaServer(server.url) as found, pytest.raises(RefusedError) as caught:
        found.show("nope")
    assert (caught.value.reason, caught.value.status) == ("model 'nope:latest' not found", 404)
    assert isinstance(caught.value, OllamaError)


def test_what_is_not_there_is_deleted_already(server: StandIn) -> None:
    with OllamaServer(server.url) as found:
        delete(found.http, "nope")
    assert server.asked == [("DELETE", "/api/delete")]


def test_an_error_in_the_middle_of_a_stream_is_the_servers(
    server: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = b'{"status": "parsing GGUF"}\n{"error": "no space left on device"}\n'
    server.trouble = Trouble(broken={"/api/create": (200, body)})
    http = Transport(server.url, QUICK)
    with pytest.raises(RefusedError, match="no space left on device"):
        list(http.lines("/api/create", {}, wait=1))
    http.close()


def test_a_modelfile_is_sent_as_ollama_create_sends_it() -> None:
    text = (
        'FROM ./m.gguf\nADAPTER ./a.gguf\nTEMPLATE t\nSYSTEM ""\nMESSAGE user hi\nPARSER p\n'
        "PARAMETER temperature 0\nPARAMETER stop a\nPARAMETER stop b\nPARAMETER use_mmap false\n"
        "RENDERER r\nREQUIRES 0.14.0\nLICENSE MIT\nLICENSE Apache\n"
    )
    model, adapter = (Blob(Path(name), f"sha256:{name}", 1) for name in ("m.gguf", "a.gguf"))
    assert create_request("tales", parse(text).modelfile, model, adapter) == {
        "model": "tales",
        "files": {"m.gguf": "sha256:m.gguf"},
        "adapters": {"a.gguf": "sha256:a.gguf"},
        "template": "t",
        "system": "",
        "messages": [{"role": "user", "content": "hi"}],
        "parameters": {"temperature": 0.0, "stop": ("a", "b"), "use_mmap": False},
        "renderer": "r",
        "parser": "p",
        "requires": "0.14.0",
        "license": ["MIT", "Apache"],
    }
    plain = create_request("tales", parse("FROM ./m.gguf").modelfile, model, None)
    assert plain == {"model": "tales", "files": {"m.gguf": "sha256:m.gguf"}}
