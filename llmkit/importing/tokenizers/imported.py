"""The tokenizer of an import, with the special tokens that llmkit and llama.cpp need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import AddedToken
from tokenizers import Tokenizer as HFTokenizer

from llmkit.tokenizer import END_OF_TEXT, Tokenizer

END_TOKENS = (END_OF_TEXT, "<|eos|>", "[EOS]", "<eos>", "</s>", "<EOS>", "<|end|>", "<|im_end|>")


@dataclass(frozen=True)
class ImportedTokenizer:
    """A tokenizer, where it is from, and what of it cannot be kept."""

    tokenizer: Tokenizer
    n_own: int  # tokens that the model was trained with; those behind are never said
    origin: str
    end: str = END_OF_TEXT
    notes: tuple[str, ...] = ()


def completed(
    hf: HFTokenizer,
    n_own: int,
    origin: str,
    special: Sequence[str],
    notes: tuple[str, ...],
    end: str | None = None,
) -> ImportedTokenizer:
    """With its special tokens, and the one that ends a text, which may be new."""
    tokens = list(dict.fromkeys((*special, END_OF_TEXT)))
    hf.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in tokens])
    return ImportedTokenizer(Tokenizer(hf), n_own, origin, end or END_OF_TEXT, notes)


def as_own(tokenizer: Tokenizer, origin: str) -> ImportedTokenizer:
    """A tokenizer that has all that is needed."""
    return ImportedTokenizer(tokenizer, tokenizer.vocab_size, origin)
