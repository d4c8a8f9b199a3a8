from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import pytest
import torch
from gguf_surgery import make_checkpoint, with_key, with_tensors, without_key
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models

from llmkit.checkpoint.checkpoint import Checkpoint, load_checkpoint
from llmkit.errors import DataError, GGUFError
from llmkit.export.gguf.writer import write_gguf
from llmkit.export.llamacpp.devices import build_features, devices
from llmkit.export.llamacpp.runtime import EXACT_BATCH, LlamaCpp
from llmkit.quantization.tensor_types import quantization
from llmkit.tokenizer import Tokenizer, byte_alphabet, byte_level, with_end_of_text
from llmkit.tokenizer_files import load_tokenizer
from llmkit.tokenizer_training import train_characters

IDS = list(range(40, 72))

# Letters and digits that Unicode 16 added. The tokenizers library knows them, llama.cpp's tables
# are older, so that its split takes them for punctuation.
NEWER_THAN_LLAMA_CPP = (
    range(0x1C89, 0x1C8B), range(0xA7CB, 0xA7DD), range(0x105C0, 0x105F4), range(0x10D40, 0x10D86),
    range(0x10EC2, 0x10EC5), range(0x11380, 0x113D4), range(0x116D0, 0x116E4),
    range(0x11BC0, 0x11BFA), range(0x13460, 0x143FB), range(0x16100, 0x1613A),
    range(0x16D40, 0x16D7A), range(0x18CFF, 0x18D00), range(0x1CCF0, 0x1CCFA),
    range(0x1E5D0, 0x1E5FB),
)  # fmt: skip


@pytest.fixture(scope="module")
def llama(files: dict[str, Path]) -> Iterator[LlamaCpp]:
    with LlamaCpp(files["f32"]) as llama:
        yield llama


def opened(checkpoint: Checkpoint) -> LlamaCpp:
    path = checkpoint.folder / "model.gguf"
    write_gguf(checkpoint, path, quantization("f32"), "model")
    return LlamaCpp(path)


def test_tokens_one_by_one_give_the_logits_of_all_at_once(llama: LlamaCpp) -> None:
    llama.reset()
    whole = llama.evaluate(IDS)
    llama.reset()
    steps = [llama.evaluate([token_id])[0] for token_id in IDS]
    assert whole.shape == (32, 512)
    np.testing.assert_allclose(np.stack(steps), whole, atol=2e-4)


@pytest.mark.parametrize(("n", "n_batches"), [(5, 1), (31, 1), (32, 2), (64, 3)])
def test_all_tokens_of_a_text_are_computed_with_as_many_others(
    n: int, n_batches: int, llama: LlamaCpp, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = list(range(40, 40 + n))
    llama.reset()
    whole = llama.evaluate(ids)
    sizes = []
    decode = llama._decode_part
    monkeypatch.setattr(llama, "_decode_part", lambda some: sizes.append(len(some)) or decode(some))
    parts = [llama.evaluate_text(ids, range(n)[start : start + 31]) for start in range(0, n, 31)]
    assert sizes == [EXACT_BATCH] * n_batches
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=2e-4)


def test_going_on_after_some_tokens_gives_the_same_logits(llama: LlamaCpp) -> None:
    llama.reset()
    whole = llama.evaluate(IDS)
    llama.reset()
    llama.evaluate(IDS[:20])
    np.testing.assert_allclose(llama.evaluate(IDS[20:]), whole[20:], atol=2e-4)


def test_the_last_row_alone_is_the_last_row(llama: LlamaCpp) -> None:
    llama.reset()
    whole = llama.evaluate(IDS)
    llama.reset()
    last = llama.evaluate(IDS, all_positions=False)
    assert last.shape == (1, 512)
    np.testing.assert_allclose(last[0], whole[-1], atol=2e-4)


def test_logits_are_a_copy_that_later_calls_leave_alone(llama: LlamaCpp) -> None:
    llama.reset()
    first = llama.evaluate(IDS[:4])
    kept = first.copy()
    llama.evaluate(IDS[4:8])
    np.testing.assert_array_equal(first, kept)


def test_reset_forgets_everything(llama: LlamaCpp) -> None:
    llama.reset()
    fresh = llama.evaluate(IDS)
    llama.reset()
    llama.evaluate(IDS[::-1])
    llama.reset()
    np.testing.assert_array_equal(llama.evaluate(IDS), fresh)


def test_logits_are_the_checkpoints(llama: LlamaCpp, tiny_checkpoint: Path) -> None:
    llama.reset()
    with torch.inference_mode():
        ours = load_checkpoint(tiny_checkpoint).load_model()(torch.tensor([IDS]))[0].numpy()
    np.testing.assert_allclose(llama.evaluate(IDS), ours, atol=1e-3)


