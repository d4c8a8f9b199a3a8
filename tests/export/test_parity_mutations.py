"""Ways to damage a good export, each caught by the check whose matter it is; and good exports of
every kind, which all pass.

A damage is shown to the checks that have to see it, and to those that must not mind. What crosses
the bounds of one check, and what is good, goes through all of `verify`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from finetuned import as_classifier, with_adapter
from gguf_surgery import (
    Kind,
    keys_of,
    make_checkpoint,
    tensors_of,
    with_flipped_bit,
    with_key,
    with_tensors,
    without_key,
    write_file,
)
from parity_subjects import (
    VARIANTS,
    chatml_checkpoint,
    lora_checkpoint,
    write,
    write_apart,
    written,
)

from llmkit.checkpoint import Checkpoint, CheckpointConfig, load_checkpoint, save_config
from llmkit.errors import GGUFError
from llmkit.export.convert import export
from llmkit.export.gguf_file import read_gguf
from llmkit.export.llama_cpp import LlamaCpp
from llmkit.export.parity import bounds
from llmkit.export.parity.check import Check, Proof
from llmkit.export.parity.layers import layers_check
from llmkit.export.parity.metadata import metadata_check
from llmkit.export.parity.prompt import prompt_check
from llmkit.export.parity.stop import stop_check
from llmkit.export.parity.subject import open_subject
from llmkit.export.parity.tensors import tensors_check
from llmkit.export.parity.tokenizer import tokenizer_check
from llmkit.export.parity.verify import verify
from llmkit.export.recipe import Recipe
from llmkit.modelfiles import go_engine
from llmkit.modelfiles.modelfile import Modelfile, render
from llmkit.modelfiles.prompt_format import (
    ALPACA,
    CHATML,
    COMPLETION,
    USER_ASSISTANT,
    Message,
    PromptFormat,
    Turn,
)
from llmkit.modelfiles.reading import read_modelfile
from llmkit.quant import dequantize, quant_type, quantize
from llmkit.tokenizer import train_bpe

Damage = Callable[[Path, Path], object]
TOKENIZER = "tokenizer.ggml"
TOKENS = torch.arange(32)  # the context


def proof_of(checkpoint: Checkpoint, gguf: Path) -> Proof:
    return verify(checkpoint.folder, gguf, max_tokens=96)


def said(proof: Proof) -> dict[str, str]:
    """What each failed check says."""
    return complaints(*proof.checks)


def complaints(*checks: Check) -> dict[str, str]:
    return {check.name: check.detail for check in checks if not check.passed}


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    return {name: tensor.shape for name, tensor in read_gguf(path).tensors.items()}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return make_checkpoint(tmp_path_factory.mktemp("mutations") / "c", tie_embeddings=False)


@pytest.fixture(scope="module")
def good(checkpoint: Checkpoint) -> dict[str, Path]:
    folder = checkpoint.folder.parent
    files = {
        kind: write(checkpoint, folder / f"{kind}.gguf", kind) for kind in ("f32", "q8_0", "q4_0")
    }
    text = folder / "text.txt"
    text.write_text("some words to merge, some more words " * 200, encoding="utf-8")
    out = folder / "gptq"
    recipe = Recipe(quants=["q4_0"], method="gptq", calibration=text)
    done = export(checkpoint.folder, out, recipe, prove=False)
    return {**files, "gptq": done.files[0].path}


# --- damages to tensors -----------------------------------------------------------------------


def tensor(name: str, change: Callable[[Any], Any]) -> Damage:
    """One tensor's stored rows are changed."""

    def damage(source: Path, target: Path) -> None:
        def replace(tensors: dict[str, Any]) -> None:
            data, kind = tensors[name]
            tensors[name] = (np.ascontiguousarray(change(data.copy())), kind)

        with_tensors(source, target, replace)

    return damage


def tensors(change: Callable[[dict[str, Any]], object]) -> Damage:
    return lambda source, target: with_tensors(source, target, change)


def exchanged(data: Any, first: int, second: int, n: int) -> Any:
    data[first : first + n], data[second : second + n] = (
        data[second : second + n].copy(),
        data[first : first + n].copy(),
    )
    return data


def exchanged_layers(tensors: dict[str, Any]) -> None:
    for name in [name for name in tensors if name.startswith("blk.0.")]:
        other = name.replace("blk.0.", "blk.1.")
        tensors[name], tensors[other] = tensors[other], tensors[name]


