"""Questions to a running Ollama."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from llmkit.errors import OllamaError, PromptTooLongError
from llmkit.export.ollama.address import full_name
from llmkit.export.ollama.transport import (
    BrokenOffError,
    NotOllamaError,
    Patience,
    RefusedError,
    Transport,
)
from llmkit.modelfiles.prompt_format import Message

if TYPE_CHECKING:
    from llmkit.sampling import Sampling

_TOO_LONG = "exceed_context_size_error"  # in the server's own words


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


class OllamaServer:
    """Questions to a server. Each raises OllamaError where it does not answer or refuses."""

    def __init__(self, host: str | None = None, patience: Patience | None = None) -> None:
        self.http = Transport(host, patience)

    def __enter__(self) -> OllamaServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    @property
    def url(self) -> str:
        """Where the server is."""
        return self.http.url

    def version(self) -> str:
        """The server's version. Raises NotOllamaError where something else answers."""
        try:
            found = self.http.ask("GET", "/api/version", again=True).get("version")
        except RefusedError as error:
            if error.status == 404:  # another web server
                raise NotOllamaError(self.url) from error
            raise
        if not isinstance(found, str):
            raise NotOllamaError(self.url)
        return found

    def digest(self, model: str) -> str | None:
        """What tells one model under a name from another; None where there is none."""
        models = self.http.ask("GET", "/api/tags", again=True).get("models") or []
        wanted = full_name(model).lower()  # names differ by more than case
        return next((m["digest"] for m in models if m.get("name", "").lower() == wanted), None)

    def gpu_share(self, model: str) -> float | None:
        """The share of a loaded model that is in a GPU's memory; None if it is not loaded."""
        models = self.http.ask("GET", "/api/ps", again=True).get("models") or []
        wanted = full_name(model).lower()
        found = next((m for m in models if m.get("name", "").lower() == wanted), None)
        if found is None or not found.get("size"):
            return None
        return float(found.get("size_vram") or 0) / float(found["size"])

    def stored(self) -> dict[str, int]:
        """Bytes of each stored model by name."""
        models = self.http.ask("GET", "/api/tags", again=True).get("models") or []
        return {str(model["name"]): int(model.get("size", 0)) for model in models}

    def loaded(self) -> set[str]:
        """Names of the models that are in memory."""
        models = self.http.ask("GET", "/api/ps", again=True).get("models") or []
        return {str(model["name"]) for model in models}

    def show(self, model: str) -> Shown:
        """What the server stores under a name."""
        content = {"model": model, "verbose": True}
        answer = self.http.ask("POST", "/api/show", content, again=True)
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
        content = {
            "model": model,
            "messages": [asdict(message) for message in messages],
            "stream": False,
            "_debug_render_only": True,
        }
        answer = self.http.ask("POST", "/api/chat", content, again=True, wait=self._compute)
        try:
            return str(answer["_debug_info"]["rendered_template"])
        except (LookupError, TypeError) as error:
            raise OllamaError(
                f"{self.url} cannot return rendered prompts; update Ollama"
            ) from error

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
        answer = self.http.ask("POST", "/api/generate", content, wait=self._compute)
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
        answer = self.http.ask("POST", "/api/chat", content, wait=self._compute)
        return Said(_content(answer), (), str(answer.get("done_reason", "")))

    def chat(self, model: str, messages: Sequence[Message], sampling: Sampling) -> Iterator[str]:
        """Yield the answer to a chat as it comes. Raises PromptTooLongError where it cannot."""
        content = {
            "model": model,
            "messages": [asdict(message) for message in messages],
            "shift": sampling.context_shift,
            "truncate": False,  # else the oldest messages are left out without a word
            "options": _options(sampling),
        }

        from llmkit.generation import before_stop  # loads torch, which only this needs

        # Not Ollama's option `stop`, which would replace the stop strings of the model's Modelfile.
        pieces = ((None, text) for text in self._chat(model, content))
        for _, text in before_stop(pieces, sampling.stop):
            if text:
                yield text

    def _chat(self, model: str, content: dict[str, Any]) -> Iterator[str]:
        ended = False
        try:
            for part in self.http.lines("/api/chat", content, wait=self._compute):
                ended = ended or bool(part.get("done"))
                if text := _content(part):
                    yield text
        except RefusedError as error:
            if _TOO_LONG in error.reason:
                raise PromptTooLongError(
                    f"the prompt is longer than the context of {model}; shorten the prompt"
                ) from error
            raise
        if not ended:  # as a real server does after thirty equal pieces
            raise BrokenOffError(f"{self.url}: the answer stopped early; see Ollama's log")

    @property
    def _compute(self) -> float:
        return self.http.patience.compute


def _content(answer: dict[str, Any]) -> str:
    return str((answer.get("message") or {}).get("content", ""))


def _options(sampling: Sampling) -> dict[str, Any]:
    """The same sampling in Ollama's words: all tokens unless told."""
    return {
        "temperature": sampling.temperature,
        "top_k": sampling.top_k or 0,
        "top_p": sampling.top_p or 1.0,
        "min_p": sampling.min_p or 0.0,
        "repeat_penalty": sampling.repeat_penalty,
        "repeat_last_n": sampling.repeat_last_n,
        "num_keep": sampling.num_keep,
        "seed": sampling.seed,
        **({"num_predict": sampling.max_tokens} if sampling.max_tokens else {}),
    }


def _token(entry: dict[str, Any]) -> SaidToken:
    top = entry.get("top_logprobs") or []
    logprobs = {bytes(t["bytes"]): float(t["logprob"]) for t in top if t.get("bytes")}
    return SaidToken(bytes(entry.get("bytes") or b""), logprobs)