def test_the_whole_context_fits_and_no_token_more(llama: LlamaCpp) -> None:
    llama.reset()
    assert llama.context_length == llama.n_ctx == 64
    llama.evaluate(list(range(64)))
    with pytest.raises(GGUFError, match=r"\b65 tokens.* 64$"):
        llama.evaluate([1])
    llama.reset()
    with pytest.raises(GGUFError, match=r"\b65 tokens"):
        llama.evaluate(list(range(65)))


def test_a_context_can_be_smaller_but_not_larger_than_the_models(files: dict[str, Path]) -> None:
    with LlamaCpp(files["f32"], n_ctx=16) as small, LlamaCpp(files["f32"], n_ctx=999) as large:
        assert (small.n_ctx, large.n_ctx) == (16, 64)


def test_a_token_outside_the_vocabulary_is_an_error(llama: LlamaCpp) -> None:
    llama.reset()
    with pytest.raises(GGUFError, match=r"llama\.cpp failed.*token.*512"):
        llama.evaluate([512])


def test_only_the_end_of_text_ends_a_generation(llama: LlamaCpp) -> None:
    assert [i for i in range(512) if llama.is_end_of_generation(i)] == [511]
    assert llama.bos_id == 511
    assert llama.token_bytes(511) == b""


def test_a_broken_file_gives_llama_cpps_reason(files: dict[str, Path], tmp_path: Path) -> None:
    whole = files["f32"]
    path = tmp_path / "broken.gguf"
    path.write_bytes(whole.read_bytes()[:-4096])
    with pytest.raises(GGUFError, match=r"cannot load .*broken\.gguf: .*(bounds|truncated|corr)"):
        LlamaCpp(path)
    path.write_bytes(b"GGML" + whole.read_bytes()[4:])
    with pytest.raises(GGUFError, match="invalid magic"):
        LlamaCpp(path)
    with pytest.raises(GGUFError, match="No such file"):
        LlamaCpp(tmp_path / "none.gguf")


@pytest.mark.parametrize(
    "key",
    [
        "gpt2.attention.layer_norm_epsilon", "gpt2.context_length", "gpt2.block_count",
        "tokenizer.ggml.model", "tokenizer.ggml.merges",
    ],
)  # fmt: skip
def test_a_missing_key_gives_llama_cpps_reason(
    key: str, files: dict[str, Path], tmp_path: Path
) -> None:
    path = without_key(files["f32"], tmp_path / "m.gguf", key)
    with pytest.raises(GGUFError, match=key.rpartition(".")[2]):
        LlamaCpp(path)


def test_an_unknown_split_and_a_missing_tensor_give_llama_cpps_reason(
    files: dict[str, Path], tmp_path: Path
) -> None:
    kind = gguf.GGUFValueType.STRING
    path = with_key(files["f32"], tmp_path / "a.gguf", "tokenizer.ggml.pre", "foo", kind)
    with pytest.raises(GGUFError, match="unknown pre-tokenizer type: 'foo'"):
        LlamaCpp(path)
    path = with_tensors(files["f32"], tmp_path / "b.gguf", lambda t: t.pop("blk.1.ffn_up.bias"))
    with pytest.raises(GGUFError, match=r"blk\.1\.ffn_up\.bias"):
        LlamaCpp(path)


# --- tokenization ---------------------------------------------------------------------------

NEW_CHARACTERS = [chr(code) for codes in NEWER_THAN_LLAMA_CPP for code in codes]
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=NEW_CHARACTERS))
# Pieces on which a split turns: spaces of all kinds, contractions, digits, the special token.
PIECES = st.sampled_from(
    [" ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u2028", "\u3000", "'s", "'LL", "'", "a", "Z", "é",
     "1", "²", "٣", "!", "_", "中", "😀", "\u0301", "\u200d", "\0", "<|endoftext|>", "<|", "|>"]
)  # fmt: skip
MIXED = st.lists(st.one_of(PIECES, TEXTS), max_size=20).map("".join)


@given(text=MIXED)
@settings(max_examples=300, deadline=None)
def test_bpe_gives_the_checkpoints_ids_for_any_text(
    llama: LlamaCpp, tiny_tokenizer: Tokenizer, text: str
) -> None:
    ids = llama.tokenize(text)
    assert ids == tiny_tokenizer.encode(text)
    assert b"".join(llama.token_bytes(token_id) for token_id in ids) == text.encode()


