"""A tokenizer of the `tokenizers` library."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as HFTokenizer
from tokenizers import models

from llmkit.errors import CheckpointError
from llmkit.importing.tokenizers.imported import END_TOKENS, ImportedTokenizer, completed
from llmkit.tokenizer import byte_alphabet, byte_level
from llmkit.tokenizer_files import is_of_words


def accepted(hf: HFTokenizer, origin: str, folder: Path) -> ImportedTokenizer:
    """A tokenizer of the `tokenizers` library as byte-level BPE with a split of llama.cpp's."""
    content = json.loads(hf.to_str())
    model = content["model"]
    before = json.dumps(content.get("pre_tokenizer") or {})
    if model.get("type") != "BPE" or not ("ByteLevel" in before or _is_byte_level(model)):
        raise CheckpointError(
            f"{origin} is {model.get('type', 'no')} without bytes; llama.cpp's gpt2 tokenizer is "
            "byte-level BPE, so this model's text cannot be tokenized there"
        )
    of_words = is_of_words(content)
    notes = [*([] if of_words else _lost_split(content)), *_lost(content)]
    n_own = hf.get_vocab_size(with_added_tokens=True)
    special = [t["content"] for t in content["added_tokens"]]
    vocab = {**model["vocab"], **{t["content"]: t["id"] for t in content["added_tokens"]}}
    if sorted(vocab.values()) != list(range(len(vocab))):
        raise CheckpointError(f"{origin}: token ids must be 0 to {len(vocab) - 1} without gaps")
    if _is_byte_level(model) and max(model["vocab"].values()) == len(model["vocab"]) - 1:
        vocab = model["vocab"]  # special tokens that it lacks get the ids behind it, as they had
    for symbol in byte_alphabet():
        vocab.setdefault(symbol, len(vocab))
    merges = [tuple(m.split(" ") if isinstance(m, str) else m) for m in model["merges"]]
    plain = byte_level(models.BPE(vocab=vocab, merges=merges, ignore_merges=of_words))
    end = _end_token(folder, special)
    return completed(plain, n_own, origin, special, tuple(notes), end)


def _is_byte_level(model: Mapping[str, Any]) -> bool:
    return all(symbol in model["vocab"] for symbol in byte_alphabet())


def _end_token(folder: Path, special: Sequence[str]) -> str | None:
    """The special token that ends texts, as the files beside the tokenizer name it."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        try:
            content = json.loads((folder / name).read_text(encoding="utf-8"))
            found = content.get("eos_token")
        except (OSError, ValueError, AttributeError):
            continue
        found = found.get("content") if isinstance(found, dict) else found
        if found in special:
            return str(found)
    return next((token for token in END_TOKENS if token in special), None)


def _lost_split(content: Mapping[str, Any]) -> list[str]:
    """What of a tokenizer's split GPT-2's cannot express."""
    lost = []
    before = content.get("pre_tokenizer") or {}
    parts = before.get("pretokenizers", [before]) if before else []
    levels = [part for part in parts if part.get("type") == "ByteLevel"]
    if any(part.get("add_prefix_space") for part in levels):
        lost.append(
            "the tokenizer puts a space before every text; llama.cpp does not: begin prompts "
            "with a space"
        )
    if not any(part.get("use_regex", True) for part in levels):
        lost.append(
            "the tokenizer does not split text into words; llama.cpp does, so tokens across words "
            "are not used there"
        )
    if len(parts) > len(levels):
        kinds = ", ".join(p.get("type", "?") for p in parts if p not in levels)
        lost.append(f"the tokenizer splits text by {kinds} too; llama.cpp splits as GPT-2 does")
    return lost


def _lost(content: Mapping[str, Any]) -> list[str]:
    """What else of a tokenizer byte-level BPE cannot express."""
    lost = []
    if plain := [t["content"] for t in content["added_tokens"] if not t["special"]]:
        lost.append(
            f"{len(plain)} added tokens, such as {plain[0]!r}, become special tokens; text is not "
            "split into them there"
        )
    if content.get("normalizer"):
        kind = content["normalizer"].get("type")
        lost.append(f"the tokenizer changes text before it ({kind}); llama.cpp does not")
    if '{"SpecialToken"' in json.dumps(content.get("post_processor") or {}):
        lost.append(
            "the tokenizer adds special tokens around every text; llama.cpp and Ollama do not"
        )
    return lost
