"""The proxy on the way to a server."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit
from urllib.request import getproxies, getproxies_environment, proxy_bypass

import httpx

from llmkit.errors import OllamaError
from llmkit.export.ollama.address import host_and_port, is_this_machine


@dataclass(frozen=True)
class Proxy:
    """A proxy, and the variable that names it."""

    variable: str
    url: str

    @property
    def place(self) -> str:
        """Its URL without user and password."""
        scheme, _, rest = self.url.partition("://")
        return f"{scheme}://{rest.rpartition('@')[2]}"

    @property
    def advice(self) -> str:
        """What to do where it is in the way."""
        return f"correct or unset {self.variable}, or add the server's host to NO_PROXY"


class ProxyError(OllamaError):
    """A proxy that cannot be used, or does not answer."""

    def __init__(self, proxy: Proxy, fault: str) -> None:
        super().__init__(f"{proxy.variable} is {proxy.place}: {fault}; {proxy.advice}")
        self.proxy = proxy
        self.fault = fault


def proxy_of(url: str) -> Proxy | None:
    """The proxy through which a server is asked; None where it is asked directly.

    As for Go's programs, this machine needs none, nor does what NO_PROXY lists.
    """
    host, port = host_and_port(url)
    if is_this_machine(url) or _bypasses(host, port):
        return None
    return _named(urlsplit(url).scheme)


def unused_proxy(url: str) -> Proxy | None:
    """A proxy that is set, but not for this server."""
    return None if proxy_of(url) else _named(urlsplit(url).scheme)


def transport_through(proxy: Proxy | None) -> httpx.HTTPTransport:
    """What sends requests. Raises ProxyError for a proxy that cannot be used."""
    if proxy is None:
        return httpx.HTTPTransport()
    try:
        return httpx.HTTPTransport(proxy=proxy.url)
    except ImportError as error:
        fault = "SOCKS needs another package: pip install 'httpx[socks]'"
        raise ProxyError(proxy, fault) from error
    except (ValueError, httpx.InvalidURL) as error:
        raise ProxyError(proxy, f"not a valid proxy URL ({error})") from error


def _bypasses(host: str, port: int) -> bool:
    found = getproxies_environment()
    if not found:
        return bool(proxy_bypass(host))  # by the settings of Windows or macOS
    entries = found.get("no", "").lower().split(",")
    return any(_matches(entry.strip(), host.lower(), port) for entry in entries)


def _matches(entry: str, host: str, port: int) -> bool:
    """Whether an entry of NO_PROXY means a host, as in Go's golang.org/x/net/http/httpproxy.

    An entry is *, a network (10.0.0.0/8), or an address or domain, with or without a port. A
    domain means its subdomains too; .domain and *.domain mean only these.
    """
    if entry == "*":
        return True
    with suppress(ValueError):
        network = ip_network(entry, strict=False)
        with suppress(ValueError):
            return ip_address(host) in network
        return False
    name, colon, entry_port = entry.rpartition(":")
    if not colon:
        name = entry
    elif entry_port != str(port):
        return False
    name = name.removeprefix("[").removesuffix("]")
    if name.startswith("*."):
        name = name[1:]
    return bool(name) and (host == name or host.endswith(f".{name.removeprefix('.')}"))


def _named(scheme: str) -> Proxy | None:
    found = getproxies()
    for kind in (scheme, "all"):
        if value := found.get(kind):
            names = (name for name in os.environ if name.lower() == f"{kind}_proxy")
            variable = next((n for n in names if os.environ[n] == value), "the system's settings")
            return Proxy(variable, value if "://" in value else f"http://{value}")
    return None
