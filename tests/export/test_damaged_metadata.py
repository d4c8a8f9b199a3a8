"""Damaged keys, the tokenizer's among them: the right checks fail and name them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_surgery import Kind, make_checkpoint, with_array, with_key, without_key
from verify_targets import chatml_checkpoint, complaints, write

from llmkit.checkpoint.checkpoint import Checkpoint
from llmkit.export.llamacpp.runtime import LlamaCpp
from llmkit.export.verify.layers_check import layers_check
from llmkit.export.verify.metadata_check import metadata_check
from llmkit.export.verify.target import open_target
from llmkit.export.verify.tensors_check import tensors_check
from llmkit.export.verify.tokenizer_check import tokenizer_check

Damage = Callable[[Path, Path], object]
TOKENIZER = "tokenizer.ggml"
CONTEXT = torch.arange(32)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return make_checkpoint(tmp_path_factory.mktemp("damaged") / "c", tie_embeddings=False)


@pytest.fixture(scope="module")
def good(checkpoint: Checkpoint) -> Path:
    return write(checkpoint, checkpoint.folder.parent / "m.gguf", "q8_0")


def key(name: str, value: Any, kind: Kind) -> Damage:
    return lambda source, target: with_key(source, target, name, value, kind)


def without(name: str) -> Damage:
    return lambda source, target: without_key(source, target, name)


def array(name: str, change: Callable[[list[Any]], Any]) -> Damage:
    return lambda source, target: with_array(source, target, f"{TOKENIZER}.{name}", change)


def swapped(first: int, second: int) -> Callable[[list[Any]], list[Any]]:
    def change(items: list[Any]) -> list[Any]:
        items[first], items[second] = items[second], items[first]
        return items

    return change


# The name of the damage, what it is, and the checks that have to say so.
IN_KEYS: dict[str, tuple[Damage, dict[str, str]]] = {
    "eps": (
        key("gpt2.attention.layer_norm_epsilon", 1e-2, Kind.FLOAT32),
        {"metadata": "layer_norm_epsilon", "layers": "blk.0.attn_norm"},
    ),
    "head count": (
        key("gpt2.attention.head_count", 4, Kind.UINT32),
        {"metadata": "head_count", "layers": "blk.0: qkv -> attention"},
    ),
    "context": (key("gpt2.context_length", 16, Kind.UINT32), {"metadata": "context_length"}),
    "vocabulary size": (key("gpt2.vocab_size", 271, Kind.UINT32), {"metadata": "vocab_size"}),
    "file type": (key("general.file_type", 2, Kind.UINT32), {"metadata": "general.file_type"}),
    "eos": (
        key(f"{TOKENIZER}.eos_token_id", 17, Kind.UINT32),
        {"metadata": "eos_token_id", "tokenizer": "token 17"},
    ),
    "bos": (key(f"{TOKENIZER}.bos_token_id", 17, Kind.UINT32), {"metadata": "bos_token_id"}),
    "add_bos": (key(f"{TOKENIZER}.add_bos_token", True, Kind.BOOL), {"metadata": "add_bos_token"}),
    "add_eos": (key(f"{TOKENIZER}.add_eos_token", True, Kind.BOOL), {"metadata": "add_eos_token"}),
    "another split": (
        key(f"{TOKENIZER}.pre", "llama-bpe", Kind.STRING),
        {"metadata": f"{TOKENIZER}.pre"},
    ),
    "no split": (without(f"{TOKENIZER}.pre"), {"metadata": f"{TOKENIZER}.pre: missing"}),
    "eos missing": (without(f"{TOKENIZER}.eos_token_id"), {"metadata": "eos_token_id: missing"}),
    "token types missing": (
        without(f"{TOKENIZER}.token_type"),
        {"metadata": "token_type: missing"},
    ),
    "one merge missing": (
        array("merges", lambda items: items[:5] + items[6:]),
        {"metadata": "merges: 1 items missing", "tokenizer": "missing in the file"},
    ),
    "two merges exchanged": (array("merges", swapped(0, 4)), {"metadata": "0 and 4 are swapped"}),
    "one token renamed": (
        array("tokens", lambda items: [*items[:65], "renamed", *items[66:]]),
        {"metadata": "'renamed' instead of", "tokenizer": "token 65"},
    ),
    "two tokens exchanged": (
        array("tokens", swapped(65, 66)),
        {"metadata": "65", "tokenizer": "token 65"},
    ),
    "the end token is NORMAL": (
        array("token_type", lambda items: [1] * len(items)),
        {"metadata": "NORMAL instead of CONTROL"},
    ),
    "a common token is CONTROL": (
        array("token_type", lambda items: [*items[:65], 3, *items[66:]]),
        {"metadata": "CONTROL instead of NORMAL", "tokenizer": "token 65"},
    ),
    "key and value heads": (
        key("gpt2.attention.head_count_kv", 1, Kind.UINT32),
        {"metadata": "head_count_kv"},
    ),
}


@pytest.mark.parametrize("name", IN_KEYS)
def test_a_damaged_key_is_caught_and_named(
    name: str, checkpoint: Checkpoint, good: Path, tmp_path: Path
) -> None:
    damage, expected = IN_KEYS[name]
    path = tmp_path / "m.gguf"
    damage(good, path)
    target = open_target(checkpoint, path)
    found = {"metadata": metadata_check(target), "tensors": tensors_check(target)}
    if "layers" in expected:
        found["layers"] = layers_check(target, CONTEXT)
    if "tokenizer" in expected:
        with LlamaCpp(path) as llama:
            found["tokenizer"] = tokenizer_check(target, llama, [])
    failed = complaints(**found)
    for check, words in expected.items():
        assert words in failed[check], failed
    assert name == "file type" or "tensors" not in failed  # which it promises to be other


def test_another_chat_template_is_caught(tmp_path: Path) -> None:
    chat = chatml_checkpoint(tmp_path / "c")
    good = write(chat, tmp_path / "good.gguf")
    template = chat.prompt_format.chat_template.replace("<|im_start|>", "<|im_start|> ", 1)
    name = "tokenizer.chat_template"
    path = with_key(good, tmp_path / "m.gguf", name, template, Kind.STRING)
    assert name in metadata_check(open_target(chat, path)).detail
