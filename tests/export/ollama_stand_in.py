"""A server that answers as the recordings of a real Ollama do, with llama.cpp behind it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from llmkit.export.llama_cpp import LlamaCpp
from llmkit.modelfiles.go_engine import GoEngine
from llmkit.modelfiles.modelfile import Modelfile
from llmkit.modelfiles.prompt_format import Message

VERSION = "0.0.0"


@dataclass
class Stored:
    """A model of the server."""

    gguf: Path
    modelfile: Modelfile


@dataclass
class StandIn:
    """What the server knows. `broken` answers a path with a status and a body instead."""

    engine: GoEngine
    models: dict[str, Stored] = field(default_factory=dict)
    broken: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    url: str = ""

    def answer(self, path: str, asked: dict[str, Any]) -> tuple[int, Any]:
        if path == "/api/version":
            return 200, {"version": VERSION}
        name = asked.get("model", "")
        if name not in self.models:
            shown = f"{name}:latest" if path == "/api/show" else name
            return 404, {"error": f"model '{shown}' not found"}
        stored = self.models[name]
        if path == "/api/show":
            return 200, _shown(stored)
        if path == "/api/chat":
            return 200, self._chat(stored, asked)
        if path == "/api/generate":
            return 200, _generated(stored, asked["prompt"], asked)
        return 404, {"error": "not found"}

    def _chat(self, stored: Stored, asked: dict[str, Any]) -> dict[str, Any]:
        messages = [Message(**message) for message in asked["messages"]]
        prompt = self._rendered(stored, messages)
        if asked.get("_debug_render_only"):
            nothing = {"role": "", "content": ""}
            return {
                "message": nothing,
                "done": False,
                "_debug_info": {"rendered_template": prompt},
            }
        said = _generated(stored, prompt, asked)
        content = said.pop("response")
        return {**said, "message": {"role": "assistant", "content": content}}

    def _rendered(self, stored: Stored, messages: Sequence[Message]) -> str:
        template = stored.modelfile.template or "{{ .Prompt }}{{ .Response }}"
        return self.engine.render(template, messages, stored.modelfile.system or "")


def _shown(stored: Stored) -> dict[str, Any]:
    reader = gguf.GGUFReader(stored.gguf)
    metadata = {
        name: None if entry.types[0] == gguf.GGUFValueType.ARRAY else entry.contents()
        for name, entry in reader.fields.items()
        if not name.startswith("GGUF.")
    }
    width = 30
    lines = [f'{"stop":<{width}} "{stop}"' for stop in stored.modelfile.parameters.stop]
    return {
        "template": stored.modelfile.template or "{{ .Prompt }}",
        "system": stored.modelfile.system or "",
        "parameters": "\n".join(lines),
        "model_info": {**metadata, "general.quantization_version": 2},
        "tensors": [
            {"name": t.name, "type": t.tensor_type.name, "shape": [int(n) for n in t.shape]}
            for t in reader.tensors
        ],
    }


def _generated(stored: Stored, prompt: str, asked: dict[str, Any]) -> dict[str, Any]:
    options = asked.get("options", {})
    pieces: list[bytes] = []
    told = []
    reason = "length"
    with LlamaCpp(stored.gguf, exact=False) as llama:  # with Ollama's f16 keys and values
        new = llama.tokenize(prompt, parse_special=True)
        room = llama.n_ctx - len(new)
        for _ in range(min(options.get("num_predict", room), room)):
            logits = llama.evaluate(new, all_positions=False)[0].astype(np.float64)
            logprobs = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
            top = np.argsort(-logprobs)[: asked.get("top_logprobs", 0)]
            new = [int(logprobs.argmax())]
            if llama.is_end_of_generation(new[0]):
                reason = "stop"
                break
            piece = llama.token_bytes(new[0])
            pieces.append(piece)
            told.append(
                {
                    **_entry(piece, logprobs[new[0]]),
                    "top_logprobs": [_entry(llama.token_bytes(int(i)), logprobs[i]) for i in top],
                }
            )
    text = b"".join(pieces).decode(errors="replace")
    answer = {"response": text, "done": True, "done_reason": reason}
    return answer | ({"logprobs": told} if asked.get("logprobs") else {})


def _entry(piece: bytes, logprob: float) -> dict[str, Any]:
    """A token of no bytes of its own, such as a special one, is told without them."""
    entry = {"token": piece.decode(errors="replace"), "logprob": float(logprob)}
    return entry | ({"bytes": list(piece)} if piece else {})


@contextmanager
def running(engine: GoEngine) -> Iterator[StandIn]:
    """The server on a free port of this machine."""
    state = StandIn(engine)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self._answer({})

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            self._answer(json.loads(self.rfile.read(length)))

        def _answer(self, asked: dict[str, Any]) -> None:
            if self.path in state.broken:
                status, body = state.broken[self.path]
            else:
                status, content = state.answer(self.path, asked)
                body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()
