"""Bringing a model into a running Ollama: blobs, create, copy, delete."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmkit.console import progress
from llmkit.errors import OllamaError
from llmkit.export.ollama.transport import CHECK_RUNNING, BrokenOffError, RefusedError, Transport
from llmkit.modelfiles.modelfile import Modelfile
from llmkit.modelfiles.parameters import KINDS

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Blob:
    """A file and its name on the server."""

    path: Path
    digest: str  # sha256:HEX
    n_bytes: int

    @property
    def url_path(self) -> str:
        """Where the server keeps it."""
        return f"/api/blobs/{self.digest}"


def upload(http: Transport, blob: Blob) -> bool:
    """Bring a file to the server unless it has it; returns whether it was sent.

    Sending again does no harm, as the name is the content's. Raises OllamaError.
    """
    if http.has(blob.url_path):
        return False
    n_sent = 0

    def chunks() -> Iterator[bytes]:
        nonlocal n_sent
        n_sent = 0
        with blob.path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk
                n_sent += len(chunk)
                bar.update(n_sent // 1000)

    try:
        with progress(f"upload {blob.path.name}", blob.n_bytes // 1000, "kB") as bar:
            http.tried(lambda: http.send(blob.url_path, chunks(), blob.n_bytes))
    except BrokenOffError as error:
        raise BrokenOffError(
            f"connection lost during the upload of {blob.path.name}, after {n_sent:,} of "
            f"{blob.n_bytes:,} bytes; check that Ollama is running and has free disk space"
        ) from error
    except RefusedError as error:
        if "digest mismatch" in error.reason:
            raise OllamaError(
                f"{blob.path.name} changed during the upload ({error.reason}); check that no other "
                "program writes it, then try again"
            ) from error
        raise OllamaError(f"Ollama refused {blob.path.name}: {error.reason}") from error
    return True


def create(
    http: Transport, name: str, modelfile: Modelfile, model: Blob, adapter: Blob | None
) -> None:
    """Make a model of uploaded files. Raises OllamaError with the server's reason."""
    status = ""
    try:
        for line in http.lines(
            "/api/create",
            create_request(name, modelfile, model, adapter),
            wait=http.patience.create,
        ):
            status = str(line.get("status", ""))
    except RefusedError as error:
        raise OllamaError(f"Ollama could not create the model: {error.reason}") from error
    except BrokenOffError as error:
        raise _cut(http, status) from error
    if status != "success":
        raise _cut(http, status)


def copy(http: Transport, source: str, destination: str) -> None:
    """Give a model another name too; whatever had that name is replaced."""
    content = {"source": source, "destination": destination}
    http.ask("POST", "/api/copy", content, again=True)


def delete(http: Transport, name: str) -> None:
    """Remove a model; one that is not there is removed already."""
    try:
        http.ask("DELETE", "/api/delete", {"model": name}, again=True)
    except RefusedError as error:
        if error.status != 404:
            raise


def create_request(
    name: str, modelfile: Modelfile, model: Blob, adapter: Blob | None
) -> dict[str, Any]:
    """What `ollama create` sends for a Modelfile (Ollama's parser.CreateRequest)."""
    settings = {key: getattr(modelfile.parameters, key) for key in KINDS}
    request: dict[str, Any] = {
        "model": name,
        "files": {model.path.name: model.digest},
        "adapters": {adapter.path.name: adapter.digest} if adapter else None,
        "template": modelfile.template,
        "system": modelfile.system,
        "messages": [asdict(message) for message in modelfile.messages],
        "parameters": {key: value for key, value in settings.items() if value not in (None, ())},
        "renderer": modelfile.renderer,
        "parser": modelfile.parser,
        "requires": modelfile.requires,
        "license": list(modelfile.licenses),
    }
    return {key: value for key, value in request.items() if value not in (None, [], {})}


def _cut(http: Transport, status: str) -> BrokenOffError:
    when = f"after {status!r}" if status else "before any status"
    return BrokenOffError(
        f"connection to Ollama at {http.url} lost while creating the model ({when}); "
        f"{CHECK_RUNNING}"
    )