def with_byte(row: int, byte: int) -> Callable[[Any], Any]:
    def change(data: Any) -> Any:
        data[row, byte] ^= 0x10
        return data

    return change


def by_way_of(first: str, second: str) -> Damage:
    """The matrices of a file of f32, quantized once and again."""

    def change(tensors: dict[str, Any]) -> None:
        for name, (data, _) in tensors.items():
            if data.ndim == 2 and name != "position_embd.weight":
                kind = quant_type(first)
                once = dequantize(quantize(data, kind, name), kind)
                twice = quantize(once, quant_type(second), name)
                tensors[name] = (twice, gguf.GGMLQuantizationType[second.upper()])

    def damage(source: Path, target: Path) -> None:
        with_tensors(source, target, change)
        with_key(target, target, "general.file_type", gguf.LlamaFileType.MOSTLY_Q8_0, Kind.UINT32)

    return damage


def in_numbers(name: str, change: Callable[[Any], Any]) -> Damage:
    """One tensor's numbers are changed and rounded again."""

    def damage(source: Path, target: Path) -> None:
        def replace(tensors: dict[str, Any]) -> None:
            blocks, kind = tensors[name]
            stored = quant_type(kind.name.lower())
            numbers = np.ascontiguousarray(change(dequantize(blocks, stored)))
            tensors[name] = (quantize(numbers, stored, name), kind)

        with_tensors(source, target, replace)

    return damage


QKV, SQUARE, UP = "blk.1.attn_qkv.weight", "blk.0.attn_output.weight", "blk.0.ffn_up.weight"
IN_TENSORS: dict[str, tuple[str, Damage, str]] = {
    "q and k exchanged": ("f32", tensor(QKV, lambda d: exchanged(d, 0, 64, 64)), "q and k"),
    "k and v exchanged": ("q8_0", tensor(QKV, lambda d: exchanged(d, 64, 128, 64)), "k and v"),
    "q and v exchanged": ("q4_0", tensor(QKV, lambda d: exchanged(d, 0, 128, 64)), "q and v"),
    "a square matrix transposed": ("f32", tensor(SQUARE, lambda d: d.T), "transposed"),
    "one row of another": (
        "q8_0",
        tensor(SQUARE, lambda d: np.concatenate([d[:5], d[4:5], d[6:]])),
        "row 5 holds row 4",
    ),
    "two rows exchanged": ("q4_0", tensor(SQUARE, lambda d: exchanged(d, 3, 7, 1)), "3 and 7"),
    "one block's scale": ("q4_0", tensor(UP, with_byte(9, 0)), f"{UP}: row 9"),
    "one 4-bit number": ("q4_0", tensor(UP, with_byte(9, 7)), f"{UP}: row 9"),
    "one bit of a norm": (
        "f32",
        lambda source, target: with_flipped_bit(source, target, "output_norm.weight"),
        "output_norm.weight: element 0",
    ),
    "one bit of a matrix": (
        "q8_0",
        lambda source, target: with_flipped_bit(source, target, UP, 3),
        f"{UP}: row 0",
    ),
    "two layers exchanged": ("q8_0", tensors(exchanged_layers), "blk.0"),
    "a matrix doubled": ("f32", tensor(UP, lambda d: d * 2), "2 x the checkpoint's"),
    "a norm shifted by one": ("f32", tensor("output_norm.weight", lambda d: d - 1), "1 less"),
    "a bias dropped": (
        "q8_0",
        tensor("blk.0.ffn_up.bias", lambda d: d * 0),
        "the bias was dropped",
    ),
    "the embedding shifted": (
        "f32",
        tensor("token_embd.weight", lambda d: np.roll(d, 1, 0)),
        "shifted by 1",
    ),
    "positions shifted": (
        "f32",
        tensor("position_embd.weight", lambda d: np.roll(d, -2, 0)),
        "shifted by 2",
    ),
    "numbers that are none": ("f32", tensor(UP, lambda d: d * np.nan), "not finite"),
    "position rows missing": ("f32", tensor("position_embd.weight", lambda d: d[:-2]), "position"),
    "vocabulary one row short": ("f32", tensor("token_embd.weight", lambda d: d[:-1]), "token_emb"),
    "vocabulary padded": (
        "f32",
        tensor("token_embd.weight", lambda d: np.concatenate([d, d[:3] * 0])),
        "token_embd.weight",
    ),
    "head tied that was not": (
        "q8_0",
        tensors(lambda t: t.pop("output.weight")),
        "output.weight",
    ),
    "a tensor missing": (
        "f32",
        tensors(lambda t: t.pop("blk.1.attn_qkv.bias")),
        "blk.1.attn_qkv.bias",
    ),
    "a tensor left over": (
        "f32",
        tensors(lambda t: t.update({"blk.0.attn_q.weight": t[SQUARE]})),
        "blk.0.attn_q.weight",
    ),
    "quantized twice": ("f32", by_way_of("q4_0", "q8_0"), "quantized twice, by way of q4_0"),
    "chosen, q and k exchanged": (
        "gptq",
        tensor(QKV, lambda d: exchanged(d, 0, 64, 64)),
        "q and k",
    ),
    "chosen, transposed": ("gptq", in_numbers(SQUARE, lambda d: d.T), "transposed"),
    "chosen, two rows exchanged": ("gptq", tensor(UP, lambda d: exchanged(d, 3, 7, 1)), "3 and 7"),
    "chosen, one row of another": (
        "gptq",
        tensor(SQUARE, lambda d: np.concatenate([d[:5], d[4:5], d[6:]])),
        "row 5 holds row 4",
    ),
    "chosen, two layers exchanged": (
        "gptq",
        tensors(exchanged_layers),
        "layers 0 and 1 are exchanged",
    ),
    "chosen, doubled": ("gptq", in_numbers(UP, lambda d: d * 2), f"{UP}: 1.975 x the checkpoint's"),
    "chosen, the embedding shifted": (
        "gptq",
        tensor("token_embd.weight", lambda d: np.roll(d, 1, 0)),
        "shifted by 1",
    ),
    "chosen, zeros": ("gptq", tensor(UP, lambda d: d * 0), "all zeros"),
    "chosen, rounded instead": (
        "gptq",
        in_numbers(UP, lambda d: d * np.float32(1.01)),
        f"{UP} is near the checkpoint's, but the blocks are not those that were chosen",
    ),
    "chosen, one bit": (
        "gptq",
        lambda source, target: with_flipped_bit(source, target, UP, 3),
        "their hash is another",
    ),
    "chosen, one block's scale": ("gptq", tensor(UP, with_byte(9, 1)), UP),
}


