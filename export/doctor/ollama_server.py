"""Ollama: whether it is installed, runs where it is looked for, and is new enough."""

from __future__ import annotations

import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from llmkit.errors import OllamaError
from llmkit.export.check import Check
from llmkit.export.doctor.port import free_port, holder
from llmkit.export.ollama.address import (
    DEFAULT_PORT,
    Address,
    given_address,
    host_and_port,
    is_this_machine,
    read_address,
)
from llmkit.export.ollama.proxy import ProxyError, proxy_of, unused_proxy
from llmkit.export.ollama.server import OllamaServer
from llmkit.export.ollama.transport import (
    HostNameError,
    NoServerError,
    NotOllamaError,
    Patience,
    TooSlowError,
)

OLDEST_VERSION = (0, 12, 11)  # the first that tells log-probabilities
FROM_SOURCE = "0.0.0"
# Where the installers of macOS and Windows put the program when they leave PATH alone.
_PROGRAMS = (
    "/Applications/Ollama.app/Contents/Resources/ollama",
    "~/AppData/Local/Programs/Ollama/ollama.exe",
)
_DOWNLOAD = "install it from https://ollama.com/download"
_PATIENCE = Patience(connect=3, answer=5, pause=0.2)


@dataclass(frozen=True)
class Found:
    """What was found out about the server, and its URL if its address was understood."""

    checks: tuple[Check, ...]
    url: str | None
    answers: bool

    @property
    def is_here(self) -> bool:
        """Whether it is, or would be, on this machine."""
        return self.url is None or is_this_machine(self.url)


def server_checks(host: str | None = None, patience: Patience = _PATIENCE) -> Found:
    """Address, server and version."""
    try:
        where = read_address(host)
    except OllamaError as error:
        advice = "write [http://]HOST[:PORT], for example 127.0.0.1:11434, or unset it"
        return Found((Check("host", False, str(error), advice),), None, False)
    url = where.url
    checks = [_host_check(given_address(host), where)]
    try:
        with OllamaServer(host, patience) as server:
            version = server.version()
    except ProxyError as error:
        found = f"{error.proxy.variable} is {error.proxy.place}: {error.fault}"
        checks.append(Check("proxy", False, found, error.proxy.advice))
        return Found(tuple(checks), url, False)
    except OllamaError as error:
        return Found((*checks, *_proxy_checks(url), _no_answer(url, error)), url, False)
    checks += _proxy_checks(url)
    checks.append(Check("server", True, f"Ollama answers at {url}", _already_there(url)))
    return Found((*checks, version_check(version)), url, True)


def installed_check(found: Found) -> Check:
    """Whether the program is on this machine, where the server is or would be here too."""
    program = shutil.which("ollama") or next(
        (str(path) for name in _PROGRAMS if (path := Path(name).expanduser()).exists()), None
    )
    if program is not None:
        return Check("ollama", True, f"installed: {program}")
    if found.answers or not found.is_here:
        note = "only `ollama run` needs it; deploy and chat do not"
        return Check("ollama", True, "not on the PATH of this machine", note)
    return Check("ollama", False, "not installed on this machine", _DOWNLOAD)


def version_check(version: str) -> Check:
    """Whether a server can do what a deployment asks of it."""
    if version == FROM_SOURCE:
        return Check("version", True, f"{version}, built from source")
    numbers = re.match(r"v?(\d+)\.(\d+)\.(\d+)", version)
    if numbers and tuple(map(int, numbers.groups())) >= OLDEST_VERSION:
        return Check("version", True, version)
    oldest = ".".join(map(str, OLDEST_VERSION))
    found = f"Ollama {version} is too old: it does not return log-probabilities"
    return Check("version", False, found, f"update to {oldest} or newer and restart Ollama")


def _host_check(given: str, where: Address) -> Check:
    if not given:
        return Check("host", True, f"OLLAMA_HOST is not set; using {where.url}")
    notes = []
    if where.bad_port:
        notes.append(f"{where.bad_port!r} is not a port; Ollama uses {where.port}")
    elif "://" in given and not where.port_is_given:
        notes.append(
            f"{where.scheme}:// without a port means port {where.port}; Ollama's default is "
            f"{DEFAULT_PORT}"
        )
    if where.means_all:
        notes.append("a server with this setting accepts connections from the whole network")
    return Check("host", True, f"{given!r} means {where.url}", "; ".join(notes))


def _proxy_checks(url: str) -> list[Check]:
    """A line where a proxy is set, used or not."""
    if proxy := proxy_of(url):
        found = f"{proxy.variable}: requests to {url} go through {proxy.place}"
        advice = "add hosts to NO_PROXY to bypass the proxy"
        return [Check("proxy", True, found, advice)]
    if proxy := unused_proxy(url):
        return [Check("proxy", True, f"{proxy.variable} is set; requests to {url} bypass it")]
    return []


def _already_there(url: str) -> str:
    """What to know beside a tick: why `ollama serve` fails while all is well."""
    _, port = host_and_port(url)
    if not is_this_machine(url):
        return ""
    return f"no need to run `ollama serve`: it would report that port {port} is in use"


def _no_answer(url: str, error: OllamaError) -> Check:
    if isinstance(error, NoServerError):
        found = f"not running: nothing listens at {url}"
        return Check("server", False, found, _start_advice(url))
    if isinstance(error, NotOllamaError | TooSlowError):
        return _held(url, error)
    advice = "" if isinstance(error, HostNameError) else "see Ollama's log"
    return Check("server", False, str(error), advice)


def _start_advice(url: str) -> str:
    host, port = host_and_port(url)
    if not is_this_machine(url):
        return f"start it on {host} with OLLAMA_HOST=0.0.0.0:{port}, and check for a firewall"
    has_app = sys.platform in ("darwin", "win32")
    service = "open the Ollama app" if has_app else "`sudo systemctl start ollama`"
    return f"run `{serve_command(port)}`" + (f", or {service}" if port == DEFAULT_PORT else "")


def _held(url: str, error: OllamaError) -> Check:
    """A port on which something listens that is not Ollama."""
    _, port = host_and_port(url)
    if not is_this_machine(url):
        advice = "check host and port"
        return Check("server", False, str(error), advice)
    program = holder(port) or "another program"
    says = "does not answer" if isinstance(error, TooSlowError) else "is not Ollama"
    other = free_port(port)
    found = f"port {port} is used by {program}, which {says}"
    advice = (
        f"port {other} is free: run `{serve_command(other)}` and use llmkit with "
        f"--host 127.0.0.1:{other}"
    )
    return Check("server", False, found, advice)


def serve_command(port: int) -> str:
    """What starts a server on a port of this machine."""
    if port == DEFAULT_PORT:
        return "ollama serve"
    if sys.platform == "win32":
        return f"set OLLAMA_HOST=127.0.0.1:{port}&& ollama serve"
    return f"OLLAMA_HOST=127.0.0.1:{port} ollama serve"
