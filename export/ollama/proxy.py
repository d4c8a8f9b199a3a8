"""The proxy on the way to a server."""

from __future__ import annotations

import os
from dataclasses import dataclass
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

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

    As for Go's programs, this machine needs none, and NO_PROXY names hosts that need none.
    """
    host, port = host_and_port(url)
    if is_this_machine(url) or proxy_bypass(host) or proxy_bypass(f"{host}:{port}"):
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


def _named(scheme: str) -> Proxy | None:
    found = getproxies()
    for kind in (scheme, "all"):
        if value := found.get(kind):
            names = (name for name in os.environ if name.lower() == f"{kind}_proxy")
            variable = next((n for n in names if os.environ[n] == value), "the system's settings")
            return Proxy(variable, value if "://" in value else f"http://{value}")
    return None