@pytest.mark.parametrize("name", IN_TENSORS)
def test_a_damaged_tensor_is_caught_and_named(
    name: str, checkpoint: Checkpoint, good: dict[str, Path], tmp_path: Path
) -> None:
    kind, damage, words = IN_TENSORS[name]
    path = tmp_path / "m.gguf"
    damage(good[kind], path)
    subject = open_subject(checkpoint, path)
    assert words in complaints(tensors_check(subject))["tensors"]
    assert metadata_check(subject).passed
    if shapes(path) == shapes(good[kind]) and "not finite" not in words:
        check = layers_check(subject, TOKENS)  # llama.cpp computes what the file says
        assert check.passed, check.detail


def test_another_checkpoints_file_is_caught(
    checkpoint: Checkpoint, good: dict[str, Path], tmp_path: Path
) -> None:
    def retrain(weights: dict[str, torch.Tensor]) -> None:
        for weight in weights.values():
            weight += 0.01 * torch.randn(weight.shape)

    other = make_checkpoint(tmp_path / "other", change=retrain, tie_embeddings=False)
    check = tensors_check(written(other, tmp_path / "m.gguf", "q8_0", of=checkpoint))
    assert "another checkpoint" in complaints(check)["tensors"]
    check = tensors_check(open_subject(other, good["gptq"]))  # matrices may be this far from it
    assert "position_embd.weight: other numbers" in complaints(check)["tensors"]


