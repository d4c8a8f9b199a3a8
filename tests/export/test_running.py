from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_surgery import make_checkpoint, with_tensors

from llmkit.checkpoint.checkpoint import load_checkpoint
from llmkit.cli.main import main
from llmkit.errors import CheckpointError, ConfigError, GGUFError
from llmkit.export.compare import compare
from llmkit.export.convert import Export, export
from llmkit.export.gguf.reader import is_gguf
from llmkit.export.llamacpp.runners import generate, generate_texts, stream_tokens
from llmkit.export.quantization.config import QuantConfig
from llmkit.export.quantization.requantize import requantize
from llmkit.sampling import Sampling
from llmkit.tokenizer_training import train_characters

GREEDY = Sampling(temperature=0)
A, B, END = ord("a"), ord("b"), -1  # in a vocabulary of bytes


def text_of(model: Path, prompt: str, sampling: Sampling) -> str:
    return "".join(generate(model, prompt, sampling))


@pytest.mark.parametrize("prompt", ["Once there was", "", "é中😀", "<|endoftext|>"])
def test_checkpoint_and_gguf_go_on_the_same_way(
    prompt: str, files: dict[str, Path], tiny_checkpoint: Path
) -> None:
    ours = text_of(tiny_checkpoint, prompt, GREEDY)
    assert ours == text_of(files["f32"], prompt, GREEDY)
    assert ours


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(top_k=20), Sampling(top_p=0.8)])
def test_the_same_seed_gives_the_same_text(
    sampling: Sampling, files: dict[str, Path], tiny_checkpoint: Path
) -> None:
    of_seeds = [replace(sampling, seed=seed, max_tokens=10) for seed in range(6)]
    by_file, again, by_pytorch = (
        [text_of(model, "The fox", one) for one in of_seeds]
        for model in (files["f32"], files["f32"], tiny_checkpoint)
    )
    assert by_file == again
    # A draw can fall so near a border that the rounding of logits decides.
    assert sum(map(str.__eq__, by_file, by_pytorch)) >= 4
    assert len(set(by_file)) == 6


