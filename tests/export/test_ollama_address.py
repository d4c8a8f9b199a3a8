"""OLLAMA_HOST, read as Ollama's own envconfig.Host reads it."""

from __future__ import annotations

import itertools
import re

import pytest

from llmkit.errors import OllamaError
from llmkit.export.doctor.ollama_server import server_checks
from llmkit.export.ollama.address import address, host_and_port, is_this_machine
from llmkit.export.ollama.transport import Patience, Transport

SCHEMES = {"": ("http", 11434), "http://": ("http", 80), "https://": ("https", 443)}
HOSTS = {  # as they are written with a port, and in a URL
    "": "127.0.0.1",
    "1.2.3.4": "1.2.3.4",
    "0.0.0.0": "127.0.0.1",
    "example.com": "example.com",
    "my_host-1": "my_host-1",
    "[::1]": "[::1]",
    "[::]": "[::1]",
    "[0:0::0]": "[::1]",
    "[2001:DB8::1]": "[2001:db8::1]",
    "[::ffff:1.2.3.4]": "1.2.3.4",
    "[fe80::1%eth0]": "[fe80::1%eth0]",
}
PORTS = {  # None: the default one
    "": None,
    ":": None,
    ":1234": 1234,
    ":0": 0,
    ":65535": 65535,
    ":65536": None,
    ":-1": None,
    ":99999999999999999999": None,
    ":port": None,
    ":+80": 80,
    ":080": 80,
    ": 80": None,
}
PATHS = {"": "", "/": "", "/ollama": "/ollama", "/a/b/": "/a/b"}


def test_scheme_host_port_and_path_in_every_combination() -> None:
    for parts in itertools.product(SCHEMES, HOSTS, PORTS, PATHS):
        (scheme, default), host = SCHEMES[parts[0]], HOSTS[parts[1]]
        port, path = PORTS[parts[2]], PATHS[parts[3]]
        wanted = f"{scheme}://{host}:{default if port is None else port}{path}"
        if given := "".join(parts):
            assert address(given) == wanted, given


@pytest.mark.parametrize(
    ("given", "url"),
    [
        (None, "http://127.0.0.1:11434"),
        ("", "http://127.0.0.1:11434"),
        ("   ", "http://127.0.0.1:11434"),
        ("::1", "http://[::1]:11434"),  # without brackets there is no port
        ("::", "http://[::1]:11434"),
        ("::1:1234", "http://[::1:1234]:11434"),
        ("fe80::1%eth0", "http://[fe80::1%eth0]:11434"),
        ("https://::1", "https://[::1]:443"),
        ("[::1", "http://[::1]:11434"),
        ("HTTP://example.com", "http://example.com:11434"),
        ("ollama.com", "https://ollama.com:443"),
        ("ollama.com:80", "http://ollama.com:80"),
        (" 1.2.3.4 ", "http://1.2.3.4:11434"),
        ('"1.2.3.4"', "http://1.2.3.4:11434"),
        (' " 1.2.3.4 " ', "http://1.2.3.4:11434"),
        ("'1.2.3.4:80'", "http://1.2.3.4:80"),
    ],
)
def test_what_is_left_out_or_written_otherwise(
    given: str | None, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OLLAMA_HOST", raising=False)
    assert address(given) == url
    if given is not None:
        monkeypatch.setenv("OLLAMA_HOST", given)
        assert address() == url


@pytest.mark.parametrize(
    "host",
    [
        "ftp://example.com", "://x", "a:b:c", "::1:11434", "[::1]11434", "user:secret@host:80",
        "two words", "::1]:1:2", "host?x=1:80",
    ],
)  # fmt: skip
def test_what_nothing_can_connect_to_is_refused(host: str) -> None:
    with pytest.raises(OllamaError, match="OLLAMA_HOST"):
        address(host)
    (check,) = server_checks(host).checks
    assert (check.name, check.passed) == ("host", False)


@pytest.mark.parametrize("host", ["a..b", "xn--", "\u200bx", "a" * 64])
def test_a_host_that_has_no_name_is_refused(host: str) -> None:
    with pytest.raises(OllamaError, match=re.escape(f"http://{host}:11434")):
        Transport(host)


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("0.0.0.0", True), ("[::]:99", True), ("::1", True), ("localhost", True),
        ("LocalHost:1", True), ("127.8.8.8", True), ("::ffff:127.0.0.1", True),
        ("example.com", False), ("fe80::1%eth0", False),
    ],
)  # fmt: skip
def test_which_addresses_are_this_machine(host: str, here: bool) -> None:
    assert is_this_machine(address(host)) == here


def test_host_and_port_of_a_url() -> None:
    assert host_and_port(address("[::1]:0")) == ("::1", 0)
    assert host_and_port(address("fe80::1%eth0")) == ("fe80::1%eth0", 11434)


@pytest.mark.parametrize(
    ("host", "url", "notes"),
    [
        ("http://127.0.0.1", "http://127.0.0.1:80", ["port 80", "11434"]),
        ("https://[::1]", "https://[::1]:443", ["port 443", "11434"]),
        ("http://[::1]:9", "http://[::1]:9", []),
        ("0.0.0.0:9", "http://127.0.0.1:9", ["network"]),
        ("[::]:9", "http://[::1]:9", ["network"]),
        ("127.0.0.1:99999", "http://127.0.0.1:11434", ["'99999'", "11434"]),
        ("127.0.0.1:9", "http://127.0.0.1:9", []),
    ],
)
def test_the_doctor_says_what_the_variable_means(
    host: str, url: str, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", host)
    check = server_checks(None, Patience(connect=1, answer=0.3, pause=0.01)).checks[0]
    assert (check.name, check.passed, check.detail) == ("host", True, f"{host!r} means {url}")
    assert all(note in check.advice for note in notes)
    assert bool(notes) == bool(check.advice)