def test_a_truncated_file_is_refused(
    checkpoint: Checkpoint, good: dict[str, Path], tmp_path: Path
) -> None:
    content = good["q8_0"].read_bytes()
    for n in (len(content) - 64, len(content) // 2, 100, 0):
        (tmp_path / "m.gguf").write_bytes(content[:n])
        with pytest.raises(GGUFError):
            proof_of(checkpoint, tmp_path / "m.gguf")


# --- damages to metadata ----------------------------------------------------------------------


def key(name: str, value: Any, kind: Kind) -> Damage:
    return lambda source, target: with_key(source, target, name, value, kind)


def array(name: str, change: Callable[[list[Any]], list[Any]]) -> Damage:
    def damage(source: Path, target: Path) -> None:
        keys = keys_of(source)
        items, *kinds = keys[name]
        keys[name] = (change(list(items)), *kinds)
        write_file(target, keys, tensors_of(source))

    return damage


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
    "add_bos": (
        key(f"{TOKENIZER}.add_bos_token", True, Kind.BOOL),
        {"metadata": "add_bos_token"},
    ),
    "add_eos": (
        key(f"{TOKENIZER}.add_eos_token", True, Kind.BOOL),
        {"metadata": "add_eos_token"},
    ),
    "another split": (
        key(f"{TOKENIZER}.pre", "llama-bpe", Kind.STRING),
        {"metadata": f"{TOKENIZER}.pre"},
    ),
    "no split": (
        lambda source, target: without_key(source, target, f"{TOKENIZER}.pre"),
        {"metadata": f"{TOKENIZER}.pre: missing"},
    ),
    "eos missing": (
        lambda source, target: without_key(source, target, f"{TOKENIZER}.eos_token_id"),
        {"metadata": "eos_token_id: missing"},
    ),
    "token types missing": (
        lambda source, target: without_key(source, target, f"{TOKENIZER}.token_type"),
        {"metadata": "token_type: missing"},
    ),
    "one merge missing": (
        array(f"{TOKENIZER}.merges", lambda items: items[:5] + items[6:]),
        {"metadata": "merges: 1 items missing", "tokenizer": "missing in the file"},
    ),
    "two merges exchanged": (
        array(f"{TOKENIZER}.merges", swapped(0, 4)),
        {"metadata": "0 and 4 are swapped"},
    ),
    "one token renamed": (
        array(f"{TOKENIZER}.tokens", lambda items: [*items[:65], "renamed", *items[66:]]),
        {"metadata": "'renamed' instead of", "tokenizer": "token 65"},
    ),
    "two tokens exchanged": (
        array(f"{TOKENIZER}.tokens", swapped(65, 66)),
        {"metadata": "65", "tokenizer": "token 65"},
    ),
    "the end token is NORMAL": (
        array(f"{TOKENIZER}.token_type", lambda items: [1] * len(items)),
        {"metadata": "NORMAL instead of CONTROL"},
    ),
    "a common token is CONTROL": (
        array(f"{TOKENIZER}.token_type", lambda items: [*items[:65], 3, *items[66:]]),
        {"metadata": "CONTROL instead of NORMAL", "tokenizer": "token 65"},
    ),
    "key and value heads": (
        key("gpt2.attention.head_count_kv", 1, Kind.UINT32),
        {"metadata": "head_count_kv"},
    ),
}


@pytest.mark.parametrize("name", IN_KEYS)
def test_a_damaged_key_is_caught_and_named(
    name: str, checkpoint: Checkpoint, good: dict[str, Path], tmp_path: Path
) -> None:
    damage, expected = IN_KEYS[name]
    path = tmp_path / "m.gguf"
    damage(good["q8_0"], path)
    subject = open_subject(checkpoint, path)
    checks = [metadata_check(subject), tensors_check(subject)]
    if "layers" in expected:
        checks.append(layers_check(subject, TOKENS))
    if "tokenizer" in expected:
        with LlamaCpp(path) as llama:
            checks.append(tokenizer_check(subject, llama, []))
    failed = complaints(*checks)
    for check, words in expected.items():
        assert words in failed[check], failed
    assert name == "file type" or "tensors" not in failed  # which it promises to be other


def test_another_chat_template_is_caught(tmp_path: Path) -> None:
    chat = chatml_checkpoint(tmp_path / "c")
    good = write(chat, tmp_path / "good.gguf")
    template = chat.prompt_format.chat_template.replace("<|im_start|>", "<|im_start|> ", 1)
    name = "tokenizer.chat_template"
    path = with_key(good, tmp_path / "m.gguf", name, template, Kind.STRING)
    assert name in complaints(metadata_check(open_subject(chat, path)))["metadata"]