def test_a_context_slides_the_same_way_in_both(
    files: dict[str, Path], tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sampling = Sampling(temperature=0, context_shift=True, max_tokens=80)
    texts = []
    for model in (tiny_checkpoint, files["f32"]):
        texts.append(text_of(model, "The fox", sampling))
        assert capsys.readouterr().err.count("dropped tokens 5 to 33") == 1
    assert texts[0] == texts[1]
    first = text_of(tiny_checkpoint, "The fox", GREEDY)
    assert texts[0].startswith(first[:-10])
    assert len(texts[0]) > len(first)


def test_several_prompts_are_answered_as_each_alone(
    files: dict[str, Path], tiny_checkpoint: Path
) -> None:
    prompts = ["The fox", "", "Once there was a hungry cook"]
    stopping = Sampling(temperature=0, max_tokens=25, stop=(" the",))
    wanted = [text_of(tiny_checkpoint, prompt, stopping) for prompt in prompts]
    assert not any(" the" in text for text in wanted)
    for model in (tiny_checkpoint, files["f32"]):
        assert generate_texts(model, prompts, stopping) == wanted


def test_a_file_of_prompts_is_answered_line_by_line(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("The fox\n\nOnce\n", encoding="utf-8")
    words = ["generate", str(tiny_checkpoint), "--prompts", str(file), "--temperature", "0"]
    assert main([*words, "--max-tokens", "9", "--stop", "q"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    settings = Sampling(temperature=0, max_tokens=9, stop=("q",))
    assert found == [
        {"prompt": prompt, "text": text_of(tiny_checkpoint, prompt, settings)}
        for prompt in ("The fox", "Once")
    ]
    assert main([*words, "--prompt", "Hi"]) == 2
    assert "--prompts" in capsys.readouterr().err


def test_tokens_say_the_text_and_how_probable_it_is(
    files: dict[str, Path], tiny_checkpoint: Path
) -> None:
    some = Sampling(seed=3, max_tokens=12)
    ours, theirs = (
        list(stream_tokens(m, "The fox", some)) for m in (tiny_checkpoint, files["f32"])
    )
    assert "".join(token.text for token in ours) == text_of(tiny_checkpoint, "The fox", some)
    for token, other in zip(ours, theirs, strict=True):
        assert (token.id, token.text, token.token) == (other.id, other.text, other.token)
        assert token.probability == pytest.approx(other.probability, abs=1e-4)
        assert len(token.candidates) == 10


def test_another_seed_gives_another_text(files: dict[str, Path]) -> None:
    texts = {text_of(files["f32"], "The fox", Sampling(seed=seed)) for seed in range(4)}
    assert len(texts) == 4


def test_generation_fills_the_context_and_ends(
    files: dict[str, Path], tiny_checkpoint: Path
) -> None:
    tokenizer = load_checkpoint(tiny_checkpoint).tokenizer
    prompt = "The fox"
    room = 64 - len(tokenizer.encode(prompt))
    for model in (files["f32"], tiny_checkpoint):
        longest = text_of(model, prompt, GREEDY)
        assert longest == text_of(model, prompt, Sampling(temperature=0, max_tokens=room))
        assert longest == text_of(model, prompt, Sampling(temperature=0, max_tokens=999))
        shorter = text_of(model, prompt, Sampling(temperature=0, max_tokens=room - 1))
        assert longest.startswith(shorter)
        assert longest != shorter


def both_forms(folder: Path, change: Callable[[dict[str, Any]], None]) -> tuple[Path, Path]:
    """An untied model without layers that count, as checkpoint and as GGUF."""

    def zero_first(weights: dict[str, Any]) -> None:
        for tensor in weights.values():
            tensor.zero_()
        weights["ln_f.weight"] += 1
        change(weights)

    checkpoint = make_checkpoint(
        folder / "c",
        tokenizer=train_characters(["ab"]),
        change=zero_first,
        tie_embeddings=False,
    )
    path = (
        export(checkpoint.folder, folder / "out", QuantConfig(["f32"]), prove=False).files[0].path
    )
    return checkpoint.folder, path


def test_the_end_token_ends_the_text(tmp_path: Path) -> None:
    def say_two_letters_then_end_then_go_on(weights: dict[str, Any]) -> None:
        for position, token_id in enumerate([A, B, END, B, B, B, B]):
            weights["wpe.weight"][position, position] = 1
            weights["lm_head.weight"][token_id, position] = 1

    for model in both_forms(tmp_path, say_two_letters_then_end_then_go_on):
        assert text_of(model, "x", Sampling(temperature=0, max_tokens=7)) == "ab"


def test_an_empty_prompt_begins_a_document(tmp_path: Path) -> None:
    def say_a_after_the_end_token_and_b_after_others(weights: dict[str, Any]) -> None:
        weights["wte.weight"][:, 2] = 1
        weights["wte.weight"][END, 2] = 0
        weights["wte.weight"][END, 1] = 1
        weights["lm_head.weight"][A, 1] = 1
        weights["lm_head.weight"][B, 2] = 1

    two = Sampling(temperature=0, max_tokens=2)
    for model in both_forms(tmp_path, say_a_after_the_end_token_and_b_after_others):
        assert text_of(model, "", two) == "ab"
        assert text_of(model, "x", two) == "bb"


def test_text_comes_in_whole_characters(files: dict[str, Path]) -> None:
    pieces = list(generate(files["q4_0"], "The fox", Sampling(temperature=3.0, seed=1)))
    assert len(pieces) > 5
    assert all(pieces)


def test_a_prompt_that_fills_the_context_is_refused(
    files: dict[str, Path], tiny_checkpoint: Path
) -> None:
    for model in (files["f32"], tiny_checkpoint):
        with pytest.raises(ConfigError, match=r" [0-9]+ tokens\b.* context .*\b64;"):
            text_of(model, "0 " * 64, GREEDY)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no model", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"notes\.txt "):
        text_of(text, "", GREEDY)
    with pytest.raises(CheckpointError, match=r"/none .*llmkit train"):
        text_of(tmp_path / "none", "", GREEDY)
    with pytest.raises(GGUFError, match=r"none\.gguf does not exist"):
        text_of(tmp_path / "none.gguf", "", GREEDY)


def test_a_gguf_is_known_by_name_or_first_bytes(files: dict[str, Path], tmp_path: Path) -> None:
    renamed = tmp_path / "sha256-abc"
    renamed.write_bytes(files["q4_0"].read_bytes())
    text = tmp_path / "notes.txt"
    text.write_text("GGU", encoding="utf-8")
    assert is_gguf(files["q4_0"])
    assert is_gguf(renamed)
    assert is_gguf(tmp_path / "not-there.GGUF")
    assert not is_gguf(text)
    assert not is_gguf(tmp_path)
    assert not is_gguf(tmp_path / "not-there")
    assert text_of(renamed, "The fox", GREEDY) == text_of(files["q4_0"], "The fox", GREEDY)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_gguf_with_faulty_weights_is_refused_with_the_tensors_name(
    tiny_checkpoint: Path, tiny_export: Export, tmp_path: Path, value: float
) -> None:
    source = next(file.path for file in tiny_export.files if file.quant == "f32")
    name = "blk.1.ffn_up.weight"

    def poison(tensors: dict[str, Any]) -> None:
        tensors[name][0][3, 5] = value

    path = with_tensors(source, tmp_path / "poisoned.gguf", poison)
    uses: list[Callable[[], object]] = [
        lambda: requantize(path, tmp_path / "out.gguf", "q8_0"),
        lambda: compare(tiny_checkpoint, [path]),
        lambda: text_of(path, "Hi", Sampling(temperature=0)),
    ]
    for use in uses:
        with pytest.raises(GGUFError, match=f"poisoned.gguf: tensor {name} has"):
            use()
    assert not (tmp_path / "out.gguf").exists()
