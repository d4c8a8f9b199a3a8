"""Which models the page finds below a folder, and what it refuses."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import gguf
import numpy as np
import pytest

from llmkit.errors import ConfigError, GGUFError
from llmkit.export.gguf.header import read_header
from llmkit.page.finding import file_hash, find_models, ollama_models, refuse_outside


def test_models_are_found_with_their_kind_quantization_and_proof(page_folder: Path) -> None:
    found = find_models(page_folder)
    assert not found.refused
    kinds = {model.name: (model.source, model.kind, model.quant) for model in found.models}
    assert kinds == {
        "answers": ("checkpoint", "answers", "f32"),
        "base": ("checkpoint", "base", "f32"),
        "export/answers-f32.gguf": ("GGUF", "answers", "f32"),
        "export/answers-q4_0.gguf": ("GGUF", "answers", "q4_0"),
        "labels-1": ("checkpoint", "labels", "f32"),
        "labels-2": ("checkpoint", "labels", "f32"),
        "labels-export/labels-1-f32.gguf": ("GGUF", "labels", "f32"),
        "long": ("checkpoint", "base", "f32"),
    }
    models = {model.name: model for model in found.models}
    small = models["export/answers-q4_0.gguf"]
    assert (small.passed, small.original) == (True, "answers")
    assert models["export/answers-f32.gguf"].passed is None
    assert models["labels-1"].labels == models["labels-export/labels-1-f32.gguf"].labels


def test_a_proof_of_other_bytes_does_not_count(page_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(page_folder / "export", tmp_path / "export")
    with (tmp_path / "export" / "answers-q4_0.gguf").open("ab") as file:
        file.write(b"\0")
    models = {model.name: model for model in find_models(tmp_path).models}
    assert models["export/answers-q4_0.gguf"].passed is None


def test_a_hostile_proof_does_not_hide_the_other_models(page_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(page_folder / "answers", tmp_path / "answers")
    for name in ("deep", "long"):
        shutil.copytree(page_folder / "export", tmp_path / name)
    (tmp_path / "deep" / "parity.json").write_text("[" * 100_000)
    proofs = tmp_path / "long" / "parity.json"
    content = json.loads(proofs.read_text())
    content["proofs"][0]["checkpoint"] = "x" * 5000 + "/answers"
    proofs.write_text(json.dumps(content))
    found = find_models(tmp_path)
    assert "answers" in {model.name for model in found.models}
    assert {Path(sentence.split()[0]).parent.name for sentence in found.refused} == {"deep"}


def test_a_checkpoint_of_the_same_name_with_other_weights_is_no_original(
    page_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(page_folder / "export", tmp_path / "export")
    for folder, source in (("a", "labels-1"), ("b", "answers")):
        shutil.copytree(page_folder / source, tmp_path / folder / "moved")
    proofs = tmp_path / "export" / "parity.json"
    content = json.loads(proofs.read_text())
    sha256 = file_hash(page_folder / "answers" / "model.safetensors")
    content["proofs"][0] |= {"checkpoint": "gone/moved", "checkpoint_sha256": sha256}
    proofs.write_text(json.dumps(content))
    models = {model.name: model for model in find_models(tmp_path).models}
    assert models["export/answers-q4_0.gguf"].original == "b/moved"


def test_the_header_is_what_ggufs_own_reader_reads(page_folder: Path) -> None:
    path = page_folder / "labels-export" / "labels-1-f32.gguf"
    header, reference = read_header(path), gguf.GGUFReader(path)
    fields = {n: f for n, f in reference.fields.items() if not n.startswith("GGUF.")}
    simple = {n: f.contents() for n, f in fields.items() if f.types[0].name != "ARRAY"}
    assert header.metadata == simple
    assert header.shapes == {t.name: tuple(map(int, t.shape[::-1])) for t in reference.tensors}
    assert header.parameters == sum(int(np.prod(t.shape)) for t in reference.tensors)


@pytest.mark.parametrize("kept", [0, 3, 20, 60, 500, 5000])
def test_a_file_that_is_cut_short_is_refused_by_name(
    page_folder: Path, tmp_path: Path, kept: int
) -> None:
    content = (page_folder / "export" / "answers-q4_0.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(content[:kept])
    with pytest.raises(GGUFError, match=r"cut\.gguf"):
        read_header(tmp_path / "cut.gguf")
    found = find_models(tmp_path)
    assert not found.models
    assert "cut.gguf" in found.refused[0]


@pytest.mark.parametrize("counts", [(1 << 62, 1 << 62, 0), (0, 1, 1 << 62), (0, 1, 1 << 40)])
def test_lengths_beyond_the_file_are_refused_at_once(
    tmp_path: Path, counts: tuple[int, ...]
) -> None:
    """Of tensors, keys, and the bytes of the first key."""
    lengths = b"".join(count.to_bytes(8, "little") for count in counts)
    (tmp_path / "huge.gguf").write_bytes(b"GGUF\3\0\0\0" + lengths + bytes(100))
    with pytest.raises(GGUFError):
        read_header(tmp_path / "huge.gguf")


def test_links_out_of_the_folder_are_refused(page_folder: Path, tmp_path: Path) -> None:
    inside = tmp_path / "models"
    inside.mkdir()
    (inside / "file.gguf").symlink_to(page_folder / "export" / "answers-q4_0.gguf")
    (inside / "linked").symlink_to(page_folder / "base", target_is_directory=True)
    shutil.copytree(page_folder / "base", inside / "weights")
    (inside / "weights" / "model.safetensors").unlink()
    (inside / "weights" / "model.safetensors").symlink_to(
        page_folder / "base" / "model.safetensors"
    )
    found = find_models(inside)
    assert not found.models
    assert len(found.refused) == 3
    for name in ("file.gguf", "linked", "model.safetensors"):
        assert any(name in sentence for sentence in found.refused)
    with pytest.raises(ConfigError):
        refuse_outside(inside / ".." / "models2", inside)


def test_a_link_within_the_folder_is_followed(page_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(page_folder / "base", tmp_path / "base")
    (tmp_path / "latest").symlink_to("base", target_is_directory=True)
    assert {model.name for model in find_models(tmp_path).models} == {"base", "latest"}


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('unpickled')",)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    for name in ("model.pt", "pytorch_model.bin", "model.gguf", "model.safetensors"):
        (tmp_path / name).write_bytes(pickle.dumps(_Bomb()))
    (tmp_path / "config.json").write_text('{"prompt_format": {}, "model": {}}')
    found = find_models(tmp_path)
    assert not found.models
    assert len(found.refused) == 2


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        find_models(tmp_path / "nowhere")


def test_the_first_page_needs_no_torch() -> None:
    """It is what makes the page show in a second, not in four."""
    code = (
        "import sys, llmkit.page.tabs, llmkit.page.find, llmkit.page.finding as f;"
        "f.ollama_models(); print(*sys.modules)"
    )
    pytest.importorskip("streamlit")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert "llmkit.page.find" in loaded
    assert not loaded & {"torch", "llama_cpp", "matplotlib", "tokenizers"}


def test_the_models_of_a_running_ollama_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Tags(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = b'{"models": [{"name": "tales:latest", "size": 4000000}]}'
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Tags) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{server.server_port}")
        (found,) = ollama_models()
        server.shutdown()
    assert (found.name, found.source, found.path) == ("tales:latest", "Ollama", None)
    assert ollama_models() == []
