"""Which models lie below a folder, and which a running Ollama has.

Only headers are read, so that the list is there at once: no weights, no torch, and no pickle.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from llmkit.checkpoint.layout import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_FILE,
    CONFIG_FILE,
    MODEL_FILE,
    TRAINING_FOLDER,
)
from llmkit.errors import CheckpointError, ConfigError, LlmkitError
from llmkit.export.gguf.header import GGUFHeader, read_header
from llmkit.export.gguf.keys import ADAPTER_KEY, CHAT_TEMPLATE_KEY, LABELS_KEY
from llmkit.export.llamacpp.chat_template import ChatTemplate
from llmkit.export.verify.proof_store import kept_proof
from llmkit.files import cannot_read
from llmkit.modelfiles.prompt_format import Message, prompt_format_from

Kind = Literal["base", "answers", "labels"]
Source = Literal["checkpoint", "GGUF", "Ollama"]
KINDS: dict[Kind, str] = {
    "base": "continues text",
    "answers": "answers questions",
    "labels": "labels texts",
}

_HASHED_AT_ONCE = 256 << 20  # bytes of a file whose proof is compared with it in the list


@dataclass(frozen=True)
class Found:
    """A model, as its files describe it."""

    name: str  # path below the folder, or Ollama's name
    source: Source
    path: Path | None = None  # None: a model of Ollama
    parameters: int | None = None
    kind: Kind = "answers"
    quant: str = ""
    n_bytes: int = 0
    labels: tuple[str, ...] = ()
    proof: dict[str, Any] | None = None  # of exactly this file, as parity.json has it
    proof_is_checked: bool = True  # False: too large to hash in a list
    original: str | None = None  # name of the checkpoint that a GGUF file was made from

    @property
    def passed(self) -> bool | None:
        """Whether the proof passed; None where there is none."""
        return None if self.proof is None else bool(self.proof.get("passed"))


@dataclass(frozen=True)
class Finding:
    """Models below a folder, and one sentence for each that cannot be used."""

    models: tuple[Found, ...]
    refused: tuple[str, ...]


def find_models(folder: Path) -> Finding:
    """Checkpoints and GGUF files below `folder`, in the order of their names.

    What a link outside `folder` leads to is refused, and so is what is damaged. Raises ConfigError
    where there is no such folder.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder; give one with checkpoints or GGUF files")
    models: list[Found] = []
    refused: list[str] = []
    for path in _candidates(folder):
        try:
            refuse_outside(path, folder)
            described = _checkpoint(path) if path.is_dir() else _gguf(path)
        except (LlmkitError, OSError) as error:
            refused.append(str(error))
            continue
        except RecursionError:
            refused.append(f"{path} or its proof is damaged: JSON that is nested too deeply")
            continue
        if described is not None:
            name = path.relative_to(folder).as_posix()
            models.append(replace(described, name=folder.resolve().name if name == "." else name))
    return Finding(tuple(_with_original(model, models) for model in models), tuple(refused))


def ollama_models() -> list[Found]:
    """The models of a running Ollama; none where it does not run."""
    from llmkit.export.ollama.server import OllamaServer
    from llmkit.export.ollama.transport import Patience

    try:
        with OllamaServer(patience=Patience(connect=0.3, answer=2)) as server:
            stored = server.stored()
    except LlmkitError:
        return []
    return [Found(name, "Ollama", n_bytes=size) for name, size in sorted(stored.items())]


def refuse_outside(path: Path, folder: Path) -> None:
    """Raise ConfigError where a path leads outside a folder, also by a link within a checkpoint."""
    inner = path.iterdir() if path.is_dir() else ()
    for one in (path, *inner):
        if not one.resolve().is_relative_to(folder.resolve()):
            raise ConfigError(f"{one} leads outside {folder}; copy it into the folder to use it")


def _candidates(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):  # follows no link to a folder
        linked = [name for name in folders if (Path(root) / name).is_symlink()]
        for name in linked:
            if (Path(root) / name / CONFIG_FILE).is_file():
                yield Path(root) / name
        folders[:] = sorted(n for n in folders if n != TRAINING_FOLDER and not n.startswith("."))
        if CONFIG_FILE in files and MODEL_FILE in files:
            yield Path(root)
        for name in sorted(files):
            if name.lower().endswith(".gguf"):
                yield Path(root) / name


