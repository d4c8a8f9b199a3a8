from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import pytest
from gguf_surgery import Kind, make_checkpoint, with_array, with_key
from verify_targets import chatml_checkpoint, write

from llmkit.checkpoint.checkpoint import Checkpoint, load_checkpoint
from llmkit.checkpoint.config import CheckpointConfig, save_config
from llmkit.export.check import Outcome
from llmkit.export.llamacpp.runtime import LlamaCpp
from llmkit.export.to_hf import export_to_hf
from llmkit.export.verify import tokenizer_check as module
from llmkit.export.verify.target import open_target
from llmkit.export.verify.tokenizer_check import tokenizer_check
from llmkit.export.verify.tokenizer_stress_texts import (
    HARD_TEXTS,
    LONG_RUN,
    fuzzed_texts,
    long_runs,
)
from llmkit.importing.importer import import_checkpoint
from llmkit.modelfiles.prompt_format import PromptFormat, Turn
from llmkit.tokenizer_files import load_tokenizer
from llmkit.tokenizer_training import train_bpe, train_characters, train_words

TEXT = "the red fox and the other fox went over there, 12 times; they'd been there before " * 3
MERGES, TOKENS = "tokenizer.ggml.merges", "tokenizer.ggml.tokens"
PRE = "tokenizer.ggml.pre"
TYPES, END = "tokenizer.ggml.token_type", "<|endoftext|>"
EOS = "tokenizer.ggml.eos_token_id"
DONE = "<|done|>"


@pytest.fixture(autouse=True)
def _nothing_was_compared_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_equal", {})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    tokenizer = train_bpe([TEXT], 290)
    folder = tmp_path_factory.mktemp("words") / "c"
    return make_checkpoint(folder, tokenizer=tokenizer, n_layer=1, n_embd=32)


@pytest.fixture(scope="module")
def good(checkpoint: Checkpoint) -> Path:
    return write(checkpoint, checkpoint.folder / "m.gguf")


def check(checkpoint: Checkpoint, path: Path, *texts: str) -> Outcome:
    with LlamaCpp(path) as llama:
        return tokenizer_check(open_target(checkpoint, path), llama, texts)


# --- nothing is wrong -----------------------------------------------------------------------


def test_a_good_file_passes(checkpoint: Checkpoint, good: Path) -> None:
    found = check(checkpoint, good, TEXT, "")
    assert (found.passed, found.value, found.limit) == (True, 0, 0)
    assert "290 tokens" in found.detail


