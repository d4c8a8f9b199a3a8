"""Proxies on the way to a server on another machine."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from ollama_servers import stand_in

from llmkit.cli.main import main
from llmkit.errors import OllamaError
from llmkit.export.doctor.ollama_server import server_checks
from llmkit.export.ollama.proxy import ProxyError, proxy_of
from llmkit.export.ollama.server import OllamaServer
from llmkit.export.ollama.transport import NotOllamaError, Patience

QUICK = Patience(connect=1, answer=1, pause=0.01)
REMOTE = "ollama.example:11434"


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture(params=[200, 502])
def proxy(request: pytest.FixtureRequest) -> Iterator[tuple[str, int]]:
    """A proxy that answers for the server, or says that it cannot reach it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b'{"version": "0.0.0"}' if request.param == 200 else b"<html>Bad Gateway"
            self.send_response(request.param)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", request.param
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("variable", "value", "fault"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:9", ""),
        ("all_proxy", "socks5h://me:secret@127.0.0.1:9", ""),
        ("ALL_PROXY", "socks4://127.0.0.1:9", "URL"),
        ("http_proxy", "foo://bar", "URL"),
        ("http_proxy", "http://127.0.0.1:port", "URL"),
        ("HTTP_PROXY", "http://127.0.0.1:9", "does not answer"),
        ("http_proxy", "127.0.0.1:9", "does not answer"),
        ("http_proxy", "http://me:secret@127.0.0.1:9", "does not answer"),
    ],
)
def test_a_proxy_in_the_way_is_a_line_that_names_its_variable(
    variable: str, value: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    found = server_checks(REMOTE, QUICK)
    assert [(check.name, check.passed) for check in found.checks] == [
        ("host", True), ("proxy", False),
    ]  # fmt: skip
    line = found.checks[-1]
    assert line.detail.startswith(f"{variable} is ")
    assert fault in line.detail
    assert variable in line.advice
    assert "NO_PROXY" in line.advice
    assert "secret" not in str(line)
    with pytest.raises(ProxyError, match=variable) as caught, OllamaServer(REMOTE, QUICK) as server:
        server.version()
    assert "secret" not in str(caught.value)
    # This machine is asked directly, and the line says so.
    (*_, line, nobody) = server_checks("127.0.0.1:9", QUICK).checks
    assert (line.name, line.passed, nobody.name) == ("proxy", True, "server")


def test_https_has_a_variable_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:7")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    (*_, line) = server_checks("https://ollama.example", QUICK).checks
    assert (line.name, line.passed) == ("proxy", False)
    assert line.detail.startswith("HTTPS_PROXY is http://127.0.0.1:9: ")


@pytest.mark.parametrize(
    ("host", "no_proxy", "passes"),
    [  # as Go's httpproxy answers
        ("ollama.example", "*", True), ("ollama.example", "ollama.example", True),
        ("ollama.example", ".example", True), ("ollama.example", "example", True),
        ("ollama.example", "*.example", True), ("ollama.example", "other, Ollama.Example", True),
        ("ollama.example", "ollama.example:11434", True), ("ollama.example", ".example:1", False),
        ("ollama.example", ".ollama.example", False), ("ollama.example", "lama.example", False),
        ("ollama.example", "", False), ("ollama.example", ":11434", False),
        ("ollama.example", "0.0.0.0/0", False),
        ("10.1.2.3", "10.0.0.0/8", True), ("10.1.2.3", "10.1.2.4/8", True),
        ("10.1.2.3", "192.168.0.0/16,10.1.0.0/16", True), ("11.1.2.3", "10.0.0.0/8", False),
        ("10.1.2.3", "10.1.2.3", True), ("10.1.2.3", "10.1.2.3:11434", True),
        ("10.1.2.3", "10.1.2.3:80", False), ("10.1.2.3", "10.0.0.0/33", False),
        ("10.1.2.3", "fd00::/8", False), ("[fd00::1]", "fd00::/8", True),
        ("[fd00::1]", "fd00:0::1", True), ("[fd00::1]", "[fd00::1]:11434", True),
        ("[fd00::1]", "[fd00::1]:80", False), ("[fe00::1]", "fd00::/8", False),
    ],
)  # fmt: skip
def test_no_proxy_lists_what_is_asked_directly(
    host: str, no_proxy: str, passes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert (proxy_of(f"http://{host}:11434") is None) == passes


def test_a_proxy_that_answers_is_used_and_named(
    proxy: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, status = proxy
    monkeypatch.setenv("http_proxy", url)
    found = server_checks(REMOTE, QUICK)
    by_name = {check.name: check for check in found.checks}
    assert by_name["proxy"].passed
    assert url in by_name["proxy"].detail
    assert by_name["server"].passed == (status == 200)
    if status != 200:
        assert "http_proxy" in by_name["server"].detail
        with pytest.raises(NotOllamaError), OllamaServer(REMOTE, QUICK) as server:
            server.version()


def test_a_command_ends_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for variable, value in (("ALL_PROXY", "socks5://127.0.0.1:9"), ("http_proxy", "foo://bar")):
        with monkeypatch.context() as patch:
            patch.setenv(variable, value)
            assert main(["chat", "--ollama", "x", "--host", REMOTE]) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert variable in line


def test_a_server_on_this_machine_is_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in (("HTTP_PROXY", "http://127.0.0.1:9"), ("ALL_PROXY", "socks5://x:9")):
        monkeypatch.setenv(variable, value)
    with stand_in(tmp_path) as server, OllamaServer(server.url, QUICK) as found:
        assert found.version() == "0.0.0"
    with pytest.raises(OllamaError), OllamaServer(REMOTE, QUICK) as found:
        found.version()
