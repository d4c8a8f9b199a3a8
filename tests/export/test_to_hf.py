"""Folders for Hugging Face, loaded by transformers and PEFT, and back by `import`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from finetuned import as_classifier, with_adapter
from gguf_surgery import make_checkpoint
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from llmkit.checkpoint.checkpoint import Checkpoint, load_checkpoint
from llmkit.checkpoint.config import CheckpointConfig, save_config
from llmkit.cli.main import main
from llmkit.errors import LlmkitError
from llmkit.export.check import Check, Proof
from llmkit.export.convert import export
from llmkit.export.evaluation.divergence import Distance
from llmkit.export.quantization.config import QuantConfig
from llmkit.export.to_hf import export_to_hf
from llmkit.export.verify.proof_store import keep
from llmkit.finetuning.examples import encode_prompt
from llmkit.finetuning.label_head import label_head, label_logits
from llmkit.importing.importer import import_checkpoint
from llmkit.modelfiles.prompt_format import (
    ALPACA,
    CHATML,
    COMPLETION,
    Message,
    PromptFormat,
    Turn,
)
from llmkit.tokenizer import Tokenizer
from llmkit.tokenizer_training import train_bpe, train_characters

TEXTS = ["some words to merge", "  two  spaces\n\n", "Ünïcode 漢字 🚀 don't", "12345 %&", ""]
OWN = PromptFormat("own", Turn(), Turn("Q: ", "\n"), Turn("A:\n", "\n"))
BYTES = ("model.safetensors", "tokenizer.json")


@pytest.fixture(scope="module")
def chat_tokenizer() -> Tokenizer:
    tokenizer = train_bpe(["some words to merge, some more words"], 280)
    return tokenizer.with_tokens(special=["<|im_start|>", "<|im_end|>"])


def with_format(checkpoint: Checkpoint, form: PromptFormat) -> Checkpoint:
    save_config(checkpoint.folder, CheckpointConfig(checkpoint.config, form))
    return load_checkpoint(checkpoint.folder)


def tokens_of(checkpoint: Checkpoint) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(checkpoint.config.vocab_size, (2, 20), generator=generator)


def differ(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"tie_embeddings": False, "activation": "gelu_erf", "n_ff": 96, "n_head": 4},
        {"qkv_bias": False, "activation": "relu", "layer_norm_epsilon": 1e-3},
    ],
    ids=lambda sizes: ",".join(sizes),
)
@torch.inference_mode()
def test_transformers_computes_the_same_logits(sizes: dict[str, Any], tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source", **sizes)
    done = export_to_hf(source.folder, tmp_path / "hf")
    assert {path.name for path in done.folder.iterdir()} == set(done.files)
    theirs = AutoModelForCausalLM.from_pretrained(done.folder)
    assert type(theirs) is GPT2LMHeadModel
    tokens = tokens_of(source)
    assert differ(theirs(tokens).logits, source.load_model()(tokens)) < 1e-5
    assert theirs.config.n_ctx == source.config.context_length  # llama.cpp's converter needs it
    assert theirs.generation_config.eos_token_id == sorted(source.stop_ids)
    import_checkpoint(done.folder, tmp_path / "back")
    back = load_checkpoint(tmp_path / "back")
    for name in (*BYTES, "config.json"):
        assert (back.folder / name).read_bytes() == (source.folder / name).read_bytes(), name
    assert any("zeros" in note for note in done.notes) != source.config.qkv_bias
    assert back.prompt_format == COMPLETION


def test_a_trained_checkpoint_comes_back_with_the_same_bytes(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    export_to_hf(tiny_checkpoint, tmp_path / "hf")
    import_checkpoint(tmp_path / "hf", tmp_path / "back")
    for name in BYTES:
        assert (tmp_path / "back" / name).read_bytes() == (tiny_checkpoint / name).read_bytes()


@pytest.mark.parametrize("form", [ALPACA, CHATML, OWN], ids=lambda form: form.name)
def test_tokenizer_and_chat_template_give_the_same_ids(
    form: PromptFormat, chat_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    source = make_checkpoint(tmp_path / "source", tokenizer=chat_tokenizer)
    source = with_format(source, form)
    export_to_hf(source.folder, tmp_path / "hf")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert type(theirs) is PreTrainedTokenizerFast
    assert [theirs(text)["input_ids"] for text in TEXTS] == [*map(source.tokenizer.encode, TEXTS)]
    assert (theirs.eos_token_id, theirs.bos_token) == (source.end_id, "<|endoftext|>")
    talk = [Message("user", "some words"), Message("assistant", "more"), Message("user", "merge")]
    fields = [{"role": message.role, "content": message.content} for message in talk]
    for messages, given in ((talk[:1], fields[:1]), (talk, fields)):
        ids = theirs.apply_chat_template(given, add_generation_prompt=True)["input_ids"]
        assert ids == encode_prompt(messages, form, source.tokenizer)
    import_checkpoint(tmp_path / "hf", tmp_path / "back")
    back = load_checkpoint(tmp_path / "back").prompt_format
    assert back.end == form.end
    assert form.name == "own" or back == form
    assert back.text(talk, for_answer=True) == form.text(talk, for_answer=True)


def test_what_transformers_saves_is_imported(chat_tokenizer: Tokenizer, tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source", tokenizer=chat_tokenizer)
    source = with_format(source, CHATML)
    export_to_hf(source.folder, tmp_path / "hf")
    saved = tmp_path / "saved"
    AutoModelForCausalLM.from_pretrained(tmp_path / "hf").save_pretrained(saved)
    AutoTokenizer.from_pretrained(tmp_path / "hf").save_pretrained(saved)
    assert (saved / "chat_template.jinja").is_file()
    import_checkpoint(saved, tmp_path / "back")
    back = load_checkpoint(tmp_path / "back")
    assert back.prompt_format == CHATML
    assert back.tokenizer.tokens == source.tokenizer.tokens
    tokens = tokens_of(source)
    with torch.inference_mode():
        assert torch.equal(back.load_model()(tokens), source.load_model()(tokens))


def test_a_tokenizer_of_characters_comes_back(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source", tokenizer=train_characters(["añb 漢字"]))
    export_to_hf(source.folder, tmp_path / "hf")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert theirs("ba 漢字 ☃")["input_ids"] == source.tokenizer.encode("ba 漢字 ☃")
    import_checkpoint(tmp_path / "hf", tmp_path / "back")
    for name in BYTES:
        assert (tmp_path / "back" / name).read_bytes() == (source.folder / name).read_bytes()


@torch.inference_mode()
def test_a_classifier_has_the_rows_of_its_labels(tmp_path: Path) -> None:
    tokenizer = train_bpe(["some words to merge, some more words"], 280)
    tokenizer = tokenizer.with_tokens(words=["ham", "spam"])
    base = make_checkpoint(tmp_path / "base", tokenizer=tokenizer, tie_embeddings=False)
    source = as_classifier(base, tmp_path / "source", ("spam", "ham"))
    export_to_hf(source.folder, tmp_path / "hf")
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf")
    assert theirs.config.id2label == {0: "spam", 1: "ham"}
    texts = [tokenizer.encode("some words"), tokenizer.encode("merge more words to")]
    model = source.load_model()
    ours = label_logits(model, label_head(model)[source.label_ids], texts)
    batch = AutoTokenizer.from_pretrained(tmp_path / "hf")(
        ["some words", "merge more words to"], padding=True, return_tensors="pt"
    )
    assert differ(theirs(**batch).logits, ours) < 1e-5
    import_checkpoint(tmp_path / "hf", tmp_path / "back")
    for name in BYTES:
        assert (tmp_path / "back" / name).read_bytes() == (source.folder / name).read_bytes()
    assert load_checkpoint(tmp_path / "back").labels == ("spam", "ham")


@torch.inference_mode()
def test_an_adapter_lies_beside_the_weights_or_in_them(
    random_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    source = with_adapter(random_checkpoint, tmp_path / "source", targets=("attn.c_attn",))
    tokens, out = tokens_of(source), tmp_path / "hf"
    wanted = source.load_model()(tokens)
    assert differ(wanted, random_checkpoint.load_model()(tokens)) > 0.01
    export_to_hf(source.folder, out)
    assert differ(AutoModelForCausalLM.from_pretrained(out)(tokens).logits, wanted) < 1e-5
    base = tmp_path / "base"
    shutil.copytree(out, base, ignore=shutil.ignore_patterns("adapter_*"))
    theirs = peft.PeftModel.from_pretrained(GPT2LMHeadModel.from_pretrained(base), out)
    assert differ(theirs(tokens).logits, wanted) < 1e-5
    import_checkpoint(out, tmp_path / "back")
    assert torch.equal(load_checkpoint(tmp_path / "back").load_model()(tokens), wanted)
    done = export_to_hf(source.folder, out, merge=True)
    assert not list(out.glob("adapter_*"))
    assert "adapter_config.json" not in done.files
    assert differ(AutoModelForCausalLM.from_pretrained(out)(tokens).logits, wanted) < 1e-5


def test_the_card_has_the_proofs_of_this_checkpoint_alone(
    random_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (file,) = export(random_checkpoint.folder, out, QuantConfig("q8_0"), prove=False).files
    checks = [Check("tensors", True, ""), Check("logits", False, "")]
    cost = Distance(3.21e-5, 1e-4, 1e-3, 0.1, 0.01, 0.987)
    sha256 = random_checkpoint.sha256
    keep(
        Proof(
            False,
            "",
            str(file.path),
            "",
            "q8_0",
            checks,
            {"quantization": cost},
            sha256,
            "",
            {},
            {},
        )
    )
    export_to_hf(random_checkpoint.folder, out, name="mine")
    card = (out / "README.md").read_text(encoding="utf-8")
    for word in ("# mine", sha256, "random-q8_0.gguf | 0.1 | 1 of 2 | 3.2e-05 | 98.7%"):
        assert word in card
    other = make_checkpoint(tmp_path / "other", n_layer=1)
    export_to_hf(other.folder, out)
    assert "q8_0" not in (out / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "option",
    [("--quant", "q8_0"), ("--method", "gptq"), ("--target-bpw", "4"), ("--no-verify",)],
    ids=lambda option: option[0],
)
def test_options_of_gguf_files_are_refused(
    option: tuple[str, ...],
    random_checkpoint: Checkpoint,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["export", str(random_checkpoint.folder), "--out", str(tmp_path / "out"), "--to", "hf"]
    assert main([*words, *option]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert option[0] in line
    assert not (tmp_path / "out").exists()


def test_damage_leaves_nothing(random_checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(LlmkitError, match="checkpoint"):
        export_to_hf(random_checkpoint.folder, random_checkpoint.folder)
    broken = make_checkpoint(
        tmp_path / "broken", change=lambda weights: weights["ln_f.bias"].fill_(float("nan"))
    )
    with pytest.raises(LlmkitError, match=r"ln_f\.bias"):
        export_to_hf(broken.folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
