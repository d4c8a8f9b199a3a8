"""Special tokens that only llama.cpp takes for an end."""

from __future__ import annotations

import json
from collections.abc import Collection

from tokenizers import Tokenizer as HFTokenizer

from llmkit.tokenizer import Tokenizer

# Special tokens that llama.cpp takes for an end of generation by their text (llama-vocab.cpp:
# the ends of known models, and padding, repository and file separators of fill-in-the-middle).
_ENDS_IN_LLAMA_CPP = {
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>",
    "<end_of_turn>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
    "<end_of_utterance>", "<eos>", "</s>", "<turn|>", "<|fim_pad|>", "<fim-pad>", "<fim_pad>",
    "<PAD>", "[PAD]", "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<|file_sep|>",
}  # fmt: skip


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
