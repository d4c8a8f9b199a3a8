"""The stand-in answers as a real server was recorded; a real one, where there is one, does too."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from deployable import exported, stammering_checkpoint
from gguf_surgery import make_checkpoint
from ollama_servers import real_ollama, stand_in

from llmkit.checkpoint.config import CheckpointConfig, save_config
from llmkit.export.convert import export
from llmkit.export.quantization.config import QuantConfig
from llmkit.modelfiles.prompt_format import COMPLETION

RECORDINGS = Path(__file__).parents[2] / "shared" / "ollama" / "recordings.json"
# Depends on the model, the time and the machine; of a list of recorded lines only some are there.
VARIES = {
    "created_at", "modified_at", "expires_at", "digest", "size", "model_info", "tensors",
    "modelfile", "parameter_size", "quantization_level", "context", "logprobs", "response",
    "content", "total_duration", "load_duration", "prompt_eval_count", "prompt_eval_duration",
    "eval_count", "eval_duration", "version", "context_length", "embedding_length", "parameters",
    "done_reason", "capabilities",
}  # fmt: skip
NAMES = {"tiny": "llmkit-test-tiny", "tiny2": "llmkit-test-tiny2", "x": "llmkit-test-x"}
ONLY_THE_SERVERS_OWN = ("tags, none", "tags", "ps")  # a real one may hold other models


@pytest.fixture(scope="module", params=["stand-in", "real Ollama"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    if request.param == "stand-in":
        with stand_in(folder) as server:
            yield server.url
    else:
        with real_ollama(folder) as found:
            yield found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("tiny")
    made = make_checkpoint(folder / "c", n_embd=64, n_head=4, context_length=128)
    save_config(made.folder, CheckpointConfig(made.config, COMPLETION))
    done = export(made.folder, folder / "out", QuantConfig(["f16"]), prove=False)
    return done.files[0].path.read_bytes()


def recordings() -> list[dict[str, Any]]:
    if not RECORDINGS.exists():
        pytest.skip("no folder shared/ollama with recordings beside this checkout")
    found: list[dict[str, Any]] = json.loads(RECORDINGS.read_text(encoding="utf-8"))
    return found


def test_every_recorded_request_is_answered_alike(url: str, model: bytes) -> None:
    recorded = recordings()
    bodies = {"<282848 bytes>": model, "<100000 bytes>": model[:100_000]}
    digests = _digests(recorded, bodies)
    with httpx.Client(base_url=url, timeout=60) as client:
        for recording in recorded:
            request, wanted = recording["request"], recording["response"]
            if recording["name"] in ONLY_THE_SERVERS_OWN:
                continue
            path = _replaced(request["path"], digests)
            json_body = _replaced(request["json"], {**digests, **_names()})
            answer = client.request(
                request["method"],
                path,
                content=bodies.get(request["body"]) if request["body"] else None,
                json=_full_prompt(json_body),
            )
            assert answer.status_code == wanted["status"], recording["name"]
            if request["method"] == "HEAD":
                continue
            lines = [json.loads(line) for line in answer.text.splitlines()]
            expected = _replaced(wanted["body"] or [], {**digests, **_names()})
            _alike(recording["name"], lines, expected)


# Seen on a real server of August 2026: of "<|endoftext|>a" it made two tokens, "raw" or not, and
# of an answer that ended within a character it told nothing.
def test_special_tokens_are_parsed_and_cut_characters_dropped(url: str, tmp_path: Path) -> None:
    gguf = next(exported(stammering_checkpoint(tmp_path / "c"), tmp_path / "out").glob("*.gguf"))
    content, name = gguf.read_bytes(), NAMES["x"]
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    with httpx.Client(base_url=url, timeout=60) as client:
        client.post(f"/api/blobs/{digest}", content=content).raise_for_status()
        asked: dict[str, Any] = {"model": name, "files": {"m.gguf": digest}, "stream": False}
        client.post("/api/create", json=asked).raise_for_status()
        try:
            asked = {"model": name, "raw": True, "logprobs": True, "stream": False}
            asked |= {"prompt": "<|endoftext|>a", "options": {"num_predict": 3, "temperature": 0}}
            said = client.post("/api/generate", json=asked).json()
        finally:
            client.request("DELETE", "/api/delete", json={"model": name})
    assert said["prompt_eval_count"] == 2
    assert (said["response"], said.get("logprobs"), said["done_reason"]) == ("", None, "length")


def _alike(name: str, lines: list[Any], expected: list[Any]) -> None:
    """First and last line: the same fields with the same values, where they do not vary."""
    assert bool(lines) == bool(expected), name
    for there, wanted in ((lines[0], expected[0]), (lines[-1], expected[-1])) if lines else ():
        if "error" in wanted:
            assert _words(there["error"]) == _words(wanted["error"]), name
        else:
            _same_fields(name, there, wanted)


def _same_fields(name: str, there: dict[str, Any], wanted: dict[str, Any]) -> None:
    for key, value in wanted.items():
        if key in VARIES:
            continue
        assert key in there, (name, key)
        if isinstance(value, dict):
            _same_fields(name, there[key], value)
        else:
            assert there[key] == value, (name, key)


def _words(error: str) -> list[str]:
    """Without digests and sizes."""
    return [word for word in error.split() if not any(map(str.isdigit, word))]


def _digests(recorded: list[dict[str, Any]], bodies: dict[str, bytes]) -> dict[str, str]:
    """Ours for those of the recorded files."""
    found = {}
    for recording in recorded:
        request = recording["request"]
        if request["body"] in bodies and recording["response"]["status"] < 400:
            _, _, theirs = request["path"].rpartition("sha256:")
            found[theirs] = hashlib.sha256(bodies[request["body"]]).hexdigest()
    return found


def _names() -> dict[str, str]:
    return {f'"{theirs}"': f'"{ours}"' for theirs, ours in NAMES.items()} | {
        f"'{theirs}": f"'{ours}" for theirs, ours in NAMES.items()
    }


def _replaced(value: Any, changes: dict[str, str]) -> Any:
    text = json.dumps(value)
    for old, new in changes.items():
        text = text.replace(old, new)
    return json.loads(text)


def _full_prompt(content: Any) -> Any:
    """What the recording cut short."""
    if isinstance(content, dict) and str(content.get("prompt", "")).endswith("(300 times)"):
        content["prompt"] = "hello world " * 300
    return content
