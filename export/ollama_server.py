"""A running Ollama, over HTTP."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

from llmkit.errors import OllamaError
from llmkit.modelfiles.prompt_format import Message

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 11434
_PORTS = {"http": 80, "https": 443}  # of an address that names its scheme and no port
TIMEOUT_S = 120.0  # a model is loaded at its first question


@dataclass(frozen=True)
class Shown:
    """What a server says of a stored model."""

    template: str
    system: str
    parameters: str  # a line each: name and value
    metadata: dict[str, Any]  # arrays are None
    tensors: dict[str, tuple[str, tuple[int, ...]]]  # type and shape by name


@dataclass(frozen=True)
class SaidToken:
    """A generated token and the most probable ones at its place, by their bytes, in nats."""

    token: bytes
    logprobs: dict[bytes, float]


@dataclass(frozen=True)
class Said:
    """A generation: its text, its tokens as far as they are told, and why it ended."""

    text: str
    tokens: tuple[SaidToken, ...]
    done_reason: str


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
    name = parts.hostname or DEFAULT_HOST
    name = DEFAULT_HOST if name == "0.0.0.0" else name  # where a server listens, not where it is
    return f"{scheme}://{f'[{name}]' if ':' in name else name}:{port}{parts.path.rstrip('/')}"


class OllamaServer:
    """Questions to a server. Each raises OllamaError where it does not answer or refuses."""

    def __init__(self, host: str | None = None) -> None:
        self.url = address(host)
        self._client = httpx.Client(base_url=self.url, timeout=TIMEOUT_S)

    def __enter__(self) -> OllamaServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def version(self) -> str:
        """The server's version."""
        return str(self._ask("GET", "/api/version").get("version", "unknown"))

    def show(self, model: str) -> Shown:
        """What the server stores under a name."""
        answer = self._ask("POST", "/api/show", {"model": model, "verbose": True})
        tensors = answer.get("tensors") or []
        return Shown(
            str(answer.get("template", "")),
            str(answer.get("system", "")),
            str(answer.get("parameters", "")),
            dict(answer.get("model_info") or {}),
            {t["name"]: (t["type"], tuple(t["shape"])) for t in tensors},
        )

    def rendered(self, model: str, messages: Sequence[Message]) -> str:
        """The prompt that the server makes of a chat, without running the model."""
        content = {"model": model, "messages": [asdict(message) for message in messages]}
        answer = self._ask(
            "POST", "/api/chat", {**content, "stream": False, "_debug_render_only": True}
        )
        try:
            return str(answer["_debug_info"]["rendered_template"])
        except (LookupError, TypeError) as error:
            raise OllamaError(f"{self.url} cannot show prompts; update Ollama") from error

    def continued(self, model: str, prompt: str, n_tokens: int, n_ctx: int) -> Said:
        """The greedy continuation of a bare text, with the log-probabilities before sampling."""
        content = {
            "model": model,
            "prompt": prompt,
            "raw": True,
            "stream": False,
            "shift": False,  # else the context moves on when it is full
            "truncate": False,
            "logprobs": True,
            "top_logprobs": 20,
            "options": {"temperature": 0, "num_predict": n_tokens, "num_ctx": n_ctx},
        }
        answer = self._ask("POST", "/api/generate", content)
        return Said(
            str(answer.get("response", "")),
            tuple(_token(entry) for entry in answer.get("logprobs") or []),
            str(answer.get("done_reason", "")),
        )

    def answered(self, model: str, messages: Sequence[Message], n_tokens: int, n_ctx: int) -> Said:
        """The greedy answer to a chat."""
        content = {
            "model": model,
            "messages": [asdict(message) for message in messages],
            "stream": False,
            "shift": False,
            "options": {"temperature": 0, "num_predict": n_tokens, "num_ctx": n_ctx},
        }
        answer = self._ask("POST", "/api/chat", content)
        text = (answer.get("message") or {}).get("content", "")
        return Said(str(text), (), str(answer.get("done_reason", "")))

    def _ask(self, method: str, path: str, content: dict[str, Any] | None = None) -> dict[str, Any]:
        try:
            answer = self._client.request(method, path, json=content)
            body = answer.json()
        except httpx.ConnectError as error:
            advice = "start it, or set OLLAMA_HOST"
            raise OllamaError(f"no Ollama answers at {self.url}: {advice}") from error
        except httpx.HTTPError as error:
            raise OllamaError(f"{self.url}{path}: {error or type(error).__name__}") from error
        except ValueError as error:
            raise OllamaError(f"{self.url}{path} does not answer as Ollama does") from error
        if not isinstance(body, dict):
            raise OllamaError(f"{self.url}{path} does not answer as Ollama does")
        if answer.is_error or "error" in body:
            raise OllamaError(f"{self.url}{path}: {body.get('error', answer.status_code)}")
        return body


def _token(entry: dict[str, Any]) -> SaidToken:
    top = [entry, *(entry.get("top_logprobs") or [])]
    logprobs = {bytes(t["bytes"]): float(t["logprob"]) for t in top[1:] if t.get("bytes")}
    return SaidToken(bytes(entry.get("bytes") or b""), logprobs)
