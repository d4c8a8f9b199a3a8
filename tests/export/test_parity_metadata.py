from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from gguf_surgery import (
    Kind,
    keys_of,
    make_checkpoint,
    tensors_of,
    with_array,
    with_key,
    with_tensors,
    without_key,
    write_file,
)
from verify_targets import (
    EVERY_TYPE,
    VARIANTS,
    chatml_checkpoint,
    lora_checkpoint,
    write,
    write_apart,
    written,
)

from llmkit.checkpoint.checkpoint import Checkpoint, load_checkpoint
from llmkit.checkpoint.config import CheckpointConfig, save_config
from llmkit.export.check import Outcome
from llmkit.export.verify.metadata_check import metadata_check
from llmkit.export.verify.target import open_target


@pytest.fixture(scope="module")
def good(random_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(random_checkpoint, tmp_path_factory.mktemp("good") / "m.gguf")


def check(checkpoint: Checkpoint, path: Path) -> Outcome:
    return metadata_check(open_target(checkpoint, path))


# --- nothing is wrong -----------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_good_file_of_every_kind_of_model_passes(variant: str, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "c", **VARIANTS[variant])
    found = metadata_check(written(checkpoint, tmp_path / "m.gguf", "q8_0"))
    assert (found.passed, found.value, found.limit) == (True, 0, 0)
    assert found.detail.startswith("21 ")


@pytest.mark.parametrize("qtype", EVERY_TYPE)
def test_a_good_file_of_every_type_passes(
    qtype: str, random_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    assert metadata_check(written(random_checkpoint, tmp_path / "m.gguf", qtype)).passed


def test_a_chat_passes(tmp_path: Path) -> None:
    assert metadata_check(written(chatml_checkpoint(tmp_path / "c"), tmp_path / "m.gguf")).passed


def test_a_classifier_passes_and_its_labels_are_compared(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "c")
    path = write(checkpoint, tmp_path / "plain.gguf")
    content = CheckpointConfig(checkpoint.config, checkpoint.prompt_format, ("a", "b"))
    save_config(checkpoint.folder, content)
    labelled = load_checkpoint(checkpoint.folder)
    labelled_path = write(labelled, tmp_path / "labelled.gguf")
    assert check(labelled, labelled_path).passed
    assert "llmkit.labels: missing" in check(labelled, path).detail
    detail = check(checkpoint, labelled_path).detail
    assert "llmkit.labels: unexpected" in detail
    assert '["a", "b"]' in detail


def test_an_adapter_passes_apart_and_merged(tmp_path: Path) -> None:
    checkpoint = lora_checkpoint(tmp_path / "c")
    assert metadata_check(written(checkpoint, tmp_path / "m.gguf")).passed
    apart = check(checkpoint, write_apart(checkpoint, tmp_path))
    assert apart.passed
    assert apart.detail.startswith("27 ")


def test_what_general_keys_say_besides_is_no_error(
    random_checkpoint: Checkpoint, good: Path, tmp_path: Path
) -> None:
    path = with_key(good, tmp_path / "m.gguf", "general.author", "somebody", Kind.STRING)
    path = with_key(path, tmp_path / "n.gguf", "general.name", "another name", Kind.STRING)
    assert check(random_checkpoint, path).passed


# --- one key is wrong -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "kind", "what", "consequence"),
    [
        ("gpt2.attention.layer_norm_epsilon", 0.01, Kind.FLOAT32, "0.01 instead of", "norm"),
        ("gpt2.attention.head_count", 4, Kind.UINT32, "4 instead of 2", "heads"),
        ("gpt2.context_length", 16, Kind.UINT32, "16 instead of 32", "positions"),
        ("gpt2.embedding_length", 32, Kind.UINT32, "32 instead of 64", "shapes"),
        ("gpt2.feed_forward_length", 128, Kind.UINT32, "128 instead of 256", "shapes"),
        ("gpt2.block_count", 1, Kind.UINT32, "1 instead of 2", "layers"),
        ("gpt2.vocab_size", 271, Kind.UINT32, "271 instead of", "logits"),
        ("tokenizer.ggml.eos_token_id", 17, Kind.UINT32, "17 instead of", "stop"),
        ("tokenizer.ggml.bos_token_id", 17, Kind.UINT32, "17 instead of", "start"),
        ("tokenizer.ggml.add_bos_token", True, Kind.BOOL, "True instead of False", "training"),
        ("tokenizer.ggml.pre", "llama-bpe", Kind.STRING, "'llama-bpe' instead of", "split"),
        ("tokenizer.ggml.model", "llama", Kind.STRING, "'llama' instead of 'gpt2'", "tokenizer"),
        ("general.quantization_version", 1, Kind.UINT32, "1 instead of 2", "refuse"),
        ("general.type", "adapter", Kind.STRING, "'adapter' instead of 'model'", "misread"),
        # keys that export does not write
        ("tokenizer.ggml.add_eos_token", True, Kind.BOOL, "unexpected value True", ""),
        ("tokenizer.ggml.eot_token_id", 17, Kind.UINT32, "unexpected value 17", ""),
        ("gpt2.attention.head_count_kv", 2, Kind.UINT32, "unexpected value 2", ""),
        ("general.sampling.temp", 0.5, Kind.FLOAT32, "unexpected value 0.5", ""),
    ],
)  # fmt: skip
def test_a_wrong_key_is_named_with_both_values_and_what_it_does(
    key: str,
    value: Any,
    kind: Kind,
    what: str,
    consequence: str,
    random_checkpoint: Checkpoint,
    good: Path,
    tmp_path: Path,
) -> None:
    found = check(random_checkpoint, with_key(good, tmp_path / "m.gguf", key, value, kind))
    assert not found.passed
    assert found.value == 1
    assert found.detail.startswith(f"{key}: ")
    assert what in found.detail
    assert consequence in found.detail


def test_a_flag_written_as_a_number_is_found(
    random_checkpoint: Checkpoint, good: Path, tmp_path: Path
) -> None:
    key = "tokenizer.ggml.add_bos_token"
    path = with_key(good, tmp_path / "m.gguf", key, 0, Kind.UINT32)
    assert f"{key}: 0 instead of False" in check(random_checkpoint, path).detail


@pytest.mark.parametrize(
    "key",
    [
        "tokenizer.ggml.add_bos_token",
        "tokenizer.ggml.token_type",
        "general.name",
        "tokenizer.ggml.pre",
    ],
)
def test_a_missing_key_is_named(
    key: str, random_checkpoint: Checkpoint, good: Path, tmp_path: Path
) -> None:
    found = check(random_checkpoint, without_key(good, tmp_path / "m.gguf", key))
    assert found.value == 1
    assert f"{key}: missing" in found.detail


def test_another_chat_template_is_shown_where_it_differs(tmp_path: Path) -> None:
    checkpoint = chatml_checkpoint(tmp_path / "c")
    good = write(checkpoint, tmp_path / "m.gguf")
    key = "tokenizer.chat_template"
    template = checkpoint.prompt_format.chat_template
    at = template.index("<|im_end|>") + 4
    changed = template[:at] + "X" + template[at + 1 :]
    found = check(checkpoint, with_key(good, tmp_path / "n.gguf", key, changed, Kind.STRING))
    assert f"{key}: differs at character {at}: " in found.detail
    assert "llama-server" in found.detail


def test_many_wrong_keys_are_counted_and_some_named(
    random_checkpoint: Checkpoint, good: Path, tmp_path: Path
) -> None:
    keys = keys_of(good)
    for name in [name for name in keys if name.startswith("tokenizer.")]:
        del keys[name]
    keys["gpt2.context_length"] = (8, Kind.UINT32, None)
    found = check(random_checkpoint, write_file(tmp_path / "m.gguf", keys, tensors_of(good)))
    assert found.value == 10
    assert found.detail.startswith("gpt2.context_length")
    assert found.detail.endswith("and 5 more")


# --- arrays ---------------------------------------------------------------------------------


def test_a_missing_merge_is_named(
    random_checkpoint: Checkpoint, good: Path, tmp_path: Path
) -> None:
    merges = [" ".join(merge) for merge in random_checkpoint.tokenizer.merges]
    key = "tokenizer.ggml.merges"
    path = with_array(good, tmp_path / "m.gguf", key, lambda m: m[:7] + m[8:])
    detail = check(random_checkpoint, path).detail
    assert f"{key}: 1 items missing" in detail
    assert f"item 7: {merges[8]!r} instead of {merges[7]!r}" in detail
    assert "llama.cpp" in detail
    path = with_array(good, tmp_path / "m.gguf", key, lambda m: m[:-2])
    expected = f"2 items missing, first difference at item {len(merges) - 2}: nothing instead of "
    assert expected in check(random_checkpoint, path).detail
    path = with_array(good, tmp_path / "m.gguf", key, lambda m: [*m, "a b"])
    expected = f"1 items too many, first difference at item {len(merges)}: 'a b' instead of nothing"
    assert expected in check(random_checkpoint, path).detail


def test_two_exchanged_merges_are_said_to_be_exchanged(
    random_checkpoint: Checkpoint, good: Path, tmp_path: Path
) -> None:
    merges = [" ".join(merge) for merge in random_checkpoint.tokenizer.merges]

    def exchange(items: list[Any]) -> list[Any]:
        items[3], items[9] = items[9], items[3]
        return items

    path = with_array(good, tmp_path / "m.gguf", "tokenizer.ggml.merges", exchange)
    expected = f"3 and 9 are swapped: {merges[3]!r} and {merges[9]!r}"
    assert expected in check(random_checkpoint, path).detail


def test_a_renamed_token_is_named(
    random_checkpoint: Checkpoint, good: Path, tmp_path: Path
) -> None:
    tokens = random_checkpoint.tokenizer.tokens
    path = with_array(
        good,
        tmp_path / "m.gguf",
        "tokenizer.ggml.tokens",
        lambda items: [*items[:65], "renamed", *items[66:]],
    )
    detail = check(random_checkpoint, path).detail
    assert f"1 of {len(tokens)} " in detail
    assert f"65: 'renamed' instead of {tokens[65]!r}" in detail


def test_a_special_token_that_is_normal_is_named(
    random_checkpoint: Checkpoint, good: Path, tmp_path: Path
) -> None:
    key = "tokenizer.ggml.token_type"
    end = random_checkpoint.end_id
    path = with_array(good, tmp_path / "m.gguf", key, lambda items: [1] * len(items))
    found = check(random_checkpoint, path)
    assert found.value == 1
    expected = f"{key}: NORMAL instead of CONTROL for token {end} '<|endoftext|>' ("
    assert expected in found.detail
    path = with_array(good, tmp_path / "m.gguf", key, lambda items: [3] * len(items))
    expected = f"CONTROL instead of NORMAL for token 0 '!', and {end - 1} more"
    assert (
        expected.replace("'!'", repr(random_checkpoint.tokenizer.tokens[0]))
        in check(random_checkpoint, path).detail
    )


def test_types_that_are_no_integers_are_found(
    random_checkpoint: Checkpoint, good: Path, tmp_path: Path
) -> None:
    types = [float(kind) for kind in keys_of(good)["tokenizer.ggml.token_type"][0]]
    key = "tokenizer.ggml.token_type"
    path = with_key(good, tmp_path / "m.gguf", key, types, Kind.ARRAY, Kind.FLOAT32)
    assert f"{key}: 1.0 instead of NORMAL" in check(random_checkpoint, path).detail


# --- the type of the file, and the adapter --------------------------------------------------


def test_a_file_type_that_the_tensors_have_not_is_found(
    random_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    path = write(random_checkpoint, tmp_path / "m.gguf", "q4_0")
    path = with_key(path, tmp_path / "n.gguf", "general.file_type", 7, Kind.UINT32)
    found = check(random_checkpoint, path)
    assert found.value == 1
    assert "general.file_type: q8_0, but 9 of 9 matrices are q4_0" in found.detail


def test_one_tensor_of_another_type_is_no_wrong_file_type(
    random_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    q4, q8 = (write(random_checkpoint, tmp_path / f"{t}.gguf", t) for t in ("q4_0", "q8_0"))
    name = "blk.0.ffn_up.weight"
    other = tensors_of(q8)[name]
    path = with_tensors(q4, tmp_path / "m.gguf", lambda tensors: tensors.update({name: other}))
    assert check(random_checkpoint, path).passed


def test_the_adapters_keys_are_compared_too(tmp_path: Path) -> None:
    checkpoint = lora_checkpoint(tmp_path / "c")
    path = write_apart(checkpoint, tmp_path)
    good = (tmp_path / "adapter.gguf").rename(tmp_path / "good.gguf")
    for key, value, kind, what in (
        ("adapter.lora.alpha", 4.0, Kind.FLOAT32, "4 instead of 12"),
        ("adapter.type", "dora", Kind.STRING, "'dora' instead of 'lora'"),
        ("adapter.lora.prompt_prefix", "x", Kind.STRING, "unexpected value 'x'"),
    ):
        with_key(good, tmp_path / "adapter.gguf", key, value, kind)
        found = check(checkpoint, path)
        assert found.value == 1
        assert found.detail.startswith(f"adapter.gguf: {key}: {what}")
    without_key(good, tmp_path / "adapter.gguf", "adapter.lora.alpha")
    assert "adapter.gguf: adapter.lora.alpha: missing" in check(checkpoint, path).detail


def test_an_adapter_that_the_checkpoint_has_not_is_found(tmp_path: Path) -> None:
    checkpoint = lora_checkpoint(tmp_path / "c")
    path = write_apart(checkpoint, tmp_path)
    without = dataclasses.replace(checkpoint, lora=None)
    detail = check(without, path).detail
    assert "llmkit.adapter: unexpected value 'adapter.gguf'" in detail
