"""The stand-in's HTTP: answers, streams, and connections that break."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from typing import Any

from ollama_stand_in import StandIn
from ollama_stand_in_models import ServerError

from llmkit.modelfiles.go_engine import GoEngine

BLOBS = "/api/blobs/"
JSON, LINES = "application/json; charset=utf-8", "application/x-ndjson"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: StandIn  # set where the server is made
    gone = False

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer({})

    def do_HEAD(self) -> None:
        if self._is_broken():
            return
        there = self.state.blob(self.path.removeprefix(BLOBS)).exists()
        self._reply(200 if there else 404, None if there else JSON, b"")

    def do_POST(self) -> None:
        if self.path.startswith(BLOBS):
            self._upload()
        else:
            self._answer(self._content())

    def do_DELETE(self) -> None:
        self._answer(self._content())

    def _content(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        return content

    def _is_broken(self) -> bool:
        """Whether the connection ends here, or another answer was given."""
        trouble = self.state.trouble
        self.state.asked.append((self.command, self.path))
        if trouble.dies_at is not None and self.path.startswith(trouble.dies_at):
            type(self).gone = True
        if self.gone:
            self.close_connection = True
            return True
        while self.path == trouble.silent_at and self.state.trouble is trouble:
            time.sleep(0.01)
        if self.path in trouble.broken:
            status, body = trouble.broken[self.path]
            self._reply(status, JSON, body)
            return True
        return False

    def _upload(self) -> None:
        n_bytes = int(self.headers["Content-Length"])
        if self.state.trouble.cut_uploads > 0:
            self.state.trouble.cut_uploads -= 1
            self.rfile.read(min(1000, n_bytes - 1))
            self.close_connection = True
            return
        content = self.rfile.read(n_bytes)
        if self._is_broken():
            return
        try:
            status = self.state.keep_blob(self.path.removeprefix(BLOBS), content)
            self._reply(status, None, b"")
        except ServerError as error:
            self._refuse(error)

    def _answer(self, asked: dict[str, Any]) -> None:
        if self._is_broken():
            return
        try:
            answer = self.state.answer(self.command, self.path, asked)
        except ServerError as error:
            self._refuse(error)
            return
        if isinstance(answer, dict):
            self._reply(200, JSON, json.dumps(answer).encode())
        elif answer is None:
            self._reply(200, None, b"")
        else:
            self._stream(answer)

    def _refuse(self, error: ServerError) -> None:
        self._reply(error.status, JSON, json.dumps({"error": str(error)}).encode())

    def _reply(self, status: int, kind: str | None, body: bytes) -> None:
        self.send_response(status)
        if kind:
            self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, lines: Iterator[dict[str, Any]]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", LINES)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        cut = self.state.trouble.cut_create if self.path == "/api/create" else None
        for line in islice(lines, cut):
            data = json.dumps(line).encode() + b"\n"
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        if cut is None:
            self.wfile.write(b"0\r\n\r\n")
        else:
            self.close_connection = True


@contextmanager
def running(engine: GoEngine, folder: Path) -> Iterator[StandIn]:
    """The server on a free port of this machine; its blobs and models lie in `folder`."""
    state = StandIn(engine, folder)
    handler = type("OwnHandler", (Handler,), {"state": state})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        state.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()