def _checkpoint(folder: Path) -> Found | None:
    """A checkpoint; None for a folder of another program."""
    try:
        content = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        if not isinstance(content, dict) or "prompt_format" not in content:
            return None
        labels = tuple(str(label) for label in content.get("labels", ()))
        form = prompt_format_from(content["prompt_format"], str(folder / CONFIG_FILE))
        n_parameters = _safetensors_parameters(folder / MODEL_FILE)
        quant = "f32"
        files = [folder / MODEL_FILE]
        if (folder / ADAPTER_CONFIG_FILE).is_file():
            adapter = json.loads((folder / ADAPTER_CONFIG_FILE).read_text(encoding="utf-8"))
            quant = f"{content.get('base_quant') or 'f32'} + LoRA {adapter['r']}"
            n_parameters += _safetensors_parameters(folder / ADAPTER_FILE)
            files.append(folder / ADAPTER_FILE)
        elif content.get("qat"):
            quant = f"{content['qat']} (QAT)"
    except OSError as error:
        raise CheckpointError(cannot_read(folder, error)) from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder} is damaged: {error}") from error
    return Found(
        folder.name,
        "checkpoint",
        folder,
        n_parameters,
        "labels" if labels else "base" if form.is_completion else "answers",
        quant,
        sum(file.stat().st_size for file in files),
        labels,
    )


def _safetensors_parameters(path: Path) -> int:
    """Number of weights, from the header: 8 bytes with its length, then JSON."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > size:
            raise CheckpointError(f"{path} is truncated; copy it again")
        header = json.loads(file.read(length))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name[:2] != "__")


def _gguf(path: Path) -> Found | None:
    """A GGUF file; None for an adapter or an importance matrix."""
    header = read_header(path)
    metadata = header.metadata
    if metadata.get("general.type", "model") != "model" or "general.architecture" not in metadata:
        return None
    if adapter := metadata.get(ADAPTER_KEY):
        return _described(path, header, f"{header.quant} + {Path(str(adapter)).name}")
    return _described(path, header, header.quant)


def _described(path: Path, header: GGUFHeader, quant: str) -> Found:
    labels = _labels(header)
    template = header.metadata.get(CHAT_TEMPLATE_KEY)
    hello = Message("user", "hello")
    continues = template is None
    if isinstance(template, str):
        try:
            continues = ChatTemplate(template).text([hello]) == hello.content
        except LlmkitError:
            continues = False  # llama.cpp's users see the reason when they ask it
    proof, is_checked = _proof(path)
    return Found(
        path.name,
        "GGUF",
        path,
        header.parameters,
        "labels" if labels else "base" if continues else "answers",
        quant,
        path.stat().st_size,
        labels,
        proof,
        is_checked,
    )


def _labels(header: GGUFHeader) -> tuple[str, ...]:
    try:
        return tuple(map(str, json.loads(str(header.metadata.get(LABELS_KEY, "[]")))))
    except ValueError:
        return ()


def _proof(path: Path) -> tuple[dict[str, Any] | None, bool]:
    """The proof of a file, and whether it is known to be of these bytes."""
    proof = kept_proof(path)
    if proof is None or path.stat().st_size > _HASHED_AT_ONCE:
        return proof, proof is None
    return (proof if proof.get("sha256") == file_hash(path) else None), True


def file_hash(path: Path) -> str:
    """SHA-256 of a file; computed again only when the file has changed."""
    status = path.stat()
    return _hash(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=256)
def _hash(path: Path, _size: int, _changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _with_original(model: Found, models: list[Found]) -> Found:
    """With the checkpoint that its proof names, where that is below the folder too.

    Elsewhere a checkpoint of that name counts, if its weights are those of the proof.
    """
    if model.proof is None:
        return model
    named = Path(str(model.proof.get("checkpoint", "")))
    same = [m for m in models if m.source == "checkpoint" and m.path and m.path.name == named.name]
    exact = [m for m in same if m.path and m.path.resolve() == Path(os.path.realpath(named))]
    weights = str(model.proof.get("checkpoint_sha256") or "").partition("+")[0]
    original = next(iter(exact or [m for m in same if _has_weights(m, weights)]), None)
    return model if original is None else replace(model, original=original.name)


def _has_weights(model: Found, sha256: str) -> bool:
    """Whether a checkpoint may have the weights of that hash; large ones are not hashed."""
    file = model.path / MODEL_FILE if model.path else None
    if file is None or not sha256 or file.stat().st_size > _HASHED_AT_ONCE:
        return True
    return file_hash(file) == sha256
