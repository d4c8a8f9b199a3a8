"""What the stand-in does with a model: stores it as Ollama does, shows it, runs it by llama.cpp."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf_surgery import Kind, keys_of, tensors_of, write_file

from llmkit.export.gguf.keys import ADAPTER_KEY
from llmkit.export.llamacpp.runtime import LlamaCpp
from llmkit.modelfiles.modelfile import Modelfile
from llmkit.modelfiles.parameters import KINDS


@dataclass
class Stored:
    """A model of the server."""

    gguf: Path
    modelfile: Modelfile
    digest: str = ""


@dataclass
class Request:
    """A generation that is asked for."""

    prompt: str
    asked: dict[str, Any]
    never_stops: bool = False
    text: str = ""
    reason: str = "length"
    n_prompt: int = 0
    logprobs: list[dict[str, Any]] = field(default_factory=list)


class ServerError(Exception):
    """An error of the server: status and text."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def check_whole(blob: Path) -> None:
    """Ollama's refusal of a truncated file."""
    size = blob.stat().st_size
    filled = blob.with_suffix(".filled")
    shutil.copy(blob, filled)
    with filled.open("ab") as file:
        file.write(b"\0" * (1 << 20))
    try:
        tensors = gguf.GGUFReader(filled).tensors
    except ValueError as error:
        raise ServerError(500, "invalid file magic") from error
    for tensor in tensors:
        end = int(tensor.data_offset + tensor.n_bytes)
        if end > size:
            raise ServerError(
                500, f'tensor "{tensor.name}" offset+size ({end}) exceeds file size ({size})'
            )


def rewritten(blob: Path, target: Path, adapter: Path | None) -> Path:
    """The file as `llama-quantize IN OUT COPY` leaves it: another order, one key more."""
    target.parent.mkdir(parents=True, exist_ok=True)
    keys = {**keys_of(blob), "general.quantization_version": (2, Kind.UINT32, None)}
    write_file(target, keys, dict(sorted(tensors_of(blob).items())))
    if adapter is not None:
        shutil.copy(adapter, target.parent / Path(str(keys[ADAPTER_KEY][0])).name)
    return target


def shown(stored: Stored) -> dict[str, Any]:
    """The answer of /api/show."""
    reader = gguf.GGUFReader(stored.gguf)
    metadata = {
        name: None if entry.types[0] == gguf.GGUFValueType.ARRAY else entry.contents()
        for name, entry in reader.fields.items()
        if not name.startswith("GGUF.")
    }
    n_weights = sum(int(tensor.n_elements) for tensor in reader.tensors)
    parameters = stored.modelfile.parameters
    lines = [f'{"stop":<30} "{stop}"' for stop in parameters.stop]
    lines += [
        f"{name:<30} {getattr(parameters, name)}"
        for name in KINDS
        if name != "stop" and getattr(parameters, name) is not None
    ]
    return {
        **({"license": stored.modelfile.licenses[0]} if stored.modelfile.licenses else {}),
        "modelfile": f"FROM {stored.gguf}\n",
        "parameters": "\n".join(lines),
        "template": stored.modelfile.template or "{{ .Prompt }}",
        "system": stored.modelfile.system or "",
        "details": details(stored),
        "model_info": {
            **metadata,
            "general.parameter_count": n_weights,
            "general.quantization_version": 2,
        },
        "tensors": [
            {"name": t.name, "type": t.tensor_type.name, "shape": [int(n) for n in t.shape]}
            for t in reader.tensors
        ],
        "capabilities": ["completion"],
        "modified_at": "2026-11-20T11:44:12.645993166Z",
    }


def details(stored: Stored) -> dict[str, Any]:
    """What every list of models says of one."""
    return {
        "parent_model": "",
        "format": "gguf",
        "family": "gpt2",
        "families": ["gpt2"],
        "parameter_size": "128K",
        "quantization_level": "F16",
    }


def generated(stored: Stored, request: Request) -> Iterator[str]:
    """Yield the text of a generation; the request then knows the rest of the answer.

    As llama.cpp's server (`process_token` of server-context.cpp), it holds text back while it ends
    within a character. The end drops what is held back; later text brings it along.
    """
    asked, options = request.asked, request.asked.get("options", {})
    stops = stored.modelfile.parameters.stop
    held = b""
    with LlamaCpp(stored.gguf, exact=False) as llama:  # with Ollama's f16 keys and values
        new = llama.with_bos(llama.tokenize(request.prompt, parse_special=True))
        if len(new) >= llama.n_ctx:
            if not asked.get("truncate", True):
                _refuse_long(len(new), llama.n_ctx)
            new = new[-llama.n_ctx // 2 :]  # without a word
        request.n_prompt = len(new)
        room = llama.n_ctx - len(new)
        for _ in range(min(options.get("num_predict", room), room)):
            logits = llama.evaluate(new, all_positions=False)[0].astype(np.float64)
            logprobs = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
            top = np.argsort(-logprobs)[: asked.get("top_logprobs", 0)]
            new = [int(logprobs.argmax())]
            if llama.is_end_of_generation(new[0]) and not request.never_stops:
                request.reason = "stop"
                break
            held += llama.token_bytes(new[0])
            if whole(held) < len(held):
                continue
            text = held.decode(errors="replace")
            if any(stop in request.text + text for stop in stops):
                request.reason = "stop"
                break
            told = [_entry(llama.token_bytes(int(i)), logprobs[i]) for i in top]
            request.logprobs.append(_entry(held, logprobs[new[0]]) | {"top_logprobs": told})
            request.text += text
            held = b""
            yield text


def whole(text: bytes) -> int:
    """`validate_utf8` of server-common.cpp: the length without a character that is cut off."""
    for i, byte in enumerate(reversed(text[-4:]), start=1):
        for mask, begins, length in ((0xE0, 0xC0, 2), (0xF0, 0xE0, 3), (0xF8, 0xF0, 4)):
            if byte & mask == begins and i < length:
                return len(text) - i
    return len(text)


def check_options(options: dict[str, Any]) -> None:
    """Ollama's refusal of an option of another type."""
    for name, value in options.items():
        if KINDS.get(name) == "float" and not isinstance(value, int | float):
            raise ServerError(500, f'option "{name}" must be of type float32')


def _refuse_long(n_prompt: int, n_ctx: int) -> None:
    message = (
        f"request ({n_prompt} tokens) exceeds the available context size ({n_ctx} tokens), "
        "try increasing it"
    )
    raise ServerError(
        400,
        f'{{"error":{{"code":400,"message":"{message}","type":"exceed_context_size_error",'
        f'"n_prompt_tokens":{n_prompt},"n_ctx":{n_ctx}}}}}',
    )


def _entry(piece: bytes, logprob: float) -> dict[str, Any]:
    """A token without text, such as a special one or the first byte of several, has no bytes."""
    text = piece[: whole(piece)].decode(errors="replace")
    entry = {"token": text, "logprob": float(logprob)}
    return entry | ({"bytes": list(text.encode())} if text else {})
