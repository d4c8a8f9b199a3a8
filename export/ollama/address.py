"""Where a server is, and what a model's name may be."""

from __future__ import annotations

import ipaddress
import os
import re
from urllib.parse import urlsplit

from llmkit.errors import ConfigError, OllamaError

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 11434
_PORTS = {"http": 80, "https": 443}  # of an address that names its scheme and no port
# [host/][namespace/]model[:tag], as Ollama's types/model/name.go takes it.
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"
_NAME = re.compile(rf"([A-Za-z0-9_][A-Za-z0-9_.:-]*/)?([A-Za-z0-9_][\w-]*/)?{_PART}(:{_PART})?")
_UNVERIFIED = "llmkit-unverified"


def address(host: str | None = None) -> str:
    """The server's URL, from OLLAMA_HOST unless given: [scheme://]host[:port].

    Raises OllamaError for what is no address.
    """
    given = (host or os.environ.get("OLLAMA_HOST") or DEFAULT_HOST).strip().strip("\"'")
    scheme, separator, rest = given.partition("://")
    if not separator:
        scheme, rest = "http", given
    try:
        parts = urlsplit(f"//{rest}")
        port = parts.port or (_PORTS.get(scheme) if separator else DEFAULT_PORT)
    except ValueError as error:
        raise OllamaError(f"OLLAMA_HOST {given!r} is no address: {error}") from error
    if scheme not in _PORTS:
        raise OllamaError(f"OLLAMA_HOST {given!r} is no address: use http:// or https://")
    name = _reachable(parts.hostname or DEFAULT_HOST)
    return f"{scheme}://{f'[{name}]' if ':' in name else name}:{port}{parts.path.rstrip('/')}"


def _reachable(host: str) -> str:
    """This machine for the addresses that stand for all of its own: a server listens there."""
    try:
        all_of_them = ipaddress.ip_address(host).is_unspecified
    except ValueError:  # a name
        return host
    if not all_of_them:
        return host
    return "::1" if ":" in host else DEFAULT_HOST


def host_and_port(url: str) -> tuple[str, int]:
    """Of a URL that `address` made."""
    parts = urlsplit(url)
    return parts.hostname or DEFAULT_HOST, parts.port or DEFAULT_PORT


def is_this_machine(url: str) -> bool:
    """Whether a URL means the machine that asks."""
    host, _ = host_and_port(url)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_name(name: str) -> str:
    """A model's name. Raises ConfigError for one that Ollama does not take."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} is no name for a model in Ollama: use letters, digits, -, _ and ., "
            "such as tales or tales:v2"
        )
    return name


def full_name(name: str) -> str:
    """The name with its tag, as a server lists it."""
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def unverified_name(name: str, mark: str) -> str:
    """A name beside `name` for what is not verified yet; `mark` tells deployments apart."""
    model, _, tag = full_name(name).rpartition(":")
    return f"{model}:{tag[:30]}-{_UNVERIFIED}-{mark}"
