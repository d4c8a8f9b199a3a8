"""Real checkpoints of other programs, each with the logits that its own code computes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmkit.errors import LlmkitError
from llmkit.export.convert import export
from llmkit.export.llamacpp.runtime import LlamaCpp
from llmkit.export.quantization.config import QuantConfig
from llmkit.importing.facts import ImportOptions
from llmkit.importing.importer import import_checkpoint

# What the user has to say of each, beside what its folder holds. {data}: the shared texts.
CHARACTERS = "chars:{data}/tinyshakespeare.txt"
IMPORTED: dict[str, dict[str, Any]] = {
    "build_nanogpt": {"tokenizer": "{data}/gpt2"},
    "hf4_gpt2_bin": {},
    "hf_gpt2_bin_legacy": {},
    "hf_gpt2_classifier": {"tokenizer": "{hf}", "labels": ("no", "yes", "maybe")},
    "hf_gpt2_gelu_erf": {},
    "hf_gpt2_inverse_layer_scale": {"tokenizer": "{hf}"},
    "hf_gpt2_n_inner48": {"tokenizer": "{hf}"},
    "hf_gpt2_padded_vocab": {},
    "hf_gpt2_relu": {"tokenizer": "{hf}"},
    "hf_gpt2_sharded": {"tokenizer": "{hf}"},
    "hf_gpt2_tokenizer": {},
    "hf_gpt2_untied": {"tokenizer": "{hf}"},
    "llmc_v3_fp32": {"tokenizer": "{data}/gpt2"},
    "mingpt_chargpt": {"tokenizer": "chars:{first}"},
    "nanogpt_bpe_padded50304": {"tokenizer": "{data}/gpt2"},
    "nanogpt_char_compiled": {},
    "nanogpt_char_nobias": {},
    "ng_video_lecture_relu": {"tokenizer": CHARACTERS},
    "raschka_ch06_classifier": {"tokenizer": "{data}/gpt2", "n_head": 2, "labels": ("ham", "spam")},
    "raschka_gptmodelfast": {"n_head": 4},
    "raschka_lora": {"n_head": 4, "lora_alpha": 8.0},
    "raschka_model_and_optimizer": {"n_head": 4},
    "raschka_qkv_bias": {"n_head": 2},
    "raschka_whole_module": {"tokenizer": "{verdict}"},
    "student_daniele_layers3": {"n_head": 4, "tokenizer": CHARACTERS},
    "student_minigpt_char": {},
    "student_qibin_tokenizers_bpe": {},
    "student_umer_raschka_relu": {"tokenizer": CHARACTERS, "activation": "relu"},
}
REFUSED = {
    "litgpt_lit_model": ("litgpt", "rotary"),
    "nanochat_base": ("nanochat", "rotary"),
    "student_emad_modern_in_nanogpt_box": ("Llama", "RMSNorm", "SwiGLU"),
    "student_fcc_postnorm_pickle": ("post-norm", "--norm pre"),
    "hf_gpt2_classifier": ("score.weight", "3 rows", "512", "--labels"),
    "raschka_ch06_classifier": ("out_head.weight", "2 rows", "50,257", "--labels"),
    "raschka_lora": ("--lora-alpha", "rank 4"),
    "raschka_model_and_optimizer": ("--n-head", "1, 2, 4, 8, 16, 32"),
    "ng_video_lecture_relu": ("--tokenizer", "65"),
}


@pytest.fixture(scope="module")
def foreign(shared_data: Path) -> Path:
    folder = shared_data.parent / "foreign"
    if not folder.is_dir():
        pytest.skip("needs the shared folder of foreign checkpoints")
    return folder


def options_of(name: str, foreign: Path, shared_data: Path, tmp_path: Path) -> ImportOptions:
    given = dict(IMPORTED[name])
    if "tokenizer" in given:
        first = tmp_path / "first.txt"
        text = (shared_data / "tinyshakespeare.txt").read_text(encoding="utf-8")
        first.write_text(text[:200_000], encoding="utf-8")
        given["tokenizer"] = given["tokenizer"].format(
            data=shared_data,
            hf=foreign / "hf_gpt2_tokenizer",
            first=first,
            verdict=foreign / "raschka_qkv_bias" / "vocab.json",
        )
    return ImportOptions(**given)


@pytest.mark.parametrize("name", IMPORTED)
def test_an_import_computes_what_its_program_did(
    name: str, foreign: Path, shared_data: Path, tmp_path: Path
) -> None:
    reference = foreign / name / "reference.npz"
    options = options_of(name, foreign, shared_data, tmp_path)
    out = tmp_path / "checkpoint"
    done = import_checkpoint(foreign / name, out, options, reference=reference)
    assert done.proof is not None
    assert done.proof.max_difference < 1e-4
    if options.labels:
        return  # llama.cpp's logits of labels stand at other ids
    file = export(out, tmp_path / "gguf", QuantConfig(["f32"]), prove=False).files[0].path
    with np.load(reference) as known:
        tokens, logits = known["tokens"], known["logits"]
    n = min(logits.shape[2], 50257, done.config.vocab_size)
    with LlamaCpp(file, n_ctx=tokens.shape[1]) as llama:
        for ids, wanted in zip(tokens, logits, strict=True):
            llama.reset()
            found = llama.evaluate([int(i) for i in ids], all_positions=True)
            assert np.abs(found[:, :n] - wanted[:, :n]).max() < 2e-3


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_imported_is_refused_by_name(
    name: str, foreign: Path, tmp_path: Path
) -> None:
    with pytest.raises(LlmkitError) as caught:
        import_checkpoint(foreign / name, tmp_path / "out")
    for word in REFUSED[name]:
        assert word in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "changes", "hint"),
    [
        ("student_umer_raschka_relu", {"activation": "gelu_tanh"}, "--activation relu"),
        ("raschka_qkv_bias", {"n_head": 4}, "--n-head 2"),
        ("raschka_model_and_optimizer", {"n_head": 1, "activation": "relu"}, "--n-head 4"),
        ("nanogpt_char_nobias", {"attention_scale": "none"}, "--attention-scale head"),
        ("student_fcc_postnorm_pickle", {"norm": "pre", "tokenizer": "{fcc}"}, "norm post"),
    ],
)
def test_a_wrong_guess_is_caught_and_the_right_one_named(
    name: str,
    changes: dict[str, Any],
    hint: str,
    foreign: Path,
    shared_data: Path,
    tmp_path: Path,
) -> None:
    fcc = f"chars:{foreign}/student_fcc_postnorm_pickle/vocab.txt"
    changes = {k: v.format(fcc=fcc) if isinstance(v, str) else v for k, v in changes.items()}
    if name in IMPORTED:
        given = vars(options_of(name, foreign, shared_data, tmp_path))
        changes = {**given, **changes}
    options = ImportOptions(**changes)
    with pytest.raises(LlmkitError) as caught:
        import_checkpoint(
            foreign / name, tmp_path / "out", options, reference=foreign / name / "reference.npz"
        )
    assert hint in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_gguf_comes_back_as_the_same_weights(foreign: Path, tmp_path: Path) -> None:
    source = foreign / "hf_gpt2_tokenizer"
    import_checkpoint(source, tmp_path / "a")
    file = export(tmp_path / "a", tmp_path / "gguf", QuantConfig(["f32"]), prove=False).files[0]
    done = import_checkpoint(file.path, tmp_path / "b", reference=source / "reference.npz")
    assert done.proof is not None
    assert done.proof.passed
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_a_damaged_file_leaves_nothing(foreign: Path, tmp_path: Path) -> None:
    copy = tmp_path / "source"
    shutil.copytree(foreign / "hf_gpt2_sharded", copy)
    (copy / "model-00003-of-00005.safetensors").unlink()
    with pytest.raises(LlmkitError, match="model-00003-of-00005"):
        import_checkpoint(copy, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
