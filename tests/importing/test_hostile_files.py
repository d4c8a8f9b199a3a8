"""Files that are damaged or mean harm: one line says so; nothing runs, nothing is written."""

from __future__ import annotations

import builtins
import functools
import importlib
import json
import operator
import os
import pickle
import random
import struct
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from any_gpt import CHARACTERS, FUSED, Gpt, H
from safetensors.torch import save_file

from llmkit.errors import LlmkitError
from llmkit.importing.facts import ImportOptions
from llmkit.importing.importer import import_checkpoint

TENSORS = Gpt().state_dict(FUSED)


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., str]:
    """The line with which a source is refused."""
    text = tmp_path / "text.txt"
    text.write_text(CHARACTERS, encoding="utf-8")

    def refused(source: Path, tokenizer: str = f"chars:{text}") -> str:
        out = tmp_path / "new" / "out"
        options = ImportOptions(n_head=H, activation="gelu_erf", tokenizer=tokenizer)
        with pytest.raises(LlmkitError) as caught:
            import_checkpoint(source, out, options)
        assert not out.parent.exists() or not list(out.parent.iterdir())
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return refused


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


def attacks(witness: Path) -> dict[str, Call]:
    command = f"touch {witness}"
    inner = pickle.dumps(Call(os.system, command))
    return {
        "system": Call(os.system, command),
        "eval": Call(builtins.eval, f"open({str(witness)!r}, 'w')"),
        "exec": Call(builtins.exec, f"open({str(witness)!r}, 'w')"),
        "Popen": Call(subprocess.Popen, ["touch", str(witness)]),
        "open": Call(open, str(witness), "w"),
        "getattr": Call(getattr, "os", "system"),
        "import_module": Call(importlib.import_module, "os"),
        "methodcaller": Call(operator.methodcaller("touch"), witness),
        "partial": Call(functools.partial(os.system, command)),
        "torch.load": Call(torch.load, "other.pt"),
        "torch.hub": Call(torch.hub.load, "a/b", "c"),
        "numpy.save": Call(np.save, str(witness), 1),
        "in a tensor": Call(torch.storage._load_from_bytes, inner),
    }


@pytest.mark.parametrize("name", attacks(Path()))
def test_a_pickle_that_calls_something_is_named_and_runs_nothing(
    name: str, tmp_path: Path, refused: Callable[..., str]
) -> None:
    witness = tmp_path / "witness"
    attack = attacks(witness)[name]
    path = tmp_path / "model.pt"
    for content in (attack, {"model": TENSORS, "config": {"a": [attack]}}):
        for is_zip in (True, False):
            torch.save(content, path, _use_new_zipfile_serialization=is_zip)
            assert "harm" in refused(path)
    torch.save(TENSORS, path)
    vocabulary = tmp_path / "meta.pkl"
    vocabulary.write_bytes(pickle.dumps({"itos": attack}))
    assert "harm" in refused(path, str(vocabulary))
    assert not witness.exists()


def shared_dicts() -> bytes:
    """A dictionary that holds one dictionary under ten names, which holds one under ten..."""
    found = b"\x80\x02}"
    for depth in range(40):
        found += b"r" + struct.pack("<I", depth) + b"}"
        for name in range(10):
            found += b"K" + bytes([name]) + b"j" + struct.pack("<I", depth) + b"s"
    return found + b"."


BOMBS = {
    "bytes of no content": pickle.dumps(Call(bytearray, 1 << 36)),
    "a long text": b"\x80\x02X" + struct.pack("<I", 2**32 - 1) + b"a.",
    "a long frame": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"a.",
    "a far memo": b"\x80\x02Nr" + struct.pack("<I", 2**31 - 1) + b".",
    "dictionaries in each other": b"\x80\x02" + b"}K\x01" * 90_000 + b"}" + b"s" * 90_000 + b".",
    "a dictionary in itself": b"\x80\x02}q\x00K\x01h\x00s.",
    "shared dictionaries": shared_dicts(),
    "a module in itself": b"\x80\x02c__main__\nFoo\n)Rq\x00}X\x08\x00\x00\x00_modules}"
    b"X\x01\x00\x00\x00ah\x00ssb.",
    "a dotted name": b"\x80\x04\x8c\x05torch\x8c\x09os.system\x93\x8c\x01a\x85R.",
    "an opcode for classes": b"(S'true'\nios\nsystem\n.",
    "text": b"no checkpoint",
    "zeros": bytes(5000),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_pickle_that_would_fill_the_memory_or_never_end_is_refused(
    name: str, tmp_path: Path, refused: Callable[..., str]
) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(BOMBS[name])
    refused(path)


def test_a_tensor_that_repeats_one_number_is_refused(
    tmp_path: Path, refused: Callable[..., str]
) -> None:
    path = tmp_path / "model.pt"
    torch.save(TENSORS | {"wpe.weight": torch.ones(1, 1).expand(1 << 30, 32)}, path)
    assert "repeats" in refused(path)


def saved(kind: str, path: Path) -> Path:
    if kind == "safetensors":
        save_file(TENSORS, path)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(TENSORS))
    else:
        torch.save(TENSORS, path, _use_new_zipfile_serialization=kind == "zip")
    return path


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle", "safetensors"])
def test_truncated_files_are_refused(
    kind: str, tmp_path: Path, refused: Callable[..., str]
) -> None:
    path = saved(kind, tmp_path / "model.bin")
    whole = path.read_bytes()
    for part in (0, 0.001, 0.1, 0.9, 0.999):
        path.write_bytes(whole[: int(len(whole) * part)])
        assert path.name in refused(path)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle", "safetensors"])
