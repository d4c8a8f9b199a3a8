"""The proof's memory: a layer's weights and the file, and never all weights unpacked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from gguf_surgery import make_checkpoint
from verify_targets import written

# A process of its own, because its peak counts. The first model brings in what every proof needs.
PROGRAM = """
import sys
from pathlib import Path
import torch
from llmkit.checkpoint.checkpoint import load_checkpoint
from llmkit.export.evaluation.eval_data import proof_sequences
from llmkit.export.llamacpp.runtime import LlamaCpp
from llmkit.export.verify.generation_check import generation_check
from llmkit.export.verify.layers_check import layers_check
from llmkit.export.verify.logits_check import compare_logits
from llmkit.export.verify.reference import Reference
from llmkit.export.verify.target import open_target
from llmkit.export.verify.tensors_check import tensors_check
from llmkit.memory import peak_rss_bytes

for folder in map(Path, sys.argv[1:]):
    before = peak_rss_bytes()
    target = open_target(load_checkpoint(folder), folder / "m.gguf")
    _, texts = proof_sequences(target.checkpoint, None, 16)
    assert tensors_check(target).passed
    assert layers_check(target, texts[0].inputs).passed
    with LlamaCpp(target.file.path) as llama:
        noise = compare_logits(llama, target, texts).logit_noise
        reference = Reference(target, torch.float32)
        assert generation_check(llama, reference, [[1, 2]], noise).passed
print(peak_rss_bytes() - before)
"""


def test_peak_memory_is_less_than_the_weights_in_float32(tmp_path: Path) -> None:
    small, wide = tmp_path / "small", tmp_path / "wide"
    for folder, width, n_layer in ((small, 64, 1), (wide, 320, 24)):
        made = make_checkpoint(folder, n_embd=width, n_layer=n_layer, n_head=8, context_length=16)
        written(made, folder / "m.gguf", "q8_0")
    command = [sys.executable, "-P", "-c", PROGRAM, str(small), str(wide)]
    grown = int(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    n_weights = 24 * 12 * 320**2
    assert grown < 4 * n_weights, f"{grown / 1e6:.0f} MB for {n_weights / 1e6:.0f}M weights"