def test_files_with_one_tokenizer_are_compared_once(
    checkpoint: Checkpoint, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = check(checkpoint, good, TEXT)
    monkeypatch.setattr(module, "fuzzed_texts", None)
    assert check(checkpoint, write(checkpoint, tmp_path / "m.gguf", "q8_0"), TEXT) == first
    with pytest.raises(TypeError):
        check(checkpoint, with_key(good, tmp_path / "n.gguf", EOS, 17, Kind.UINT32), TEXT)
    longer = train_bpe([TEXT], 291)
    other = make_checkpoint(tmp_path / "c", tokenizer=longer, n_layer=1, n_embd=32)
    with pytest.raises(TypeError):
        check(other, good)


@pytest.mark.parametrize("text", ["abc äöü 中文字 😀 Привет 👍🏽 e\u0301", "abc"])
def test_a_character_tokenizer_passes(text: str, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(
        tmp_path / "c", tokenizer=train_characters([text]), n_layer=1, n_embd=32
    )
    assert check(checkpoint, write(checkpoint, tmp_path / "m.gguf", "q4_0"), TEXT).passed


def test_a_word_tokenizer_passes(tmp_path: Path) -> None:
    texts = [TEXT, *HARD_TEXTS, *fuzzed_texts(200, seed=2)]
    tokenizer = train_words(texts, 1200).with_tokens(words=["spam"])
    assert tokenizer.vocab_size == 1201
    checkpoint = make_checkpoint(tmp_path / "c", tokenizer=tokenizer, n_layer=1, n_embd=32)
    path = write(checkpoint, tmp_path / "m.gguf", "q4_0")
    found = check(checkpoint, path, TEXT, "spam eggs")
    assert found.passed, found.detail
    # The key makes llama.cpp look words up; with GPT-2's split it would not.
    other = with_key(path, tmp_path / "n.gguf", PRE, "gpt-2", Kind.STRING)
    assert f"{PRE} is 'gpt-2'" in check(checkpoint, other, TEXT).detail


def test_a_word_tokenizer_is_imported_again(tmp_path: Path) -> None:
    tokenizer = train_words([TEXT], 280)
    checkpoint = make_checkpoint(tmp_path / "c", tokenizer=tokenizer, n_layer=1, n_embd=32)
    sources = (
        write(checkpoint, tmp_path / "m.gguf"),
        export_to_hf(checkpoint.folder, tmp_path / "hf").folder,
    )
    for number, source in enumerate(sources):
        import_checkpoint(str(source), tmp_path / f"again-{number}")
        again = load_checkpoint(tmp_path / f"again-{number}").tokenizer
        assert again.looks_up_words
        assert again.tokens == tokenizer.tokens
        assert again.encode(TEXT) == tokenizer.encode(TEXT)


def test_a_chat_with_special_tokens_of_its_own_passes(tmp_path: Path) -> None:
    checkpoint = chatml_checkpoint(tmp_path / "c")
    assert len(checkpoint.tokenizer.special_ids) == 3
    path = write(checkpoint, tmp_path / "m.gguf")
    assert check(checkpoint, path, "<|im_start|>user\nhi<|im_end|>\n").passed


@pytest.mark.slow
def test_openais_vocabulary_passes(shared_data: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(shared_data / "gpt2")
    checkpoint = make_checkpoint(
        tmp_path / "c", tokenizer=tokenizer, n_layer=1, n_embd=32, context_length=8
    )
    assert check(checkpoint, write(checkpoint, tmp_path / "m.gguf")).passed


@pytest.mark.slow
def test_ten_thousand_other_fuzzed_texts_give_the_same_ids(
    checkpoint: Checkpoint, good: Path
) -> None:
    with LlamaCpp(good) as llama:
        for text in fuzzed_texts(10_000, seed=1):
            assert llama.tokenize(text) == checkpoint.tokenizer.encode(text), ascii(text)


# --- merges and tokens ----------------------------------------------------------------------


def test_a_missing_merge_is_named(checkpoint: Checkpoint, good: Path, tmp_path: Path) -> None:
    merges = [" ".join(merge) for merge in checkpoint.tokenizer.merges]
    assert "h e" in merges
    for merge in ("h e", merges[-1]):
        path = with_array(good, tmp_path / "m.gguf", MERGES, lambda items, m=merge: items.remove(m))
        found = check(checkpoint, path, TEXT)
        assert not found.passed
        assert found.value > 0
        assert f"merge {merge!r} is missing" in found.detail


def test_exchanged_merges_are_named(checkpoint: Checkpoint, good: Path, tmp_path: Path) -> None:
    merges = [" ".join(merge) for merge in checkpoint.tokenizer.merges]
    # Two that compete for the same letter.
    first = merges.index("h e")
    second = next(i for i, merge in enumerate(merges) if merge.startswith("e "))

    def exchange(items: list[Any]) -> None:
        items[first], items[second] = items[second], items[first]

    path = with_array(good, tmp_path / "m.gguf", MERGES, exchange)
    found = check(checkpoint, path, TEXT, "her hed hen")
    assert not found.passed
    pairs = (f"{merges[a]!r} and {merges[b]!r}" for a, b in ((first, second), (second, first)))
    assert any(f"merges {pair} are swapped" in found.detail for pair in pairs)


def test_a_merge_too_many_is_named(checkpoint: Checkpoint, good: Path, tmp_path: Path) -> None:
    merges = [" ".join(merge) for merge in checkpoint.tokenizer.merges]
    one_more = "o x"  # of "fox", where the f takes the o
    assert "f o" in merges
    assert one_more not in merges
    path = with_array(good, tmp_path / "m.gguf", MERGES, lambda items: items.insert(0, one_more))
    found = check(checkpoint, path, TEXT)
    assert not found.passed
    assert f"merge {one_more!r} is only in the file" in found.detail


def test_a_renamed_token_is_named(checkpoint: Checkpoint, good: Path, tmp_path: Path) -> None:
    token_id = checkpoint.tokenizer.tokens.index("he")

    def rename(items: list[Any]) -> None:
        items[token_id] = "hXe"

    found = check(checkpoint, with_array(good, tmp_path / "m.gguf", TOKENS, rename), TEXT)
    assert not found.passed
    assert f"token {token_id} is 'hXe' in the file instead of 'he'" in found.detail
    assert f"token {token_id} 'he' decodes to b'hXe' instead of b'he'" in found.detail


def test_two_exchanged_tokens_are_named(checkpoint: Checkpoint, good: Path, tmp_path: Path) -> None:
    def exchange(items: list[Any]) -> None:
        items[65], items[66] = items[66], items[65]

    tokens = checkpoint.tokenizer.tokens
    found = check(checkpoint, with_array(good, tmp_path / "m.gguf", TOKENS, exchange), TEXT)
    exchanged = (
        f"token {a} is {tokens[b]!r} in the file instead of {tokens[a]!r}"
        for a, b in ((65, 66), (66, 65))
    )
    assert any(words in found.detail for words in exchanged)
    assert "1 more tokens differ" in found.detail


# --- special tokens and ends ----------------------------------------------------------------


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Path]:
    """An end token that llama.cpp does not know by its text: it makes CONTROL of those it knows."""
    form = PromptFormat("own", Turn(), Turn("Q: ", "\nA:"), Turn(), end=DONE)
    tokenizer = train_bpe([TEXT], 280).with_tokens(special=[DONE])
    folder = tmp_path_factory.mktemp("own") / "c"
    plain = make_checkpoint(folder, tokenizer=tokenizer, n_layer=1, n_embd=32)
    save_config(folder, CheckpointConfig(plain.config, form))
    checkpoint = load_checkpoint(folder)
    return checkpoint, write(checkpoint, folder / "m.gguf")


@pytest.mark.parametrize("kind", [1, 4], ids=["NORMAL", "USER_DEFINED"])
def test_a_special_token_that_is_not_control_is_named(
    kind: int, own: tuple[Checkpoint, Path], tmp_path: Path
) -> None:
    checkpoint, good = own
    end = checkpoint.end_id
    path = with_array(
        good,
        tmp_path / "m.gguf",
        TYPES,
        lambda items: [kind if i == end else old for i, old in enumerate(items)],
    )
    found = check(checkpoint, path)
    assert not found.passed
    assert f"token {end} '{DONE}' must be CONTROL" in found.detail


def test_a_text_token_that_is_special_is_found(
    checkpoint: Checkpoint, good: Path, tmp_path: Path
) -> None:
    token_id = checkpoint.tokenizer.tokens.index("he")

    def change(items: list[Any]) -> None:
        items[token_id] = 3

    found = check(checkpoint, with_array(good, tmp_path / "m.gguf", TYPES, change), TEXT)
    assert not found.passed
    assert f"token {token_id} 'he'" in found.detail


def test_another_end_of_generation_is_named(
    checkpoint: Checkpoint, good: Path, tmp_path: Path
) -> None:
    path = with_key(good, tmp_path / "m.gguf", EOS, 17, Kind.UINT32)
    token = checkpoint.tokenizer.tokens[17]
    detail = check(checkpoint, path).detail
    assert f"token 17 {token!r} ends generation in llama.cpp" in detail


def test_an_end_that_is_none_in_llama_cpp_is_named(
    own: tuple[Checkpoint, Path], tmp_path: Path
) -> None:
    checkpoint, good = own
    assert check(checkpoint, good).passed
    end_of_text = checkpoint.tokenizer.end_of_text_id
    path = with_key(good, tmp_path / "n.gguf", EOS, end_of_text, Kind.UINT32)
    found = check(checkpoint, path)
    assert found.value == 1
    expected = f"token {checkpoint.end_id} '{DONE}' ends generation in the checkpoint"
    assert expected in found.detail


# --- the split ------------------------------------------------------------------------------


@pytest.mark.parametrize("pre", ["llama-bpe", "default", "qwen2", "starcoder"])
def test_another_split_is_named(
    pre: str, checkpoint: Checkpoint, good: Path, tmp_path: Path
) -> None:
    found = check(checkpoint, with_key(good, tmp_path / "m.gguf", PRE, pre, Kind.STRING), TEXT)
    assert not found.passed
    assert f"{PRE} is {pre!r}" in found.detail


def test_the_users_own_text_is_compared(checkpoint: Checkpoint, good: Path) -> None:
    class Deaf:
        """llama.cpp that makes something else of one text only."""

        def __init__(self, llama: LlamaCpp) -> None:
            self.llama = llama

        def __getattr__(self, name: str) -> Any:
            return getattr(self.llama, name)

        def tokenize(self, text: str, **options: Any) -> list[int]:
            return [1] if text == own_text else self.llama.tokenize(text, **options)

    own_text = "the hen of the fox over there, 12 times"
    with LlamaCpp(good) as llama:
        deaf: Any = Deaf(llama)
        target = open_target(checkpoint, good)
        assert tokenizer_check(target, deaf, []).passed
        found = tokenizer_check(target, deaf, ["the fox", own_text])
    assert found.value == 1
    assert "'the hen of" in found.detail


def test_a_text_whose_bytes_do_not_come_back_is_found(checkpoint: Checkpoint, good: Path) -> None:
    class Lossy:
        """llama.cpp that drops the bytes of one token."""

        def __init__(self, llama: LlamaCpp) -> None:
            self.llama = llama

        def __getattr__(self, name: str) -> Any:
            return getattr(self.llama, name)

        def token_bytes(self, token_id: int) -> bytes:
            return b"" if token_id == lost else self.llama.token_bytes(token_id)

    lost = checkpoint.tokenizer.tokens.index("he")
    with LlamaCpp(good) as llama:
        lossy: Any = Lossy(llama)
        found = tokenizer_check(open_target(checkpoint, good), lossy, [TEXT])
    assert not found.passed
    assert "do not decode" in found.detail
    assert f"token {lost} 'he' decodes to b'' instead of b'he'" in found.detail


def test_another_number_of_tokens_is_found(
    checkpoint: Checkpoint, good: Path, tmp_path: Path
) -> None:
    longer = train_bpe([TEXT], 291)
    other = make_checkpoint(tmp_path / "c", tokenizer=longer, n_layer=1, n_embd=32)
    path = write(other, tmp_path / "m.gguf")
    found = check(checkpoint, path, TEXT)
    assert not found.passed
    assert "llama.cpp has 291 tokens, the checkpoint 290" in found.detail
    found = check(other, good, TEXT)
    assert "llama.cpp has 290 tokens, the checkpoint 291" in found.detail


# --- the texts ------------------------------------------------------------------------------


def test_fuzzed_texts_are_the_same_for_a_seed_and_of_every_kind() -> None:
    texts = fuzzed_texts(2000)
    assert texts == fuzzed_texts(2000)
    assert texts[:100] != fuzzed_texts(100, seed=1)
    everything = set("".join(texts))
    assert all(unicodedata.ucd_3_2_0.category(c) != "Cs" for c in everything)
    categories = {unicodedata.category(c) for c in everything}
    assert {"Lu", "Ll", "Lo", "Mn", "Nd", "No", "Po", "Zs", "Cc", "Cf", "So", "Sk"} <= categories
    scripts = {unicodedata.name(c, "").split()[0] for c in everything if c.isalpha()}
    assert {"LATIN", "CYRILLIC", "GREEK", "HEBREW", "ARABIC", "HANGUL", "CJK", "THAI"} <= scripts
    assert any("\r\n" in text for text in texts)
    assert any(END in text for text in texts)


def test_long_runs_are_long() -> None:
    runs = long_runs()
    assert {len(run) for run in runs} == {LONG_RUN}
    assert {run[0] for run in runs} >= {"a", "7", " ", "\n", "é", "🙂"}