def test_files_with_a_few_other_bytes_are_read_or_refused(kind: str, tmp_path: Path) -> None:
    whole = saved(kind, tmp_path / "model.bin").read_bytes()
    chance = random.Random(kind)
    (tmp_path / "text.txt").write_text(CHARACTERS)
    options = ImportOptions(
        n_head=H, activation="gelu_erf", tokenizer=f"chars:{tmp_path / 'text.txt'}"
    )
    for number in range(25):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 5)):
            damaged[chance.randrange(min(len(whole), 4000))] = chance.randrange(256)
        path = tmp_path / "damaged.bin"
        path.write_bytes(damaged)
        try:
            import_checkpoint(path, tmp_path / str(number), options)
        except LlmkitError:
            assert not (tmp_path / str(number)).exists()


def test_archives_that_torch_never_writes_are_refused(
    tmp_path: Path, refused: Callable[..., str]
) -> None:
    good = saved("zip", tmp_path / "good.pt")
    with zipfile.ZipFile(good) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    number = next(name for name in entries if name.endswith("/data/3"))

    def archived(changes: dict[str, bytes | None], kind: int = zipfile.ZIP_STORED) -> Path:
        path = tmp_path / "model.pt"
        with zipfile.ZipFile(path, "w", kind) as archive:
            for name, content in {**entries, **changes}.items():
                if content is not None:
                    archive.writestr(name, content)
        return path

    assert "compressed" in refused(archived({}, zipfile.ZIP_DEFLATED))
    assert "compressed" in refused(archived({"good/x": bytes(1 << 20)}, zipfile.ZIP_DEFLATED))
    assert "data/3" in refused(archived({number: None}))
    assert "past the end" in refused(archived({number: entries[number][:8]}))
    assert "data.pkl" in refused(archived({"other/data.pkl": b""}))
    declared = bytearray(archived({}).read_bytes())
    start = -1
    while (start := declared.find(b"PK\x01\x02", start + 1)) >= 0:  # sizes in the index
        declared[start + 20 : start + 28] = struct.pack("<II", 2**31, 2**31)
    (tmp_path / "model.pt").write_bytes(declared)
    assert "2,147,483,648" in refused(tmp_path / "model.pt")


def test_nothing_outside_the_folder_is_read(tmp_path: Path, refused: Callable[..., str]) -> None:
    folder, elsewhere = tmp_path / "hf", tmp_path / "elsewhere.safetensors"
    folder.mkdir()
    save_file(TENSORS, elsewhere)
    index = folder / "model.safetensors.index.json"
    for name in ("../elsewhere.safetensors", str(elsewhere), "a\0b"):
        index.write_text(json.dumps({"weight_map": {"wte.weight": name}}))
        assert "out of the folder" in refused(folder)
    for weight_map in ({}, [], None, {"wte.weight": "."}, {"wte.weight": 3}):
        index.write_text(json.dumps({"weight_map": weight_map}))
        assert "hf" in refused(folder)
    index.unlink()
    link = folder / "model.safetensors"
    link.symlink_to(elsewhere)
    assert "out of the folder" in refused(folder)
    link.unlink()
    save_file(TENSORS, link)
    for name in ("config.json", "vocab.json"):
        (tmp_path / name).write_text("[]")
        (folder / name).symlink_to(tmp_path / name)
        assert "out of the folder" in refused(folder, str(folder))
        (folder / name).unlink()


def test_a_missing_shard_is_named(tmp_path: Path, refused: Callable[..., str]) -> None:
    names = sorted(TENSORS)
    shards = {f"model-{i}-of-2.safetensors": names[i - 1 :: 2] for i in (1, 2)}
    for shard, part in shards.items():
        save_file({name: TENSORS[name] for name in part}, tmp_path / shard)
    weight_map = {name: shard for shard, part in shards.items() for name in part}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "model-2-of-2.safetensors").unlink()
    assert "model-2-of-2.safetensors" in refused(tmp_path)
