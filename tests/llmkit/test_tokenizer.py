from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as HFTokenizer
from tokenizers import models, pre_tokenizers, trainers
from transformers import GPT2Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from llmkit.errors import CheckpointError, ConfigError, LlmkitError
from llmkit.tokenizer import END_OF_TEXT, Tokenizer, byte_alphabet, safe_pieces
from llmkit.tokenizer_files import load_tokenizer
from llmkit.tokenizer_training import train_bpe, train_characters, train_words

TRAINING_TEXTS = [
    "The miller's daughter said: \"I'll go, he'd better not!\" They've 1234 apples.\n\n",
    "Ein Müßiggänger aß 3 Äpfel — naïve café.\r\n\tZwei  Wörter   mehr.",
    "日本語の文章。 日本の本。 🙂🙂 👩‍👩‍👧 Ελληνικά кириллица",
]

# Text that GPT-2's split treats specially: white space of many kinds, contractions, digits,
# special tokens, bytes of two to four per character.
SPACES = list(" \n\t\x1c\x85\u00a0\u2003\u2028\u3000")
NEARLY_SPACES = list("\u200b\u180e\ufeff\0")
WORDS = ["'s", "'LL", "The", "<|", "|>", "\r\n", *"ab'éßſ日🙂1٣½.—"]
HARD_PARTS = st.sampled_from([*SPACES, *NEARLY_SPACES, *WORDS, END_OF_TEXT])
HARD_TEXT = st.lists(HARD_PARTS, max_size=30).map("".join)
ANY_TEXT = st.one_of(st.text(), HARD_TEXT)
BREAKS_AND_WORDS = st.text(alphabet="\n\n\n \r\t\x1c\u2028ab'.1é")