# --- damages to the Modelfile -----------------------------------------------------------------


def exported(form: PromptFormat, folder: Path) -> tuple[Checkpoint, Path]:
    """A checkpoint that answers in a format, and a good file of it beside its Modelfile."""
    tokenizer = train_bpe(["some words to merge, some more words"], 280)
    more = [token for token in form.stops if token != "<|endoftext|>"]
    tokenizer = tokenizer.with_tokens(special=more)
    made = make_checkpoint(folder / "c", tokenizer=tokenizer, context_length=128)
    save_config(made.folder, CheckpointConfig(made.config, form))
    answering = load_checkpoint(made.folder)
    done = export(answering.folder, folder / "out", Recipe(["f32"]), prove=False)
    return answering, done.files[0].path


def rewritten(gguf: Path, change: Callable[[Modelfile], Modelfile]) -> None:
    path = gguf.parent / "Modelfile"
    path.write_text(render(change(read_modelfile(path).modelfile)), encoding="utf-8")


def with_template(old: str, new: str) -> Callable[[Modelfile], Modelfile]:
    def change(modelfile: Modelfile) -> Modelfile:
        assert modelfile.template is not None
        assert old in modelfile.template
        return replace(modelfile, template=modelfile.template.replace(old, new, 1))

    return change


def with_parameters(**changes: Any) -> Callable[[Modelfile], Modelfile]:
    def change(modelfile: Modelfile) -> Modelfile:
        return replace(modelfile, parameters=replace(modelfile.parameters, **changes))

    return change


def without_stop(modelfile: Modelfile) -> Modelfile:
    return replace(modelfile, parameters=replace(modelfile.parameters, stop=()))


OWN = PromptFormat(
    "own", Turn("[", "]\n"), Turn("Q: ", "\n"), Turn("A:\n", "\n--\n"), end="<|done|>"
)
IN_MODELFILES: dict[str, tuple[PromptFormat, Callable[[Modelfile], Modelfile], dict[str, str]]] = {
    "TEMPLATE with one newline less": (
        ALPACA,
        with_template("### Response:\n", "### Response:"),
        {"prompt": "TEMPLATE, one question"},
    ),
    "TEMPLATE with one space more": (
        CHATML,
        with_template("<|im_start|>user\n", "<|im_start|>user \n"),
        {"prompt": "TEMPLATE"},
    ),
    "no separator between turns": (
        USER_ASSISTANT,
        with_template("{{ .Response }}<|endoftext|>\n", "{{ .Response }}<|endoftext|>"),
        {"prompt": "TEMPLATE, two turns"},
    ),
    "no end token between turns": (
        OWN,
        with_template("{{ .Response }}<|done|>", "{{ .Response }}"),
        {"prompt": "TEMPLATE, two turns"},
    ),
    "TEMPLATE of another format": (
        USER_ASSISTANT,
        lambda modelfile: replace(modelfile, template=CHATML.template),
        {"prompt": "TEMPLATE, one question"},
    ),
    "TEMPLATE without the system text": (
        CHATML,
        with_template("{{ .System }}", ""),
        {"prompt": "TEMPLATE, a system text"},
    ),
    "no TEMPLATE": (
        CHATML,
        lambda modelfile: replace(modelfile, template=None),
        {"prompt": "TEMPLATE"},
    ),
    "TEMPLATE that does not parse": (
        ALPACA,
        with_template("{{ .Prompt }}", "{{ .Prompt "),
        {"prompt": "template error"},
    ),
    "TEMPLATE with a misspelt variable": (
        ALPACA,
        with_template("{{ .Prompt }}", "{{ .Promt }}"),
        {"prompt": "<no value>"},
    ),
    "no SYSTEM": (
        ALPACA,
        lambda modelfile: replace(modelfile, system=None),
        {"prompt": "TEMPLATE, one question"},
    ),
    "a model of Ollama's own": (
        ALPACA,
        lambda modelfile: replace(modelfile, source="llama3.2"),
        {"metadata": "FROM llama3.2"},
    ),
    "another folder's file": (
        ALPACA,
        lambda modelfile: replace(modelfile, source="../elsewhere.gguf"),
        {"metadata": "FROM ../elsewhere.gguf"},
    ),
    "a second FROM": (
        ALPACA,
        lambda modelfile: replace(modelfile, more_sources=("llama3.2",)),
        {"metadata": "FROM llama3.2"},
    ),
    "a file that is not there": (
        ALPACA,
        lambda modelfile: replace(modelfile, source="./c-q8_0.gguf"),
        {"metadata": "FROM ./c-q8_0.gguf"},
    ),
    "an adapter that is not there": (
        ALPACA,
        lambda modelfile: replace(modelfile, adapter="./gone.gguf"),
        {"metadata": "ADAPTER ./gone.gguf"},
    ),
    "an adapter that is not there, of another model": (
        ALPACA,
        lambda modelfile: replace(modelfile, source="llama3.2", adapter="./gone.gguf"),
        {"metadata": "ADAPTER ./gone.gguf"},
    ),
    "a model as an adapter": (
        ALPACA,
        lambda modelfile: replace(modelfile, adapter="./c-f32.gguf"),
        {"metadata": "c-f32.gguf is a model"},
    ),
    "num_ctx past the context": (
        ALPACA,
        with_parameters(num_ctx=4096),
        {"metadata": "num_ctx 4096 "},
    ),
    "no stop": (CHATML, without_stop, {"stop": "no PARAMETER stop for '<|im_end|>'"}),
    "one stop missing": (
        CHATML,
        lambda modelfile: replace(
            modelfile,
            parameters=replace(modelfile.parameters, stop=modelfile.parameters.stop[:1]),
        ),
        {"stop": "no PARAMETER stop for '<|im_start|>'"},
    ),
}


