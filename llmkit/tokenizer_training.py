"""Training a tokenizer on text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from tokenizers import Tokenizer as HFTokenizer
from tokenizers import models, trainers

from llmkit.console import say
from llmkit.errors import ConfigError
from llmkit.threads import interruptible
from llmkit.tokenizer import (
    END_OF_TEXT,
    N_BYTES,
    Tokenizer,
    byte_alphabet,
    byte_level,
    safe_pieces,
    with_end_of_text,
)

MAX_TRAINING_WORD = 128  # longer ones are DNA, rulers, or Chinese without punctuation
# What GPT-2's split makes one word: letters, digits, signs or white space alone.
_LONG_WORD = re.compile(
    "|".join(
        rf"{kind}{{{MAX_TRAINING_WORD}}}(?={kind})"
        for kind in (r"[^\W\d_]", r"\d", r"(?:[^\w\s]|_)", r"\s")
    )
)


KINDS = ("bpe", "word", "char")


def train_kind(kind: str, texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A tokenizer of one of the KINDS; the vocabulary of `char` has the size of its text."""
    if kind == "char":
        return train_characters(texts)
    return train_bpe(texts, vocab_size) if kind == "bpe" else train_words(texts, vocab_size)


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE with GPT-2's split, trained on `texts`.

    `vocab_size` counts the 256 bytes and the end-of-text token; a short text may give fewer.
    Very long words are cut, for the training alone, and that is said.
    Raises ConfigError where it has no room for them.
    """
    _check_vocab_size(vocab_size)
    hf = byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        initial_alphabet=byte_alphabet(),
        show_progress=False,
        special_tokens=[],
    )
    words = _TrainingText(texts)
    try:
        interruptible(lambda: hf.train_from_iterator(words, trainer))
    finally:
        words.stopped = True  # after Ctrl-C the thread is still there
    if words.n_cut:
        say(
            f"tokenizer: cut {words.n_cut} word{'s' * (words.n_cut > 1)} longer than "
            f"{MAX_TRAINING_WORD} characters to keep BPE training fast; this does not change how "
            "text is encoded"
        )
    return with_end_of_text(hf)


def train_words(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """The most frequent words of `texts`; other words become bytes.

    Words are what Llama 3's split makes: letters with the space or sign before them, up to three
    digits, signs, white space. `vocab_size` as in `train_bpe`. Raises ConfigError.
    """
    _check_vocab_size(vocab_size)
    counter = HFTokenizer(models.WordLevel())
    counter.pre_tokenizer = byte_level(models.BPE(ignore_merges=True)).pre_tokenizer
    # Words of one byte are counted too, but are there already.
    trainer = trainers.WordLevelTrainer(
        vocab_size=vocab_size, show_progress=False, special_tokens=[]
    )
    words = _TrainingText(texts, whole_words=True)
    try:
        interruptible(lambda: counter.train_from_iterator(words, trainer))
    finally:
        words.stopped = True
    found = counter.get_vocab()
    tokens = dict.fromkeys((*byte_alphabet(), *sorted(found, key=found.__getitem__)))
    vocab = {token: number for number, token in enumerate(islice(tokens, vocab_size - 1))}
    return with_end_of_text(byte_level(models.BPE(vocab=vocab, merges=[], ignore_merges=True)))


def _check_vocab_size(vocab_size: int) -> None:
    if vocab_size <= N_BYTES:
        raise ConfigError(
            f"vocab_size {vocab_size} is too small; use {N_BYTES + 1} or more "
            f"({N_BYTES} bytes and {END_OF_TEXT})"
        )


@dataclass
class _TrainingText:
    """Pieces of texts for one pass, without very long words unless they are wanted whole."""

    texts: Iterable[str]
    whole_words: bool = False
    stopped: bool = False
    n_cut: int = 0  # words

    def __iter__(self) -> Iterator[str]:
        # In pieces: the library takes 100 bytes for each character of a text that it splits.
        for text in self.texts:
            for piece in safe_pieces(text):
                if self.stopped:
                    return
                yield from [piece] if self.whole_words else self._short_words(piece)

    def _short_words(self, piece: str) -> Iterator[str]:
        begin = 0
        for found in _LONG_WORD.finditer(piece):
            self.n_cut += begin == 0 or found.start() > begin
            yield piece[begin : found.end()]
            begin = found.end()
        yield piece[begin:]


def train_characters(texts: Iterable[str]) -> Tokenizer:
    """A token for each character of `texts` and for each byte.

    A character of several bytes is built by merges from its first byte on; since no other
    merge exists, tokens never reach across characters.
    """
    characters = sorted({character for text in texts for character in set(text)})
    alphabet = byte_alphabet()
    vocab = {symbol: token_id for token_id, symbol in enumerate(alphabet)}
    merges: dict[tuple[str, str], None] = {}
    for character in characters:
        first, *rest = (alphabet[byte] for byte in character.encode())
        for symbol in rest:
            merges[(first, symbol)] = None
            first += symbol
            vocab.setdefault(first, len(vocab))
    return with_end_of_text(byte_level(models.BPE(vocab=vocab, merges=list(merges))))