# By the names of llama.cpp; the second as Llama 3 has it, but its (?i:...) is for ASCII alone.
SPLITS = {
    "gpt-2": regex.compile(
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    ),
    "llama-bpe": regex.compile(
        r"'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}

BPE = train_bpe(TRAINING_TEXTS * 3, 400)
CHARACTERS = train_characters(TRAINING_TEXTS)
WORDS_SEEN = train_words(TRAINING_TEXTS, 290)
ALL = pytest.mark.parametrize(
    "tokenizer", [BPE, CHARACTERS, WORDS_SEEN], ids=["bpe", "char", "word"]
)


def reference_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """BPE by the book: the split, then the best-ranked merge until none is left."""
    alphabet = bytes_to_unicode()
    ranks = {merge: rank for rank, merge in enumerate(tokenizer.merges)}
    vocab = {token: token_id for token_id, token in enumerate(tokenizer.tokens)}
    ids = []
    for word in SPLITS[tokenizer.pre].findall(text):
        symbols = [alphabet[byte] for byte in word.encode()]
        if tokenizer.looks_up_words and "".join(symbols) in vocab:
            symbols = ["".join(symbols)]
        while pairs := [pair for pair in pairwise(symbols) if pair in ranks]:
            best = min(pairs, key=ranks.__getitem__)
            merged: list[str] = []
            for symbol in symbols:
                if merged and (merged[-1], symbol) == best:
                    merged[-1] += symbol
                else:
                    merged.append(symbol)
            symbols = merged
        ids += [vocab[symbol] for symbol in symbols]
    return ids


def test_byte_alphabet_is_that_of_gpt2() -> None:
    theirs = bytes_to_unicode()
    assert byte_alphabet() == [theirs[byte] for byte in range(256)]
    assert set(byte_alphabet()) == set(pre_tokenizers.ByteLevel.alphabet())


@ALL
@given(text=ANY_TEXT)
@example(text=END_OF_TEXT)
@example(text="")
def test_every_text_comes_back_unchanged(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode_bytes(ids) == text.encode()
    assert tokenizer.end_of_text_id not in ids


@ALL
@given(text=ANY_TEXT)
def test_ids_are_those_of_bpe_by_the_book(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.encode(text) == reference_ids(tokenizer, text)


@ALL
@given(texts=st.lists(ANY_TEXT, max_size=5))
def test_a_batch_gives_the_ids_of_each_text(tokenizer: Tokenizer, texts: list[str]) -> None:
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]


@ALL
def test_decoding_skips_special_tokens_and_marks_broken_characters(tokenizer: Tokenizer) -> None:
    a, end, half = tokenizer.encode("a")[0], tokenizer.end_of_text_id, tokenizer.encode("\0é")
    assert tokenizer.decode([a, end, a]) == "aa"
    first_byte_of_e = tokenizer.tokens.index("Ã")
    assert tokenizer.decode([a, first_byte_of_e]) == "a\ufffd"
    assert tokenizer.decode(half) == "\0é"


@ALL
def test_tokens_and_ids_are_each_others_inverse(tokenizer: Tokenizer) -> None:
    assert len(set(tokenizer.tokens)) == len(tokenizer.tokens) == tokenizer.vocab_size
    assert tokenizer.tokens[tokenizer.end_of_text_id] == END_OF_TEXT
    assert tokenizer.special_ids == {tokenizer.end_of_text_id}
    assert set(byte_alphabet()) < set(tokenizer.tokens)
    # Every merge makes a token that is there, from tokens that are there.
    for left, right in tokenizer.merges:
        assert {left, right, left + right} <= set(tokenizer.tokens)


def test_bpe_has_the_size_asked_for() -> None:
    assert BPE.vocab_size == 400
    assert len(BPE.merges) == 400 - 256 - 1


def test_bpe_of_the_same_text_is_the_same() -> None:
    again = train_bpe(TRAINING_TEXTS * 3, 400)
    assert (again.tokens, again.merges) == (BPE.tokens, BPE.merges)


def test_bpe_of_a_short_text_stays_smaller() -> None:
    tokenizer = train_bpe(["ab ab"], 1000)
    assert 257 < tokenizer.vocab_size < 262
    assert tokenizer.decode(tokenizer.encode("ab ab ÿ")) == "ab ab ÿ"


@pytest.mark.parametrize("vocab_size", [-1, 0, 1, 256])
def test_vocabulary_without_room_for_all_bytes_is_refused(vocab_size: int) -> None:
    with pytest.raises(ConfigError, match=rf"vocab_size {vocab_size} .*\b257\b"):
        train_bpe(["text"], vocab_size)


def test_smallest_vocabulary_is_the_bytes() -> None:
    tokenizer = train_bpe(["text text text"], 257)
    assert tokenizer.encode("text") == [tokenizer.tokens.index(c) for c in "text"]


def test_characters_seen_are_one_id_each() -> None:
    for character in {character for text in TRAINING_TEXTS for character in text}:
        assert len(CHARACTERS.encode(character)) == 1, character
    for text in TRAINING_TEXTS:
        assert len(CHARACTERS.encode(text)) == len(text)


def test_characters_not_seen_are_single_bytes() -> None:
    tokenizer = train_characters(["plain text"])
    assert len(tokenizer.encode("日🙂é")) == 3 + 4 + 2
    assert tokenizer.vocab_size == 257


@given(text=ANY_TEXT)
def test_tokens_of_characters_never_reach_across_characters(text: str) -> None:
    parts = [CHARACTERS.encode(character) for character in text]
    assert CHARACTERS.encode(text) == [token_id for part in parts for token_id in part]


def test_frequent_words_are_one_id_each_and_others_bytes() -> None:
    text = "The fox saw the fox. " * 5 + "The hen, the hen. " * 3 + "A goose."
    tokenizer = train_words([text], 256 + 1 + 6)
    words = tokenizer.tokens[256:262]
    assert set(words) == {"Ġfox", "Ġthe", "ĠThe", "Ġhen", "Ġsaw", "The"}
    for word in words:
        assert len(tokenizer.encode(word.replace("Ġ", " "))) == 1
    assert [tokenizer.tokens[i] for i in tokenizer.encode(" fox goose")] == ["Ġfox", *"Ġgoose"]
    assert tokenizer.merges == []
    assert len(tokenizer.encode("é")) == 2


def test_word_tokens_have_the_size_asked_for_or_fewer() -> None:
    assert WORDS_SEEN.vocab_size == 290
    assert train_words(["ab ab cd"], 1000).vocab_size == 257 + 2 + 1
    again = train_words(TRAINING_TEXTS, 290)
    assert again.tokens == WORDS_SEEN.tokens
    with pytest.raises(ConfigError, match=r"vocab_size 256 .*\b257\b"):
        train_words(["text"], 256)


def test_a_new_word_is_found_in_text_where_words_are_looked_up() -> None:
    grown = WORDS_SEEN.with_tokens(words=["spam"])
    assert grown.encode("spam") == [WORDS_SEEN.vocab_size]
    assert WORDS_SEEN.encode("spam") != grown.encode("spam")


# --- OpenAI's own vocabulary ------------------------------------------------------------------


@pytest.fixture(scope="module")
def openai(shared_data: Path) -> tuple[Tokenizer, GPT2Tokenizer]:
    folder = shared_data / "gpt2"
    theirs = GPT2Tokenizer(vocab=str(folder / "encoder.json"), merges=str(folder / "vocab.bpe"))
    return load_tokenizer(folder), theirs


def test_openai_vocabulary_gives_the_ids_of_transformers(
    openai: tuple[Tokenizer, GPT2Tokenizer], shared_data: Path
) -> None:
    ours, theirs = openai
    assert ours.vocab_size == 50257
    assert ours.end_of_text_id == 50256
    assert ours.encode("Hello world") == [15496, 995]  # as OpenAI's README has it
    for text in (*TRAINING_TEXTS, (shared_data / "the-verdict.txt").read_text(encoding="utf-8")):
        assert ours.encode(text) == theirs(text)["input_ids"]


def test_openai_vocabulary_gives_the_ids_of_transformers_for_hard_texts(
    openai: tuple[Tokenizer, GPT2Tokenizer],
) -> None:
    ours, theirs = openai

    @settings(deadline=None)
    @given(text=ANY_TEXT)
    def same_ids(text: str) -> None:
        text = text.replace(END_OF_TEXT, "")  # which transformers parses, and we do not
        assert ours.encode(text) == theirs(text)["input_ids"]

    same_ids()


def test_openai_vocabulary_can_be_saved_as_tokenizer_json(
    openai: tuple[Tokenizer, GPT2Tokenizer], tmp_path: Path
) -> None:
    ours, _ = openai
    ours.save(tmp_path / "tokenizer.json")
    again = load_tokenizer(tmp_path)
    assert (again.tokens, again.merges) == (ours.tokens, ours.merges)


# --- pieces -----------------------------------------------------------------------------------


def split_of(text: str) -> list[list[str]]:
    """The words of both splits, as the tokenizers library makes them."""
    both = (BPE.hf.pre_tokenizer, WORDS_SEEN.hf.pre_tokenizer)
    return [[word for word, _ in each.pre_tokenize_str(text)] for each in both]


def split_of_pieces(pieces: list[str]) -> list[list[str]]:
    both = zip(*map(split_of, pieces), strict=True)
    return [[word for words in each for word in words] for each in both]


@pytest.mark.slow
@settings(max_examples=1000)
@given(text=st.one_of(BREAKS_AND_WORDS, HARD_TEXT, st.text()), size=st.integers(1, 8))
def test_split_of_pieces_is_the_split_of_the_text(text: str, size: int) -> None:
    pieces = list(safe_pieces(text, size))
    assert "".join(pieces) == text
    assert split_of_pieces(pieces) == split_of(text)


@pytest.mark.parametrize("space", ["\n", " ", "\r\n", "\n\n", " \n", "\n ", "\u3000 "])
def test_text_can_be_cut_before_white_space_whatever_follows(space: str) -> None:
    text = "".join(f"a{space}{chr(c)}" for c in range(0x3100))  # all white space is among them
    pieces = list(safe_pieces(text, 1))
    assert len(pieces) > 0x3000
    assert split_of_pieces(pieces) == split_of(text)


@pytest.mark.parametrize("between", ["\n", "\n\n", "\r\n\r\n", "\n    ", " "])
def test_long_text_is_cut_into_pieces_of_about_the_size_asked_for(between: str) -> None:
    text = between.join(f"paragraph_{number}" for number in range(1000))
    pieces = list(safe_pieces(text, 500))
    assert len(pieces) > 15
    assert all(500 <= len(piece) <= 500 + len(f"paragraph_999{between}") for piece in pieces[:-1])


def test_text_without_a_safe_place_stays_whole() -> None:
    text = "日本" * 1000 + "。" + "\n\n" * 1000
    assert list(safe_pieces(text, 10)) == [text]


LONG_WORDS = {
    "DNA": "".join(random.Random(1).choices("ACGT", k=20_000)),
    "Chinese": "".join(random.Random(1).choices("的一是不了人我在有他这中大来上个国", k=20_000)),
    "digits": "".join(random.Random(1).choices("0123456789", k=20_000)),
    "signs": "=-" * 10_000,
    "spaces": " \n" * 10_000,
}


@pytest.mark.parametrize("name", LONG_WORDS)
def test_very_long_words_are_cut_for_training_and_encoded_whole(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    word = LONG_WORDS[name]
    tokenizer = train_bpe([f"some text. {word}", "more text"], 400)
    said = capsys.readouterr().err
    assert " 1 word " in said
    assert " 128 characters" in said
    # Only training differs: the file that llama.cpp is given has GPT-2's split and nothing else.
    for part in ("pre_tokenizer", "normalizer"):
        assert json.loads(tokenizer.hf.to_str())[part] == json.loads(BPE.hf.to_str())[part]
    assert tokenizer.encode(word[:2000]) == reference_ids(tokenizer, word[:2000])
    assert tokenizer.decode(tokenizer.encode(word)) == word


def test_time_of_bpe_training_is_linear_in_the_length_of_a_word() -> None:
    text = "".join(random.Random(2).choices("ACGT", k=200_000))
    started = time.process_time()
    train_bpe([text], 600)
    assert time.process_time() - started < 5  # uncut it takes many times that


def test_words_of_usual_text_are_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    train_bpe(TRAINING_TEXTS * 3 + ["a" * 128, "word " * 1000, "https://a.b/" * 100], 400)
    assert capsys.readouterr().err == ""


def test_bpe_of_a_long_text_is_that_of_the_uncut_text() -> None:
    random.seed(0)
    words = ["the", "fox", "don't", "12", "é", "日本", "...", "\n", "\n\n", "\r\n", "\t", "  "]
    text = "".join(random.choice(words) + random.choice(["", " "]) for _ in range(100_000))
    assert len(list(safe_pieces(text))) > 3
    uncut = HFTokenizer(models.BPE())
    uncut.pre_tokenizer = BPE.hf.pre_tokenizer
    uncut.train_from_iterator(
        [text],
        trainers.BpeTrainer(
            vocab_size=399, initial_alphabet=byte_alphabet(), show_progress=False, special_tokens=[]
        ),
    )
    both = train_bpe([text], 400).hf, uncut
    found, expected = (json.loads(hf.to_str())["model"] for hf in both)
    assert (found["vocab"], found["merges"]) == (expected["vocab"], expected["merges"])


# --- files ------------------------------------------------------------------------------------


@ALL
def test_saved_tokenizer_is_the_same_when_loaded(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    again = load_tokenizer(tmp_path)
    assert (again.tokens, again.merges) == (tokenizer.tokens, tokenizer.merges)
    text = " ".join(TRAINING_TEXTS) + END_OF_TEXT
    assert again.encode(text) == tokenizer.encode(text)
    by_library = HFTokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert by_library.encode(TRAINING_TEXTS[0]).ids == tokenizer.encode(TRAINING_TEXTS[0])


def test_settings_that_cut_or_fill_up_texts_are_switched_off(tmp_path: Path) -> None:
    hf = HFTokenizer.from_str(BPE.hf.to_str())
    hf.enable_truncation(3)
    hf.enable_padding(length=10)
    hf.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    texts = ["ab", TRAINING_TEXTS[1]]
    assert tokenizer.encode_batch(texts) == BPE.encode_batch(texts)
    assert tokenizer.encode(texts[1]) == BPE.encode(texts[1])


def lose_a_byte(description: dict[str, Any]) -> None:
    vocab = description["model"]["vocab"]
    merged = [merge for merge in description["model"]["merges"] if "q" not in "".join(merge)]
    description["model"]["merges"] = merged
    del vocab["q"]
    last = max(vocab, key=vocab.__getitem__)
    vocab[last], description["added_tokens"][0]["id"] = ord("q") - 0x21, vocab[last]


def set_split(description: dict[str, Any]) -> None:
    description["pre_tokenizer"] = {"type": "Whitespace"}


def set_prefix_space(description: dict[str, Any]) -> None:
    description["pre_tokenizer"]["add_prefix_space"] = True


def set_normalizer(description: dict[str, Any]) -> None:
    description["normalizer"] = {"type": "NFC"}


def set_dropout(description: dict[str, Any]) -> None:
    description["model"]["dropout"] = 0.1


def set_whole_words(description: dict[str, Any]) -> None:
    description["model"]["ignore_merges"] = True


def set_suffix(description: dict[str, Any]) -> None:
    description["model"]["end_of_word_suffix"] = "</w>"


def drop_end_of_text(description: dict[str, Any]) -> None:
    description["added_tokens"] = []


def make_end_of_text_ordinary(description: dict[str, Any]) -> None:
    token = description["added_tokens"].pop()
    description["model"]["vocab"][END_OF_TEXT] = token["id"]


def add_parsed_token(description: dict[str, Any]) -> None:
    token = description["added_tokens"][0]
    description["added_tokens"].append(
        {**token, "id": token["id"] + 1, "content": "    ", "special": False}
    )


def leave_a_gap(description: dict[str, Any]) -> None:
    vocab = description["model"]["vocab"]
    vocab[max(vocab, key=vocab.__getitem__)] += 100


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lose_a_byte, ["1 of the 256 byte tokens", "'q'"]),
        (set_split, ["byte-level BPE", "GPT-2's"]),
        (set_prefix_space, ["byte-level BPE", "GPT-2's"]),
        (set_normalizer, ["byte-level BPE", "GPT-2's"]),
        (set_dropout, ["byte-level BPE", "GPT-2's"]),
        (set_whole_words, ["byte-level BPE", "GPT-2's"]),
        (set_suffix, ["byte-level BPE", "GPT-2's"]),
        (drop_end_of_text, ["no special token <|endoftext|>"]),
        (make_end_of_text_ordinary, ["no special token <|endoftext|>"]),
        (add_parsed_token, ["added token '    '"]),
        (leave_a_gap, ["ids", "0 to 399"]),
    ],
)
def test_tokenizer_that_a_gguf_cannot_reproduce_is_refused(
    change: Callable[[dict[str, Any]], None], words: list[str], tmp_path: Path
) -> None:
    description = json.loads(BPE.hf.to_str())
    change(description)
    (tmp_path / "tokenizer.json").write_text(json.dumps(description), encoding="utf-8")
    refused(tmp_path, [str(tmp_path), *words] if "special token" not in words[0] else words)


def test_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    HFTokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    refused(tmp_path, ["byte-level BPE", "GPT-2's"])


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    needed = ["tokenizer.json", "encoder.json", "vocab.bpe"]
    refused(tmp_path, [str(tmp_path), *needed])
    refused(tmp_path / "nowhere", [str(tmp_path / "nowhere"), "tokenizer.json"])
    file = tmp_path / "tokenizer.json"
    for content in ("", "{", "[]", '{"model": {}}', BPE.hf.to_str()[:-10]):
        file.write_text(content, encoding="utf-8")
        refused(tmp_path, [str(file), "is not a tokenizer"])
    file.write_bytes(b"\xff\xfe")
    refused(tmp_path, [str(file), "is not a tokenizer"])


def test_damaged_openai_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\nĠ t\n", encoding="utf-8")
    refused(tmp_path, ["encoder.json"])
    alphabet = byte_alphabet()
    encoder = tmp_path / "encoder.json"
    encoder.write_text(json.dumps({symbol: i for i, symbol in enumerate(alphabet)}), "utf-8")
    refused(tmp_path, ["encoder.json", "vocab.bpe", "'Ġ'", "'t'"])
    encoder.write_text(json.dumps({"Ġ": 0, "t": 1, "Ġt": 2, END_OF_TEXT: 3}), "utf-8")
    refused(tmp_path, ["254 of the 256 byte tokens"])


def refused(folder: Path, words: list[str]) -> None:
    with pytest.raises(LlmkitError) as caught:
        load_tokenizer(folder)
    assert isinstance(caught.value, CheckpointError)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_large_text_has_the_same_ids_in_pieces() -> None:
    random.seed(0)
    words = ["a", "the", "don't", "12", "é", "日本", "...", " ", "\n", "\n", "\r\n", "\t"]
    text = "".join(random.choice(words) + random.choice(["", " "]) for _ in range(20_000))
    pieces = list(safe_pieces(text, 1000))
    assert len(pieces) > 20
    assert [i for piece in pieces for i in BPE.encode(piece)] == BPE.encode(text)


# --- more tokens ------------------------------------------------------------------------------

GROWN: dict[str, dict[str, list[str]]] = {
    "words": {"words": ["spam", "été", " x y"]},
    "special": {"special": ["<|im_start|>", "<|im_end|>"]},
    "both": {"words": ["ham"], "special": ["<|a|>"]},
    "none": {},
}


@pytest.mark.parametrize("more", GROWN)
def test_new_tokens_come_after_the_old_ones_and_text_is_cut_as_before(
    more: str, tmp_path: Path
) -> None:
    old = train_bpe(["the quick brown fox jumps over the lazy dog"], 280)
    words, special = GROWN[more].get("words", []), GROWN[more].get("special", [])
    grown = old.with_tokens(**GROWN[more])
    grown.save(tmp_path / "tokenizer.json")
    for tokenizer in (grown, load_tokenizer(tmp_path)):
        assert tokenizer.vocab_size == old.vocab_size + len(words) + len(special)
        assert tokenizer.tokens[: old.vocab_size] == old.tokens
        new_ids = range(old.vocab_size, tokenizer.vocab_size)
        found = [tokenizer.word_id(word) for word in words]
        assert found + [tokenizer.special_id(token) for token in special] == list(new_ids)
        assert tokenizer.end_of_text_id == old.end_of_text_id
        assert [tokenizer.decode([new_id]) for new_id in new_ids] == [
            *words,
            *("" for _ in special),
        ]
        for text in ("the fox", *words, *special, "<|endoftext|>"):
            assert tokenizer.encode(text) == old.encode(text)


def test_tokens_can_be_added_again() -> None:
    first = train_bpe(["the fox"], 262).with_tokens(words=["spam"], special=["<|a|>"])
    second = first.with_tokens(words=["ham"], special=["<|b|>"])
    assert second.tokens == [*first.tokens, "ham", "<|b|>"]
    assert second.special_id("<|a|>") == first.special_id("<|a|>")


def test_new_token_that_is_there_already_is_refused() -> None:
    tokenizer = train_bpe(["the fox"], 262)
    for more in ({"words": ["<|endoftext|>"]}, {"words": ["a"]}, {"special": ["a"]}):
        with pytest.raises(ConfigError, match="already"):
            tokenizer.with_tokens(**more)


def test_special_tokens_are_no_words_and_words_no_special_tokens() -> None:
    tokenizer = train_bpe(["the fox"], 262)
    assert tokenizer.word_id("<|endoftext|>") is None
    assert tokenizer.word_id("unheard-of") is None
    assert tokenizer.word_id("a") == tokenizer.encode("a")[0]
    for text in ("a", "<|unheard-of|>"):
        with pytest.raises(ConfigError, match=f"no special token {re.escape(text)}"):
            tokenizer.special_id(text)
