"""HTTP with a server: time-outs, tries, and what went wrong in one line."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx

from llmkit.errors import OllamaError
from llmkit.export.ollama.address import address
from llmkit.export.ollama.proxy import ProxyError, proxy_of, transport_through

TRIES = 3
CHECK_RUNNING = "check that Ollama is running, and its log"
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Patience:
    """Seconds to wait."""

    connect: float = 5.0
    answer: float = 30.0  # for something that the server knows
    compute: float = 300.0  # for a model to be loaded and run; Ollama itself gives loading as long
    upload: float = 60.0  # for the next piece to be taken
    create: float = 600.0  # for the next line: a large file is rewritten in between
    pause: float = 0.5  # before the second try, twice as long before the third


class NoServerError(OllamaError):
    """Nothing listens at the address."""


class HostNameError(OllamaError):
    """No name that a host can have."""


class NotOllamaError(OllamaError):
    """Something else than Ollama listens at the address."""

    def __init__(self, where: str) -> None:
        super().__init__(f"{where} is not an Ollama server")


class BrokenOffError(OllamaError):
    """The connection was lost after the server had answered before."""


class TooSlowError(OllamaError):
    """No answer in time."""


class RefusedError(OllamaError):
    """The server's own error; `reason` is its text."""

    def __init__(self, line: str, reason: str, status: int) -> None:
        super().__init__(line)
        self.reason = reason
        self.status = status


class Transport:
    """Requests to one server. Each raises OllamaError: a subclass says what kind."""

    def __init__(
        self, host: str | None = None, patience: Patience | None = None, key: str | None = None
    ) -> None:
        """`key`: a bearer token. Raises OllamaError for an address or a proxy that is none."""
        self.url = address(host)
        self.patience = patience or Patience()
        self.proxy = proxy_of(self.url)
        transport = transport_through(self.proxy)
        try:
            httpx.URL(self.url).host.encode("idna")  # as sockets do, only later
            self._client = httpx.Client(
                base_url=self.url,
                transport=transport,
                trust_env=False,
                headers={"Authorization": f"Bearer {key}"} if key else None,
            )
        except (httpx.InvalidURL, UnicodeError) as error:
            raise HostNameError(
                f"{self.url}: not a valid host name; correct OLLAMA_HOST or --host"
            ) from error
        self._heard = False

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def ask(
        self,
        method: str,
        path: str,
        content: Any = None,
        *,
        wait: float | None = None,
        again: bool = False,
    ) -> dict[str, Any]:
        """The JSON answer to a question; `again`: asking twice does no harm."""

        def once() -> dict[str, Any]:
            with self._failures(path):
                timeout = self._timeout(wait or self.patience.answer)
                answer = self._client.request(method, path, json=content, timeout=timeout)
                return self._body(answer, path)

        return self.tried(once) if again else once()

    def has(self, path: str) -> bool:
        """Whether the server has what the path names."""

        def once() -> bool:
            with self._failures(path):
                timeout = self._timeout(self.patience.answer)
                answer = self._client.head(path, timeout=timeout)
                if answer.is_error and answer.status_code != httpx.codes.NOT_FOUND:
                    raise self._refused(path, answer.reason_phrase, answer.status_code)
                return answer.is_success

        return self.tried(once)

    def send(self, path: str, chunks: Iterable[bytes], n_bytes: int) -> None:
        """POST bytes."""
        with self._failures(path):
            headers = {"Content-Length": str(n_bytes)}
            timeout = httpx.Timeout(self.patience.upload, read=self.patience.create)
            answer = self._client.post(path, content=chunks, headers=headers, timeout=timeout)
            self._body(answer, path)

    def lines(self, path: str, content: dict[str, Any], *, wait: float) -> Iterator[dict[str, Any]]:
        """The answer to a POST, a JSON object for each line as it comes."""
        with (
            self._failures(path),
            self._client.stream("POST", path, json=content, timeout=self._timeout(wait)) as answer,
        ):
            if answer.is_error:
                answer.read()
                self._body(answer, path)
            self._heard = True
            for line in answer.iter_lines():
                if line.strip():
                    yield self._object(line, path, answer.status_code)

    def tried(self, once: Callable[[], Answer]) -> Answer:
        """Do something that may be done twice; more often where the connection is lost."""
        pause = self.patience.pause
        for _ in range(TRIES - 1):
            try:
                return once()
            except BrokenOffError:
                time.sleep(pause)
                pause *= 2
        return once()

    def _timeout(self, wait: float) -> httpx.Timeout:
        return httpx.Timeout(wait, connect=min(wait, self.patience.connect))

    @contextmanager
    def _failures(self, path: str) -> Iterator[None]:
        where = f"{self.url}{path}"
        try:
            yield
        except httpx.TimeoutException as error:
            raise TooSlowError(
                f"{where} did not answer in time; see Ollama's log, or try again when the machine "
                "is less busy"
            ) from error
        except httpx.ConnectError as error:
            if self._heard:
                raise self._broken(path) from error
            if self.proxy:
                raise ProxyError(self.proxy, "the proxy does not answer") from error
            raise NoServerError(
                f"no Ollama server at {self.url}; start it, or set OLLAMA_HOST"
            ) from error
        except httpx.ProxyError as error:
            if self.proxy is None:
                raise
            raise ProxyError(self.proxy, f"the proxy refused the request ({error})") from error
        except httpx.TransportError as error:
            if self._heard:
                raise self._broken(path) from error
            raise self._not_ollama(path) from error
        except httpx.HTTPError as error:
            raise OllamaError(f"{where}: {error or type(error).__name__}") from error

    def _body(self, answer: httpx.Response, path: str) -> dict[str, Any]:
        """The answer's object; an empty one where it has no body, as after a copy."""
        if not answer.content and answer.is_success:
            return {}
        found = self._object(answer.text, path, answer.status_code)
        if answer.is_error:
            raise self._refused(path, str(answer.status_code), answer.status_code)
        self._heard = True
        return found

    def _object(self, text: str, path: str, status: int) -> dict[str, Any]:
        try:
            found = json.loads(text)
        except ValueError as error:
            raise self._not_ollama(path) from error
        if not isinstance(found, dict):
            raise self._not_ollama(path)
        if "error" in found:
            raise self._refused(path, str(found["error"]), status)
        return found

    def _refused(self, path: str, reason: str, status: int) -> RefusedError:
        return RefusedError(f"{self.url}{path}: {reason}", reason, status)

    def _broken(self, path: str) -> BrokenOffError:
        return BrokenOffError(
            f"connection to Ollama at {self.url} lost during {path}; {CHECK_RUNNING}"
        )

    def _not_ollama(self, path: str) -> NotOllamaError:
        through = f" (reached through the proxy in {self.proxy.variable})" if self.proxy else ""
        return NotOllamaError(f"{self.url}{path}{through}")