@pytest.fixture(scope="module")
def tiny_tokenizer(tiny_checkpoint: Path) -> Tokenizer:
    return load_tokenizer(tiny_checkpoint)


@pytest.fixture(scope="module")
def character_llama(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[LlamaCpp, Tokenizer]]:
    tokenizer = train_characters(
        ["abc äöü ßé 中文字 Привет 😀👍🏽 👩‍👩‍👧 e\u0301 \u00a0\u2028\u3000 ²٣"]
    )
    checkpoint = make_checkpoint(tmp_path_factory.mktemp("characters") / "c", tokenizer=tokenizer)
    with opened(checkpoint) as llama:
        yield llama, tokenizer


@given(text=st.one_of(MIXED, st.text("abä é中😀👍🏽\u200d\u0301 ²")))
@settings(max_examples=300, deadline=None)
def test_characters_give_the_checkpoints_ids_for_any_text(
    character_llama: tuple[LlamaCpp, Tokenizer], text: str
) -> None:
    llama, tokenizer = character_llama
    assert llama.tokenize(text) == tokenizer.encode(text)


@pytest.mark.slow
def test_openais_vocabulary_gives_the_same_ids(shared_data: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(shared_data / "gpt2")
    checkpoint = make_checkpoint(
        tmp_path / "c", tokenizer=tokenizer, n_layer=1, n_embd=32, context_length=8
    )
    with opened(checkpoint) as llama:
        assert llama.tokenize("Hello world") == [15496, 995]  # as OpenAI's encoder.py gives
        for name in ("the-verdict.txt", "wikitext2_valid.txt", "sms_spam.tsv"):
            text = (shared_data / name).read_text(encoding="utf-8")[:300_000]
            assert llama.tokenize(text) == tokenizer.encode(text), name

        @given(text=MIXED)
        @settings(max_examples=300, deadline=None)
        def any_text(text: str) -> None:
            assert llama.tokenize(text) == tokenizer.encode(text)

        any_text()


@pytest.mark.slow
def test_every_character_is_split_the_same_way(tmp_path: Path) -> None:
    """A letter joins `a`, a digit `1`, punctuation `!`: merges show which one a character is."""
    alphabet = byte_alphabet()
    merges = [(left, symbol) for left in "a1!" for symbol in alphabet]
    vocab = {symbol: token_id for token_id, symbol in enumerate(alphabet)}
    for left, symbol in merges:
        vocab.setdefault(left + symbol, len(vocab))
    tokenizer = with_end_of_text(byte_level(models.BPE(vocab=vocab, merges=merges)))
    checkpoint = make_checkpoint(tmp_path / "c", tokenizer=tokenizer, n_layer=1, n_embd=32)
    new = {ord(character) for character in NEW_CHARACTERS}
    assigned = (*range(0xD800), *range(0xE000, 0x34000), *range(0xE0000, 0xE0200), 0x10FFFF)
    codes = [code for code in assigned if code not in new]
    with opened(checkpoint) as llama:
        for start in range(0, len(codes), 4096):
            chunk = codes[start : start + 4096]
            text = "\n".join(left + chr(code) for code in chunk for left in "a1!")
            if llama.tokenize(text) != tokenizer.encode(text):
                differing = [
                    f"U+{code:04X} {unicodedata.name(chr(code), '')}"
                    for code in chunk
                    for left in "a1!"
                    if llama.tokenize(left + chr(code)) != tokenizer.encode(left + chr(code))
                ]
                assert not differing


def test_text_with_a_lone_surrogate_is_no_text(llama: LlamaCpp) -> None:
    with pytest.raises(DataError, match="2"):
        llama.tokenize("a\udcff")


def test_an_exact_run_keeps_products_from_blas_and_devices(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """ggml gives both only products of 32 tokens or more."""
    given: list[Any] = []
    start = llama_cpp.llama_init_from_model

    def noting(model: Any, params: Any) -> Any:
        given.append(params)
        return start(model, params)

    monkeypatch.setattr(llama_cpp, "llama_init_from_model", noting)
    for exact in (True, False):
        with LlamaCpp(files["f32"], exact=exact):
            pass
    exact_run, usual = given
    assert (exact_run.n_ubatch, exact_run.op_offload) == (31, False)
    assert (usual.n_ubatch, usual.op_offload) == (64, True)


def test_the_cpu_is_a_device_and_the_build_names_its_parts() -> None:
    (cpu,) = (device for device in devices() if device.name == "CPU")
    assert not cpu.is_gpu
    assert cpu.description in str(cpu)
    assert "REPACK" in build_features() or "LLAMAFILE" in build_features()
