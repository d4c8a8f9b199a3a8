"""The memory that a file needs, against what llama.cpp says that it allocates."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from finetuned import with_adapter
from gguf_surgery import make_checkpoint

from llmkit.export.convert import export
from llmkit.export.gguf.adapter import adapter_of
from llmkit.export.gguf.memory_need import memory_needed, memory_needed_as, padded, repacked_bytes
from llmkit.export.gguf.reader import read_gguf
from llmkit.export.quantization.config import QuantConfig
from llmkit.quantization.tensor_types import quantization

MIB = 2**20
ROUNDED = 0.02 * MIB  # the log has two digits after the point, and parts are added up
# llama.cpp logs into its own stderr; a process of its own keeps the test's handler apart.
PROGRAM = """
import ctypes, sys
import llama_cpp

@llama_cpp.llama_log_callback
def log(level, text, data):
    sys.stdout.write(text.decode(errors="replace"))

llama_cpp.llama_log_set(log, ctypes.c_void_p(0))
params = llama_cpp.llama_model_default_params()
params.n_gpu_layers = 0
model = llama_cpp.llama_model_load_from_file(sys.argv[1].encode(), params)
params = llama_cpp.llama_context_default_params()
params.n_ctx = int(sys.argv[2])
assert llama_cpp.llama_init_from_model(model, params)
"""
SIZES: list[dict[str, Any]] = [
    {"n_layer": 2, "n_embd": 64, "context_length": 128},
    {"n_layer": 4, "n_embd": 256, "n_head": 4, "context_length": 1024},
    {"n_layer": 2, "n_embd": 96, "context_length": 1000, "tie_embeddings": False},
    {"n_layer": 2, "n_embd": 32, "context_length": 600},  # logits are wider than a layer
]


def allocated(path: Path, context: int) -> dict[str, float]:
    """Bytes by the log's word: model, KV, compute, output; model's copies as `repacked`."""
    run = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM, str(path), str(context)],
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, float] = defaultdict(float)
    for where, what, size in re.findall(
        r"(\S+) +(model|KV|compute|output) buffer size = +([\d.]+) MiB", run.stdout
    ):
        found["repacked" if where == "CPU_REPACK" else what] += float(size) * MIB
    return found


@pytest.mark.slow
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_the_need_is_what_llama_cpp_allocates(sizes: dict[str, Any], tmp_path: Path) -> None:
    made = make_checkpoint(tmp_path / "c", **sizes)
    done = export(
        made.folder, tmp_path / "out", QuantConfig(["f32", "f16", "q8_0", "q4_0"]), prove=False
    )
    length = sizes["context_length"]
    for exported in done.files:
        file = read_gguf(exported.path)
        copies = repacked_bytes(file)
        for context in (100, length):
            there, need = allocated(exported.path, context), memory_needed(file, context)
            compute = there["compute"] + there["output"]
            assert need.weights - copies == pytest.approx(there["model"], abs=ROUNDED)
            assert need.kv_cache == pytest.approx(there["KV"], abs=ROUNDED)
            assert need.compute_buffer == pytest.approx(compute, rel=0.01, abs=ROUNDED)
            if there["repacked"]:  # other CPUs repack other types, or none
                assert copies == pytest.approx(there["repacked"], abs=ROUNDED)


@pytest.mark.parametrize("name", ["q4_0", "iq4_nl", "q2_k", "q4_k", "q5_k", "q6_k"])
def test_types_are_repacked_as_llama_cpp_does(name: str, tmp_path: Path) -> None:
    made = make_checkpoint(tmp_path / "c", n_layer=1, n_embd=256)
    quant_config = QuantConfig(["q4_0"], tensor_types={"*": name})
    done = export(made.folder, tmp_path / "out", quant_config, prove=False)
    file = read_gguf(done.files[0].path)
    there = allocated(file.path, 32)["repacked"]
    if there:  # other CPUs repack other types, or none
        assert repacked_bytes(file) == pytest.approx(there, abs=ROUNDED)


def test_more_context_than_the_model_has_costs_nothing(tmp_path: Path) -> None:
    made = make_checkpoint(tmp_path / "c", context_length=300)
    done = export(made.folder, tmp_path / "out", QuantConfig(["q8_0"]), prove=False)
    file = read_gguf(done.files[0].path)
    assert memory_needed(file, 10**6) == memory_needed(file, 300)
    assert memory_needed(file, 200).total < memory_needed(file, 300).total
    assert [padded(n) for n in (1, 256, 257)] == [256, 256, 512]


def test_an_adapter_is_counted(tmp_path: Path) -> None:
    made = with_adapter(make_checkpoint(tmp_path / "base"), tmp_path / "c")
    done = export(made.folder, tmp_path / "out", QuantConfig(["f16"]), prove=False)
    file = read_gguf(done.files[0].path)
    adapter = adapter_of(file)
    assert adapter is not None
    apart = sum(t.blocks.nbytes for t in adapter.tensors.values())
    base = sum(t.blocks.nbytes for t in file.tensors.values())
    assert memory_needed(file, 32).weights == apart + base


def test_the_need_of_another_type_is_that_of_its_file(tmp_path: Path) -> None:
    made = make_checkpoint(tmp_path / "c", n_embd=96, tie_embeddings=False)
    done = export(made.folder, tmp_path / "out", QuantConfig(["f32", "q8_0", "q4_0"]), prove=False)
    first, *others = (read_gguf(exported.path) for exported in done.files)
    for file in others:
        assert memory_needed_as(first, quantization(file.quant), 20) == memory_needed(file, 20)
