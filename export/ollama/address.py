"""Where a server is, and what a model's name may be."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from llmkit.errors import ConfigError, OllamaError

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 11434
IPV6_LOOPBACK = "::1"
_LAST_PORT = 65535
_PORTS = {"http": 80, "https": 443}  # of an address that names its scheme and no port
_HOST_AND_PORT = re.compile(r"(?:\[([^\[\]]*)\]|([^:\[\]]*)):([^:\[\]]*)")
# [[host/]namespace/]model[:tag], as Ollama's types/model/name.go takes it.
_HOST, _SPACE = r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}", r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}"
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"
_NAME = re.compile(rf"(({_HOST}/)?{_SPACE}/)?{_PART}(:{_PART})?")
_UNVERIFIED = "llmkit-unverified"


@dataclass(frozen=True)
class Address:
    """Where a server is, and what was said of it."""

    scheme: str
    host: str  # an IPv6 address without brackets
    port: int
    path: str
    port_is_given: bool
    bad_port: str | None  # what stood in the port's place and is none
    means_all: bool  # of this machine's addresses: a server listens there

    @property
    def url(self) -> str:
        """Without a slash at its end."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path}"


def address(host: str | None = None) -> str:
    """The server's URL; see `read_address`."""
    return read_address(host).url


def given_address(host: str | None = None) -> str:
    """What was said of where the server is: `host`, or else OLLAMA_HOST, without its quotes."""
    return (host or os.environ.get("OLLAMA_HOST") or "").strip().strip("\"'").strip()


def read_address(host: str | None = None) -> Address:
    """Read [scheme://]host[:port][/path] from `host`, or else from OLLAMA_HOST, as Ollama does.

    As in Ollama's envconfig.Host, what is no port is passed over for the default one. Raises
    OllamaError for what no program can connect to.
    """
    given = given_address(host)
    scheme, separator, rest = given.partition("://")
    if not separator:
        scheme, rest = ("https", "ollama.com:443") if given == "ollama.com" else ("http", given)
    default_port = _PORTS.get(scheme, DEFAULT_PORT) if separator else DEFAULT_PORT
    if scheme.lower() not in _PORTS:
        raise OllamaError(f"OLLAMA_HOST {given!r}: expected http:// or https://")
    place, _, path = rest.partition("/")
    split = _HOST_AND_PORT.fullmatch(place)  # as Go's net.SplitHostPort
    if split is None:
        name, port = place.strip("[]") if _ip(place.strip("[]")) else place, None
    else:
        name, port = split[1] or split[2] or "", split[3]
    is_port = bool(port and re.fullmatch(r"[+-]?[0-9]+", port) and 0 <= int(port) <= _LAST_PORT)
    ip = _ip(name)
    if ip is None and not re.fullmatch(r"[^\s:/@?#%\[\]\\]*", name):
        raise OllamaError(
            f"OLLAMA_HOST {given!r}: expected [http://]HOST[:PORT]; write an IPv6 address with a "
            "port as [::1]:11434"
        )
    means_all = ip is not None and ip.is_unspecified
    if ip is not None:
        name = (IPV6_LOOPBACK if ip.version == 6 else DEFAULT_HOST) if means_all else str(ip)
    return Address(
        scheme.lower(),
        name or DEFAULT_HOST,
        int(port) if port and is_port else default_port,
        f"/{path}".rstrip("/"),
        is_port,
        None if is_port else port,
        means_all,
    )


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An IP address, an IPv4 one also where it is written as IPv6; None for a name."""
    if not re.fullmatch(r"[0-9A-Fa-f:.]+(%[\w.-]+)?", text):  # Python takes anything for a zone
        return None
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    return (found.ipv4_mapped if found.version == 6 else None) or found


def host_and_port(url: str) -> tuple[str, int]:
    """Of a URL that `address` made."""
    parts = urlsplit(url)
    return parts.hostname or DEFAULT_HOST, DEFAULT_PORT if parts.port is None else parts.port


def is_this_machine(url: str) -> bool:
    """Whether a URL means the machine that asks."""
    host, _ = host_and_port(url)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_name(name: str) -> str:
    """Return `name`. Raises ConfigError if Ollama does not accept it as a model name."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} is not a valid Ollama model name; use letters, digits, -, _ and ., "
            "for example tales or tales:v2"
        )
    return name


def is_model_name(text: str) -> bool:
    """Whether FROM can name a model so; its host may have a scheme."""
    return _NAME.fullmatch(re.sub(r"^https?://", "", text)) is not None


def full_name(name: str) -> str:
    """The name with its tag, as a server lists it."""
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def unverified_name(name: str, mark: str) -> str:
    """A name beside `name` for what is not verified yet; `mark` tells deployments apart."""
    model, _, tag = full_name(name).rpartition(":")
    return f"{model}:{tag[:30]}-{_UNVERIFIED}-{mark}"
