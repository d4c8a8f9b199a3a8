"""A vocabulary of characters, in whatever a program keeps it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import models

from llmkit.errors import CheckpointError
from llmkit.importing.tokenizers.imported import END_TOKENS, ImportedTokenizer, completed
from llmkit.tokenizer import byte_alphabet, byte_level

_SPECIAL = re.compile(r"<[^<>\s]+>|\[[A-Z_]+\]")


def characters_of(content: Any, origin: str) -> ImportedTokenizer | None:
    """A vocabulary of characters: itos or stoi, as a list or mapping, or one that holds them."""
    content = getattr(content, "__dict__", content)
    if isinstance(content, Mapping):
        for name in ("itos", "stoi", "chars", "char_to_id", "id_to_char", "vocab", "token_to_id",
                     "characters", "tokenizer"):  # fmt: skip
            inner = content.get(name)
            if isinstance(inner, str) and len(set(inner)) < len(inner):
                continue  # a path or a name
            if isinstance(inner, Mapping | list | tuple | str) and len(inner) > 1:
                found = characters_of(inner, origin)
                if found is not None:
                    return found
        by_id = _by_id(content)
    elif isinstance(content, list | tuple | str):
        by_id = dict(enumerate(content))
    else:
        return None
    if not by_id or sorted(by_id) != list(range(len(by_id))):
        return None
    tokens = [by_id[i] for i in range(len(by_id))]
    if not all(isinstance(token, str) and token for token in tokens):
        return None
    if sum(len(t) == 1 or bool(_SPECIAL.fullmatch(t)) for t in tokens) < 0.9 * len(tokens):
        return None
    return from_characters(tokens, f"characters of {origin}")


def _by_id(content: Mapping[Any, Any]) -> dict[int, Any] | None:
    if all(isinstance(value, int) for value in content.values()):
        return {value: token for token, value in content.items()}
    try:
        return {int(number): token for number, token in content.items()}
    except (TypeError, ValueError):
        return None


def from_characters(characters: Sequence[str], origin: str) -> ImportedTokenizer:
    """A token for each character, in the given order; longer entries become special tokens."""
    alphabet = byte_alphabet()
    vocab: dict[str, int] = {}
    special: list[str] = []
    for character in characters:
        token = character
        if len(character) == 1:
            token = "".join(alphabet[byte] for byte in character.encode("utf-8", "replace"))
        else:
            special.append(character)
        if token in vocab:
            raise CheckpointError(f"{origin}: {character!r} occurs twice")
        vocab[token] = len(vocab)
    n_own = len(vocab)
    for symbol in alphabet:
        vocab.setdefault(symbol, len(vocab))
    merges: dict[tuple[str, str], None] = {}
    for character in characters:
        if len(character) == 1:
            first, *rest = (alphabet[byte] for byte in character.encode("utf-8", "replace"))
            for symbol in rest:
                merges[(first, symbol)] = None
                first += symbol
                vocab.setdefault(first, len(vocab))
    hf = byte_level(models.BPE(vocab=vocab, merges=list(merges)))
    end = next((token for token in END_TOKENS if token in special), None)
    return completed(hf, n_own, origin, special, (), end)
