"""Tokenizers from files and from the Hugging Face hub."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as HFTokenizer
from tokenizers import models

from llmkit.errors import CheckpointError, LlmkitError
from llmkit.tokenizer import N_BYTES, Tokenizer, byte_alphabet, byte_level, with_end_of_text

_TRAIN_ONE = "train a tokenizer with --tokenizer bpe"


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer.json, or that of a folder, or its encoder.json and vocab.bpe (OpenAI's).

    Raises CheckpointError where it is missing, damaged or none that a GGUF's `gpt2` tokenizer
    model can reproduce.
    """
    file = path if path.is_file() else path / "tokenizer.json"
    if path.suffix == ".gguf":
        raise CheckpointError(
            f"{path} is a GGUF file; give its checkpoint, or `llmkit import` it first"
        )
    try:
        if file.exists():
            return _accepted(HFTokenizer.from_file(str(file)), str(file))
        file = path / "vocab.bpe"
        if file.exists():
            return _from_openai(path)
    except LlmkitError:
        raise
    except Exception as error:  # the library raises bare Exception for every kind of bad file
        raise CheckpointError(f"{file} is not a tokenizer: {error}") from error
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; give a tokenizer.json or its folder")
    raise CheckpointError(
        f"{path} has no tokenizer; it needs tokenizer.json, or encoder.json and vocab.bpe"
    )


def download_gpt2() -> Tokenizer:
    """OpenAI's GPT-2 tokenizer from the Hugging Face hub (or its local cache).

    Raises CheckpointError where there is no network.
    """
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)  # one line of ours is enough
    try:
        hf = HFTokenizer.from_pretrained("openai-community/gpt2")
    except Exception as error:  # every network failure has its own type
        raise CheckpointError(
            "cannot download the gpt2 tokenizer; copy encoder.json and vocab.bpe into a folder "
            "and give it as --tokenizer"
        ) from error
    return _accepted(hf, "openai-community/gpt2")


def _from_openai(folder: Path) -> Tokenizer:
    vocab = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
    lines = (folder / "vocab.bpe").read_text(encoding="utf-8").split("\n")[1:]  # first: a version
    merges = [(left, right) for left, right in (line.split(" ") for line in lines if line)]
    for left, right in merges:
        if not {left, right, left + right} <= vocab.keys():
            raise CheckpointError(
                f"{folder}: vocab.bpe merges {left!r} and {right!r}, but encoder.json lacks one of "
                "the tokens; copy both files from the same tokenizer"
            )
    hf = with_end_of_text(byte_level(models.BPE(vocab=vocab, merges=merges))).hf
    return _accepted(hf, str(folder / "encoder.json"))


def _accepted(hf: HFTokenizer, source: str) -> Tokenizer:
    """Accept a tokenizer that llama.cpp's `gpt2` model can reproduce, or raise CheckpointError."""
    found = json.loads(hf.to_str())
    wanted = _as_wanted(found)
    differs = [part for part in ("normalizer", "pre_tokenizer") if not _same(found, wanted, part)]
    switches = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
    differs += [switch for switch in switches if found["model"].get(switch)]
    if found["model"]["type"] != "BPE" or differs:
        raise CheckpointError(
            f"{source} is not byte-level BPE with GPT-2's pre-tokenizer, or Llama 3's and "
            f"ignore_merges, as GGUF's gpt2 tokenizer model requires; {_TRAIN_ONE}"
        )
    missing = [symbol for symbol in byte_alphabet() if hf.token_to_id(symbol) is None]
    if missing:
        raise CheckpointError(
            f"{source} lacks {len(missing)} of the {N_BYTES} byte tokens (the first is "
            f"{missing[0]!r}) and cannot encode every text; {_TRAIN_ONE}"
        )
    parsed = [token["content"] for token in found["added_tokens"] if not token["special"]]
    if parsed:
        raise CheckpointError(
            f"{source} splits the added token {parsed[0]!r} from text before BPE, which llama.cpp "
            f"does not do; {_TRAIN_ONE}"
        )
    ids = hf.get_vocab().values()
    if set(ids) != set(range(len(ids))):
        raise CheckpointError(
            f"{source}: token ids must be 0 to {len(ids) - 1} without gaps or duplicates"
        )
    tokenizer = Tokenizer(hf)
    tokenizer.end_of_text_id  # noqa: B018  raises where there is none
    return tokenizer


def is_of_words(content: dict[str, Any]) -> bool:
    """Whether the content of a tokenizer.json looks words up, with Llama 3's split."""
    looks_up = bool(content["model"].get("ignore_merges"))
    return looks_up and _same(content, _as_wanted(content), "pre_tokenizer")


def _as_wanted(found: dict[str, Any]) -> dict[str, Any]:
    looks_up = bool(found["model"].get("ignore_merges"))
    wanted: dict[str, Any] = json.loads(byte_level(models.BPE(ignore_merges=looks_up)).to_str())
    return wanted


def _same(found: dict[str, Any], wanted: dict[str, Any], part: str) -> bool:
    """Whether a part of tokenizer.json is the same but for trim_offsets, which moves no id."""
    a, b = (dict(description[part] or {}, trim_offsets=None) for description in (found, wanted))
    return a == b
