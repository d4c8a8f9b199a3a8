"""Good exports of every kind pass every check."""

from __future__ import annotations

from pathlib import Path

import pytest
from finetuned import as_classifier, with_adapter
from gguf_surgery import make_checkpoint
from verify_targets import VARIANTS, chatml_checkpoint, lora_checkpoint, proof_of, said, write

from llmkit.export.convert import export
from llmkit.export.quantization.config import QuantConfig
from llmkit.tokenizer_training import train_bpe

# Each kind of model with one type, each type with two; the checks that compute see all pairs.
PAIRS = {
    *((variant, "q8_0") for variant in VARIANTS),
    *((v, kind) for v in ("untied", "odd width") for kind in ("f32", "f16", "bf16", "q4_0")),
}


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "kind"), sorted(PAIRS))
def test_a_good_export_of_every_kind_passes(variant: str, kind: str, tmp_path: Path) -> None:
    made = make_checkpoint(tmp_path / "c", **VARIANTS[variant])
    assert said(proof_of(made, write(made, tmp_path / "m.gguf", kind))) == {}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["f32", "q8_0", "q4_0"])
@pytest.mark.parametrize("merge", [False, True], ids=["apart", "merged"])
def test_a_good_adapter_passes(merge: bool, kind: str, tmp_path: Path) -> None:
    tuned = lora_checkpoint(tmp_path / "c")
    done = export(tuned.folder, tmp_path / "out", QuantConfig([kind]), merge=merge)
    assert said(done.proofs[0]) == {}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_a_good_qlora_export_passes(kind: str, tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "base")
    tuned = with_adapter(base, tmp_path / "tuned", base_quant=kind)
    done = export(tuned.folder, tmp_path / "out")
    assert said(done.proofs[0]) == {}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["f32", "q8_0"])
def test_a_good_chat_and_a_good_classifier_pass(kind: str, tmp_path: Path) -> None:
    chat = chatml_checkpoint(tmp_path / "chat")
    labels = ("ham", "spam")
    tokenizer = train_bpe(["some words to merge, some more words"], 280).with_tokens(words=labels)
    base = make_checkpoint(tmp_path / "base", tokenizer=tokenizer, tie_embeddings=False)
    classifier = as_classifier(base, tmp_path / "classifier", labels)
    for number, made in enumerate((chat, classifier)):
        done = export(made.folder, tmp_path / str(number), QuantConfig([kind]))
        assert said(done.proofs[0]) == {}