THROUGH_VERIFY = ("no TEMPLATE", "num_ctx past the context", "no stop")  # one of each check


@pytest.mark.parametrize("name", IN_MODELFILES)
def test_a_damaged_modelfile_is_caught_and_named(name: str, tmp_path: Path) -> None:
    form, change, expected = IN_MODELFILES[name]
    answering, gguf = exported(form, tmp_path)
    shutil.copy(gguf, tmp_path / "elsewhere.gguf")
    rewritten(gguf, change)
    subject, modelfile = open_subject(answering, gguf), gguf.parent / "Modelfile"
    read = read_modelfile(modelfile).modelfile
    with LlamaCpp(gguf) as llama:
        failed = complaints(
            metadata_check(subject, modelfile),
            prompt_check(subject, llama, read),
            stop_check(subject, llama, read),
        )
    assert set(failed) == set(expected)
    for check, words in expected.items():
        assert words in failed[check]
    if name in THROUGH_VERIFY:
        assert said(proof_of(answering, gguf)) == failed


@pytest.mark.slow
@pytest.mark.parametrize(
    "form", [ALPACA, CHATML, COMPLETION, USER_ASSISTANT, OWN], ids=lambda form: form.name
)
def test_a_good_modelfile_of_every_format_passes(form: PromptFormat, tmp_path: Path) -> None:
    answering, gguf = exported(form, tmp_path)
    proof = proof_of(answering, gguf)
    assert said(proof) == {}
    assert "Modelfile" in proof.sha256_of


def test_a_modelfile_that_ollama_refuses_is_caught(tmp_path: Path) -> None:
    answering, gguf = exported(ALPACA, tmp_path)
    with (gguf.parent / "Modelfile").open("a", encoding="utf-8") as file:
        file.write("PARAMETER temprature 1\n")
    proof = proof_of(answering, gguf)
    assert "unknown parameter 'temprature'" in said(proof).pop("metadata")
    assert set(said(proof)) == {"metadata"}
    assert "Modelfile" in proof.sha256_of


def test_what_is_a_users_choice_passes(tmp_path: Path) -> None:
    answering, gguf = exported(ALPACA, tmp_path)
    shutil.copy(gguf, gguf.with_name("another.gguf"))
    choices = with_parameters(temperature=5.0, num_predict=1, num_ctx=64)
    rewritten(gguf, lambda modelfile: replace(choices(modelfile), source="./another.gguf"))
    assert said(proof_of(answering, gguf)) == {}
    (tmp_path / "m").write_text((gguf.parent / "Modelfile").read_text().replace("./", "out/"))
    proof = verify(answering.folder, gguf, modelfile=tmp_path / "m", max_tokens=96)
    assert said(proof) == {}


