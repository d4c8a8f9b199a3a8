"""A model family is one file: everything else asks it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from gguf_surgery import make_checkpoint
from toy_family import TOY

from llmkit.architectures import registry
from llmkit.checkpoint.checkpoint import load_checkpoint
from llmkit.export.convert import export
from llmkit.export.gguf.reader import config_of, read_gguf
from llmkit.export.quantization.config import QuantConfig
from llmkit.export.verify.reference import Reference
from llmkit.export.verify.target import open_target
from llmkit.quant import quant_type
from llmkit.quantization import walk
from llmkit.training import train

STEPS = {"steps": 80, "batch_size": 8, "eval_interval": 80}
ROOT = Path(__file__).parents[2]
# Of GPT-2's checkpoints and of llama.cpp's graph of it. `output` and `lm_head` are every family's.
NAMES = re.compile(
    r"c_attn|c_fc|c_proj|\bwte\b|\bwpe\b|\bln_[12f]\b|attn_qkv|attn_output|attn_norm"
    r"|ffn_(up|down|norm)|output_norm|token_embd|position_embd|[\"']gpt2\.|wqkv|kqv_out|transformer\.|fan_in_fan_out\W+True"
)
# Names of every architecture, examples for users, and texts that no code reads.
ALLOWED = {
    "export/gguf/tensor_roles.py",
    "llmkit/architectures/gpt2.py",
    "llmkit/architectures/graph.py",
    "llmkit/cli/finetune/options.py",
}


@pytest.mark.parametrize("tied", [True, False])
def test_a_family_of_one_file_goes_the_whole_way(
    tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained, exported, walked by error feedback, and computed by the reference."""
    monkeypatch.setitem(registry.FAMILIES, "toy", TOY)
    text, folder = tmp_path / "text.txt", tmp_path / "c"
    text.write_text("\n\n".join(f"The hen has {n} eggs and a fox." for n in range(400)))
    sizes = {"tie_embeddings": tied}
    steps = {**STEPS, "optimizer": "muon", "learning_rate": 2e-2}
    trained = train(text, folder, preset="toy", vocab_size=300, model=sizes, training=steps)
    source = load_checkpoint(folder)
    assert source.config.architecture == "toy"
    assert trained.metrics[-1].val_loss < 3  # of ln 300 = 5.7 at the start

    rounded = export(folder, tmp_path / "rtn", QuantConfig(("f32", "q4_0")), prove=False)
    (fed_back,) = export(
        folder, tmp_path / "gptq", QuantConfig(("q4_0",), method="gptq"), prove=False
    ).files
    f32, q4_0 = (read_gguf(file.path) for file in rounded.files)
    assert f32.metadata["general.architecture"] == "toy"
    assert config_of(f32) == source.config

    text_like_its_own = "\n\n".join(f"The hen has {n} eggs and a fox." for n in (7, 31, 260))
    ids = torch.tensor(source.tokenizer.encode(text_like_its_own))[: source.config.context_length]
    model = source.load_model()
    with torch.inference_mode():
        wanted = model(ids[None])[0].double().log_softmax(-1)

    def kl(path: Path) -> float:
        logits = Reference(open_target(source, path), torch.float64).logits(ids)
        return float((wanted.exp() * (wanted - logits.log_softmax(-1))).sum(-1).mean())

    assert abs(kl(f32.path)) < 1e-6  # GELU's table of f16 is all that differs
    assert 1e-5 < kl(fed_back.path) < kl(q4_0.path)


def test_fused_steps_of_the_walk_are_the_steps_by_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left out of memory changes no block."""
    model = make_checkpoint(tmp_path / "c", n_embd=64).load_model()
    types = {
        spec.checkpoint_name: quant_type("q4_0")
        for spec in registry.tensor_specs(model.config)
        if spec.is_matrix
    }
    tokens = torch.randint(model.config.vocab_size, (3, 16))
    fused = walk.error_feedback(model, types, tokens)
    monkeypatch.setattr(walk, "_is_only_read_by", lambda name, later: False)
    for name, blocks in walk.error_feedback(model, types, tokens).items():
        assert (blocks == fused[name]).all(), name


def test_gpt2s_names_stand_in_its_own_file() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for folder in ("llmkit", "export", "quant", "modelfiles")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if str(path.relative_to(ROOT).as_posix()) not in ALLOWED
        and "importing" not in path.parts  # it knows other programs' names
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if NAMES.search(line)
    ]
    assert not found, "\n".join(found)
