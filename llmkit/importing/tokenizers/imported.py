"""The tokenizer of an import, with the special tokens that llmkit and llama.cpp need."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tokenizers import AddedToken
from tokenizers import Tokenizer as HFTokenizer

from llmkit.tokenizer import END_OF_TEXT, Tokenizer

END_TOKENS = (END_OF_TEXT, "<|eos|>", "[EOS]", "<eos>", "</s>", "<EOS>", "<|end|>", "<|im_end|>")
# Special tokens that llama.cpp takes for an end of generation by their text (llama-vocab.cpp:
# the ends of known models, and padding, repository and file separators of fill-in-the-middle).
_ENDS_IN_LLAMA_CPP = {
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>",
    "<end_of_turn>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
    "<end_of_utterance>", "<eos>", "</s>", "<turn|>", "<|fim_pad|>", "<fim-pad>", "<fim_pad>",
    "<PAD>", "[PAD]", "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<|file_sep|>",
}  # fmt: skip


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


def without_false_ends(tokenizer: Tokenizer, ends: Collection[str]) -> tuple[Tokenizer, list[str]]:
    """Rename the special tokens that only llama.cpp takes for an end; also those it renamed."""
    special = [tokenizer.tokens[token_id] for token_id in sorted(tokenizer.special_ids)]
    false = [token for token in special if token in _ENDS_IN_LLAMA_CPP and token not in ends]
    if not false:
        return tokenizer, []
    content = json.loads(tokenizer.hf.to_str())
    names = {token: f"<|{token}|>" for token in false}
    content["model"]["vocab"] = {
        names.get(token, token): number for token, number in content["model"]["vocab"].items()
    }
    for token in content["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    return Tokenizer(HFTokenizer.from_str(json.dumps(content))), false