@pytest.mark.parametrize("compiler", [None, "false"], ids=["none", "one that cannot build"])
def test_without_go_the_template_has_to_be_the_formats_own(
    compiler: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(go_engine, "find_go", lambda: compiler)
    answering, gguf = exported(ALPACA, tmp_path)
    proof = proof_of(answering, gguf)
    assert said(proof) == {}
    assert any("no working Go compiler" in check.detail for check in proof.checks)
    rewritten(gguf, with_template("### Response:\n", "### Response:"))
    assert "TEMPLATE: differs" in said(proof_of(answering, gguf))["prompt"]


def test_jinja_and_template_that_differ_are_caught(tmp_path: Path) -> None:
    answering, gguf = exported(ALPACA, tmp_path)
    name = "tokenizer.chat_template"
    other = with_key(gguf, tmp_path / "m.gguf", name, CHATML.chat_template, Kind.STRING)
    other.replace(gguf)
    failed = said(proof_of(answering, gguf))
    assert "the GGUF's Jinja, one question" in failed["prompt"]
    assert name in failed["metadata"]


def test_another_end_is_caught(tmp_path: Path) -> None:
    answering, gguf = exported(OWN, tmp_path)
    key("tokenizer.ggml.eos_token_id", 17, Kind.UINT32)(gguf, tmp_path / "m.gguf")
    failed = said(verify(answering.folder, tmp_path / "m.gguf", max_tokens=96))
    assert (
        f"eos_token_id is 17, but training ended answers with token {answering.end_id} "
        in failed["stop"]
    )
    assert "llama.cpp does not stop" in failed["stop"]
    assert "eos_token_id" in failed["metadata"]


def test_an_end_token_that_is_text_is_caught(tmp_path: Path) -> None:
    answering, gguf = exported(OWN, tmp_path)
    array("tokenizer.ggml.token_type", lambda items: [1] * len(items))(gguf, tmp_path / "m.gguf")
    failed = said(verify(answering.folder, tmp_path / "m.gguf", max_tokens=96))
    assert "is not CONTROL" in failed["stop"]
    assert "must be CONTROL" in failed["tokenizer"]


def test_a_model_that_never_ends_is_caught(tmp_path: Path) -> None:
    answering, gguf = exported(OWN, tmp_path)
    record = {"messages": [asdict(Message("user", "Who?")), asdict(Message("assistant", "Ida."))]}
    answering.held_out_file.parent.mkdir()
    answering.held_out_file.write_text(json.dumps(record) + "\n", encoding="utf-8")
    failed = said(proof_of(answering, gguf))
    assert (
        "0 of 1 held-out answers end in PyTorch, 0 in llama.cpp: the model never stops"
        in failed["stop"]
    )


# --- damages to an adapter --------------------------------------------------------------------


def test_an_adapter_that_is_not_merged_is_caught(tmp_path: Path) -> None:
    tuned = lora_checkpoint(tmp_path / "c")
    base = write(Checkpoint(**{**vars(tuned), "lora": None}), tmp_path / "m.gguf")
    assert "adapter" in complaints(tensors_check(open_subject(tuned, base)))["tensors"]


def test_the_adapter_of_another_training_is_caught(tmp_path: Path) -> None:
    tuned = lora_checkpoint(tmp_path / "c")
    path = write_apart(tuned, tmp_path)
    adapter = tmp_path / "adapter.gguf"
    tensor("blk.0.attn_qkv.weight.lora_b", lambda d: d * 1.01)(adapter, tmp_path / "other.gguf")
    (tmp_path / "other.gguf").replace(adapter)
    found = complaints(tensors_check(open_subject(tuned, path)))
    assert "blk.0.attn_qkv.weight.lora_b" in found["tensors"]


def test_another_alpha_is_caught(tmp_path: Path) -> None:
    tuned = lora_checkpoint(tmp_path / "c")
    path = write_apart(tuned, tmp_path)
    adapter = tmp_path / "adapter.gguf"
    with_key(adapter, tmp_path / "other.gguf", "adapter.lora.alpha", 3.0, Kind.FLOAT32)
    (tmp_path / "other.gguf").replace(adapter)
    subject = open_subject(tuned, path)
    failed = complaints(metadata_check(subject), layers_check(subject, TOKENS))
    assert "adapter.lora.alpha" in failed["metadata"]
    assert "blk.0.attn_qkv.weight" in failed["layers"]


@pytest.mark.parametrize(
    ("adapter", "words"),
    [
        (None, "ADAPTER ./adapted-adapter.gguf"),
        ("./gone.gguf", "ADAPTER ./gone.gguf"),
        ("./other.gguf", "ADAPTER ./other.gguf must be adapted-adapter.gguf"),
    ],
)
def test_a_modelfile_that_does_not_use_the_adapter_is_caught(
    adapter: str | None, words: str, tmp_path: Path
) -> None:
    tuned = lora_checkpoint(tmp_path / "c")
    done = export(tuned.folder, tmp_path / "out", Recipe(["f32"]), prove=False)
    assert done.adapter is not None
    name = "blk.0.attn_qkv.weight.lora_b"
    tensor(name, lambda d: d * 2)(done.adapter.path, tmp_path / "out" / "other.gguf")
    rewritten(done.files[0].path, lambda modelfile: replace(modelfile, adapter=adapter))
    failed = said(proof_of(tuned, done.files[0].path))
    assert set(failed) == {"metadata"}
    assert words in failed["metadata"]


# --- a program that computes something else ---------------------------------------------------


@pytest.mark.parametrize("kind", ["f32", "q8_0", "q4_0"])
def test_another_gelu_is_caught_and_named(
    kind: str, checkpoint: Checkpoint, good: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "gelu", F.gelu)  # with erf instead of tanh
    failed = complaints(layers_check(open_subject(checkpoint, good[kind]), TOKENS))
    assert "blk.0: ffn_up -> gelu" in failed["layers"]


@pytest.mark.slow
def test_an_activation_that_no_f16_holds_is_caught(tmp_path: Path) -> None:
    def overflow(weights: dict[str, torch.Tensor]) -> None:
        weights["h.0.mlp.c_fc.bias"][7] = 1e5
        weights["h.0.mlp.c_proj.weight"][:, 7] = 1e-7

    made = make_checkpoint(tmp_path / "c", change=overflow)
    failed = said(proof_of(made, write(made, tmp_path / "m.gguf", "f16")))
    assert failed["logits"].startswith("llama.cpp's logits are infinite or NaN at")
    assert "bf16" in failed["logits"]
    assert "generation" in failed
    assert said(proof_of(made, write(made, tmp_path / "b.gguf", "bf16"))) == {}


# --- nothing is wrong -------------------------------------------------------------------------


# Each kind of model with one type, each type with two; the checks that compute see all pairs.
PAIRS = {
    *((variant, "q8_0") for variant in VARIANTS),
    *((v, kind) for v in ("untied", "odd width") for kind in ("f32", "f16", "bf16", "q4_0")),
}


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "kind"), sorted(PAIRS))
def test_a_good_export_of_every_kind_passes(variant: str, kind: str, tmp_path: Path) -> None:
    made = make_checkpoint(tmp_path / "c", **VARIANTS[variant])
    assert said(proof_of(made, write(made, tmp_path / "m.gguf", kind))) == {}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["f32", "q8_0", "q4_0"])
