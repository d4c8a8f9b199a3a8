"""A server that answers as the recordings of a real Ollama do, with llama.cpp behind it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ollama_stand_in_models import (
    Request,
    ServerError,
    Stored,
    check_options,
    check_whole,
    details,
    generated,
    rewritten,
    shown,
)

from llmkit.errors import ModelfileError
from llmkit.export.ollama.address import full_name
from llmkit.modelfiles.go_engine import GoEngine
from llmkit.modelfiles.modelfile import Modelfile
from llmkit.modelfiles.parameters import Parameters
from llmkit.modelfiles.prompt_format import Message

QUANTIZES = ("F32", "F16", "Q4_K_S", "Q4_K_M", "Q8_0")
Answer = dict[str, Any] | Iterator[dict[str, Any]] | None


@dataclass
class Trouble:
    """What the server does otherwise than it should."""

    version: str = "0.0.0"
    broken: dict[str, tuple[int, bytes]] = field(default_factory=dict)  # answers by path
    silent_at: str | None = None  # the path that gets no answer while this trouble lasts
    cut_uploads: int = 0  # so many uploads end after their first bytes
    cut_create: int | None = None  # the stream ends after so many lines
    dies_at: str | None = None  # the path at which the server goes away
    damages_uploads: bool = False
    refuses_create: str | None = None
    renders: Callable[[str], str] = str
    never_stops: bool = False
    gpu_share: float = 0.0  # of a loaded model, in a GPU's memory
    ends_silently: bool = False  # a stream without a last line


@dataclass
class StandIn:
    """What the server knows.

    Requests run in threads: each looks a model up once, as another may remove it meanwhile.
    """

    engine: GoEngine
    folder: Path
    models: dict[str, Stored] = field(default_factory=dict)
    trouble: Trouble = field(default_factory=Trouble)
    asked: list[tuple[str, str]] = field(default_factory=list)  # method and path
    loaded: list[str] = field(default_factory=list)
    url: str = ""

    def blob(self, digest: str) -> Path:
        return self.folder / "blobs" / digest.replace(":", "-")

    def keep_blob(self, digest: str, content: bytes) -> int:
        """Stored under its own digest, whatever it was announced as."""
        if self.trouble.damages_uploads:
            content = content[:-1] + bytes([content[-1] ^ 1])
        there = f"sha256:{hashlib.sha256(content).hexdigest()}"
        known = self.blob(there).exists()
        self.blob(there).parent.mkdir(parents=True, exist_ok=True)
        self.blob(there).write_bytes(content)
        if there != digest:
            raise ServerError(400, f'digest mismatch, expected "{digest}", got "{there}"')
        return 200 if known else 201

    def answer(self, method: str, path: str, asked: dict[str, Any]) -> Answer:
        """The answer, or the lines of one. Raises ServerError."""
        match method, path:
            case "GET", "/api/version":
                return {"version": self.trouble.version}
            case "GET", "/api/tags":
                return {"models": [_listed(*model) for model in list(self.models.items())]}
            case "GET", "/api/ps":
                return {"models": [self._running(name) for name in self.loaded]}
            case "POST", "/api/create":
                return self._create(asked)
            case "POST", "/api/copy":
                source = self.models.get(full_name(asked["source"]))
                if source is None:
                    raise ServerError(404, f'model "{asked["source"]}" not found')
                self.models[full_name(asked["destination"])] = source
                return None
            case "DELETE", "/api/delete":
                if self.models.pop(full_name(asked["model"]), None) is None:
                    raise _not_found(asked["model"])
                return None
            case "POST", "/api/show":
                return shown(self._find(full_name(asked["model"])))
            case "POST", "/api/generate" | "/api/chat":
                return self._said(path, self._find(asked["model"]), asked)
        raise ServerError(404, "not found")

    def _find(self, name: str) -> Stored:
        stored = self.models.get(full_name(name))
        if stored is None:
            raise _not_found(name)
        return stored

    def _running(self, name: str) -> dict[str, Any]:
        listed = _listed(name, self._find(name))
        in_vram = int(self.trouble.gpu_share * listed["size"])
        return listed | {"expires_at": "", "size_vram": in_vram, "context_length": 128}

    def _create(self, asked: dict[str, Any]) -> Answer:
        if not asked.get("files"):
            raise ServerError(400, "neither 'from' or 'files' was specified")
        (digest,) = asked["files"].values()
        if not self.blob(digest).exists():
            name = digest.replace(":", "-")
            raise ServerError(500, f"open <models>/blobs/{name}: no such file or directory")
        check_whole(self.blob(digest))
        if "template" in asked:
            self._check_template(asked["template"])
        quantize = asked.get("quantize", "F16").upper()
        if quantize not in QUANTIZES:
            supported = "F32, F16, Q4_K_S, Q4_K_M, Q8_0"
            raise ServerError(
                500, f"unsupported quantization type {quantize} - supported types are {supported}"
            )
        if self.trouble.refuses_create:
            raise ServerError(500, self.trouble.refuses_create)
        lines = self._creating(asked, digest)
        return lines if asked.get("stream", True) else list(lines)[-1]

    def _creating(self, asked: dict[str, Any], digest: str) -> Iterator[dict[str, Any]]:
        yield {"status": "parsing GGUF"}
        yield {"status": "verifying conversion"}
        adapter = next(iter(asked.get("adapters", {}).values()), None)
        settings = asked.get("parameters", {})
        stops = tuple(settings.get("stop", ()))
        licenses = asked.get("license", ())
        modelfile = Modelfile(
            "./model.gguf",
            template=asked.get("template"),
            system=asked.get("system"),
            messages=tuple(Message(**message) for message in asked.get("messages", ())),
            parameters=Parameters(**{**settings, "stop": stops}),
            licenses=(licenses,) if isinstance(licenses, str) else tuple(licenses),
        )
        manifest = hashlib.sha256(repr((digest, adapter, modelfile)).encode()).hexdigest()
        target = self.folder / "models" / manifest / "model.gguf"
        rewritten(self.blob(digest), target, self.blob(adapter) if adapter else None)
        own = hashlib.sha256(target.read_bytes()).hexdigest()
        yield {"status": f"creating new layer sha256:{own}"}
        yield {"status": "writing manifest"}
        self.models[full_name(asked["model"])] = Stored(target, modelfile, manifest)
        yield {"status": "success"}

    def _check_template(self, template: str) -> None:
        try:
            self.engine.render(template, [Message("user", "Hello")])
        except ModelfileError as error:
            raise ServerError(400, str(error)) from error

    def _said(self, path: str, stored: Stored, asked: dict[str, Any]) -> Answer:
        options = asked.get("options", {})
        check_options(options)
        is_chat = path == "/api/chat"
        same = {"model": asked["model"], "created_at": "2026-11-20T11:44:12.923119687Z"}
        if "prompt" not in asked and not is_chat:
            return {**same, "response": "", "done": True, "done_reason": "unload"}
        messages = [Message(**message) for message in asked.get("messages", ())]
        messages = messages or [Message("user", asked.get("prompt", ""))]
        prompt = asked["prompt"] if asked.get("raw") else self._rendered(stored, messages)

        def content(text: str, role: str = "assistant") -> dict[str, Any]:
            return {"message": {"role": role, "content": text}} if is_chat else {"response": text}

        if asked.get("_debug_render_only"):
            info = {"rendered_template": prompt}
            return {**same, **content("", ""), "done": False, "_debug_info": info}
        self.loaded = [full_name(asked["model"])]
        request = Request(prompt, asked, self.trouble.never_stops)
        pieces = generated(stored, request)
        if asked.get("stream", True):
            first = next(pieces, None)  # a refusal comes before any line

            def lines() -> Iterator[dict[str, Any]]:
                for text in (*(() if first is None else (first,)), *pieces):
                    yield {**same, **content(text), "done": False}
                if not self.trouble.ends_silently:
                    yield {**same, **content(""), "done": True, "done_reason": request.reason}

            return lines()
        list(pieces)
        told = {"logprobs": request.logprobs} if request.logprobs and asked.get("logprobs") else {}
        done = {"done": True, "done_reason": request.reason, "prompt_eval_count": request.n_prompt}
        return {**same, **content(request.text), **done, **told}

    def _rendered(self, stored: Stored, messages: Sequence[Message]) -> str:
        template = stored.modelfile.template or "{{ .Prompt }}{{ .Response }}"
        system = stored.modelfile.system or ""
        all_messages = [*stored.modelfile.messages, *messages]
        return self.trouble.renders(self.engine.render(template, all_messages, system))


def _not_found(name: str) -> ServerError:
    return ServerError(404, f"model '{name}' not found")


def _listed(name: str, stored: Stored) -> dict[str, Any]:
    size = stored.gguf.stat().st_size
    said = {"name": name, "model": name, "modified_at": "", "size": size}
    return {**said, "digest": stored.digest, "details": details(stored)}