@pytest.mark.parametrize("merge", [False, True], ids=["apart", "merged"])
def test_a_good_adapter_passes(merge: bool, kind: str, tmp_path: Path) -> None:
    tuned = lora_checkpoint(tmp_path / "c")
    done = export(tuned.folder, tmp_path / "out", Recipe([kind]), merge=merge)
    assert said(done.proofs[0]) == {}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_a_good_qlora_export_passes(kind: str, tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "base")
    tuned = with_adapter(base, tmp_path / "tuned", base_quant=kind)
    done = export(tuned.folder, tmp_path / "out")
    assert said(done.proofs[0]) == {}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["f32", "q8_0"])
def test_a_good_chat_and_a_good_classifier_pass(kind: str, tmp_path: Path) -> None:
    chat = chatml_checkpoint(tmp_path / "chat")
    labels = ("ham", "spam")
    tokenizer = train_bpe(["some words to merge, some more words"], 280).with_tokens(words=labels)
    base = make_checkpoint(tmp_path / "base", tokenizer=tokenizer, tie_embeddings=False)
    classifier = as_classifier(base, tmp_path / "classifier", labels)
    for number, made in enumerate((chat, classifier)):
        done = export(made.folder, tmp_path / str(number), Recipe([kind]))
        assert said(done.proofs[0]) == {}
