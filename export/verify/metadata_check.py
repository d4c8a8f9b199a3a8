"""Whether the keys of a GGUF file have the checkpoint's values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from llmkit.architectures.registry import FAMILIES, tensor_specs
from llmkit.export.check import Outcome, counted
from llmkit.export.gguf.keys import ADAPTER_KEY, CHAT_TEMPLATE_KEY, LABELS_KEY
from llmkit.export.gguf.metadata import (
    BLOCKS_KEY,
    CALIBRATION_KEY,
    METHOD_KEY,
    OF_QUANTIZATION,
    MetadataEntry,
    adapter_metadata_of,
    metadata_of,
)
from llmkit.export.verify.modelfile import modelfile_faults
from llmkit.export.verify.target import VerifyTarget

SHOWN = 5  # differences in a detail; the first of them is the one to mend
_SHORT = 40  # characters of a value that are shown
_ABSENT = object()

_KEYS = gguf.Keys
# Keys that llama.cpp, llama-server or llmkit read where they are there. What `general.` says
# besides is for people.
_SIZES = tuple(f"{name}." for name in FAMILIES)
_READ = (*_SIZES, "tokenizer.", "general.sampling.", "split.", "llmkit.")
# How blocks were chosen: the checkpoint does not know, and the tensors are checked against it.
_OF_BLOCKS = {METHOD_KEY, CALIBRATION_KEY, BLOCKS_KEY}
_READ_OF_ADAPTER = (*_SIZES, "tokenizer.", "adapter.")

# Of other programs' files: what llama.cpp does without, and what it reads for other vocabularies.
_OPTIONAL = {_KEYS.LLM.VOCAB_SIZE.format(arch=name) for name in FAMILIES} | {
    _KEYS.Tokenizer.ADD_BOS,
    CHAT_TEMPLATE_KEY,
}
_NOT_READ_OF_BPE = frozenset(
    (_KEYS.Tokenizer.UNK_ID, _KEYS.Tokenizer.PAD_ID, _KEYS.Tokenizer.SEP_ID)
)

# What a wrong value does to whoever runs the file.
_CONSEQUENCES = {
    _KEYS.General.ARCHITECTURE: "llama.cpp then runs a different model or none",
    _KEYS.General.TYPE: "programs then misread what the file is",
    _KEYS.General.FILE_TYPE: "programs then show the wrong quantization",
    _KEYS.General.QUANTIZATION_VERSION: "programs may then refuse the blocks",
    _KEYS.LLM.CONTEXT_LENGTH: "positions past the smaller value then fail",
    _KEYS.LLM.EMBEDDING_LENGTH: "llama.cpp then expects tensors of other shapes",
    _KEYS.LLM.FEED_FORWARD_LENGTH: "llama.cpp then expects tensors of other shapes",
    _KEYS.LLM.BLOCK_COUNT: "llama.cpp then expects more layers or skips some",
    _KEYS.LLM.VOCAB_SIZE: "llama.cpp then expects a different number of logits",
    _KEYS.Attention.HEAD_COUNT: "attention then uses the wrong number of heads",
    _KEYS.Attention.LAYERNORM_EPS: "every LayerNorm then differs",
    _KEYS.Tokenizer.MODEL: "llama.cpp then uses a different tokenizer",
    _KEYS.Tokenizer.PRE: "llama.cpp then splits text differently",
    _KEYS.Tokenizer.LIST: "ids then stand for different text",
    _KEYS.Tokenizer.TOKEN_TYPE: "special tokens are then read as text, or the reverse",
    _KEYS.Tokenizer.MERGES: "llama.cpp then splits words differently",
    _KEYS.Tokenizer.BOS_ID: "a prompt may then start with the wrong token",
    _KEYS.Tokenizer.EOS_ID: "generation then does not stop at the end of the answer",
    _KEYS.Tokenizer.ADD_BOS: "prompts then start differently than in training",
    CHAT_TEMPLATE_KEY: "llama-server then renders conversations differently",
    _KEYS.Adapter.TYPE: "llama.cpp then refuses the adapter",
    _KEYS.Adapter.LORA_ALPHA: "the adapter is then scaled differently",
    ADAPTER_KEY: "the model then runs with the wrong adapter or none",
    LABELS_KEY: "answers are then not mapped to labels",
}


def metadata_check(target: VerifyTarget, modelfile: Path | None = None) -> Outcome:
    """Every key that llama.cpp or Ollama reads has the checkpoint's value. Value: keys that differ.

    `general.name` is free. Each fault of the Modelfile's FROM, ADAPTER and parameters counts too.
    """
    source, file, adapter = target.checkpoint, target.file, target.adapter
    beside = adapter.path.name if adapter is not None and source.lora is not None else None
    wanted = metadata_of(source, target.quantization, _name_of(file.metadata), beside)
    if target.is_foreign:
        wanted = [e for e in wanted if e.key in file.metadata or e.key not in _OPTIONAL]
        wanted = [e for e in wanted if e.key not in OF_QUANTIZATION]
    unread = _NOT_READ_OF_BPE if target.is_foreign else frozenset()
    differences = [
        *_differences(file.metadata, wanted, _READ, unread),
        *_file_type_difference(target),
        *_method_difference(target),
    ]
    n_keys = len(wanted)
    if adapter is not None:
        wanted = adapter_metadata_of(source, _name_of(adapter.metadata))
        differences += [
            f"{adapter.path.name}: {difference}"
            for difference in _differences(adapter.metadata, wanted, _READ_OF_ADAPTER)
        ]
        n_keys += len(wanted)
    if modelfile is not None:
        differences += modelfile_faults(modelfile, target)
    shown = "; ".join(differences[:SHOWN])
    if len(differences) > SHOWN:
        shown += f"; and {len(differences) - SHOWN} more"
    runs = "; the Modelfile names the right files" if modelfile else ""
    fine = f"{n_keys} keys equal{runs}"
    return counted(len(differences), fine, shown)


def _method_difference(target: VerifyTarget) -> Iterator[str]:
    """Where the keys about the quantization method contradict the checkpoint or each other."""
    found = target.file.metadata
    method, is_trained = found.get(METHOD_KEY), target.quantization.name == target.checkpoint.qat
    if is_trained or method == "qat":
        if not (is_trained and method == "qat"):
            found_method = "missing" if method is None else _shown(method)
            wanted = (
                f"was trained for {target.quantization.name}"
                if is_trained
                else "was not trained for blocks"
            )
            yield f"{METHOD_KEY}: {found_method}, but the checkpoint {wanted}"
        return
    missing = [key for key in sorted(_OF_BLOCKS) if key not in found]
    if missing and len(missing) < len(_OF_BLOCKS):
        there = next(key for key in sorted(_OF_BLOCKS) if key in found)
        yield f"{missing[0]}: missing, but {there} is there"


def _name_of(metadata: Mapping[str, Any]) -> str:
    return str(metadata.get(_KEYS.General.NAME, ""))


def _differences(
    found: Mapping[str, Any],
    wanted: Iterable[MetadataEntry],
    read: tuple[str, ...],
    unread: frozenset[str] = frozenset(),
) -> Iterator[str]:
    """One text for each key that is missing, wrong or unexpected."""
    entries = {entry.key: entry for entry in wanted}
    tokens = entries.get(_KEYS.Tokenizer.LIST)
    names = tokens.value if tokens is not None and isinstance(tokens.value, list) else []
    for key, entry in entries.items():
        value = found.get(key, _ABSENT)
        if not _same_value(value, entry.value):
            yield f"{key}: {_difference(key, value, entry.value, names)}{_consequence(key)}"
    for key in sorted(found.keys() - entries.keys() - _OF_BLOCKS - unread):
        if key.startswith(read):
            yield f"{key}: unexpected value {_shown(found[key])}, which llama.cpp or llmkit reads"


def _same_value(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, float):
        return isinstance(found, float) and np.float32(found) == np.float32(wanted)
    if isinstance(wanted, list):
        return (
            isinstance(found, list)
            and len(found) == len(wanted)
            and all(type(a) is type(b) and a == b for a, b in zip(found, wanted, strict=True))
        )
    return type(found) is type(wanted) and bool(found == wanted)


def _difference(key: str, found: Any, wanted: Any, tokens: list[Any]) -> str:
    if found is _ABSENT:
        return "missing"
    if isinstance(wanted, list) and isinstance(found, list):
        if key == _KEYS.Tokenizer.TOKEN_TYPE:
            return _type_difference(found, wanted, tokens)
        return _list_difference(found, wanted)
    if isinstance(wanted, str) and isinstance(found, str) and len(wanted) > _SHORT:
        at = _first_difference(found, wanted)
        start = max(0, at - 10)
        return (
            f"differs at character {at}: {_shown(found[start:])} instead of "
            f"{_shown(wanted[start:])}"
        )
    return f"{_shown(found)} instead of {_shown(wanted)}"


def _list_difference(found: list[Any], wanted: list[Any]) -> str:
    at = _first_difference(found, wanted)
    if len(found) == len(wanted):
        differing = [i for i, pair in enumerate(zip(found, wanted, strict=True)) if _unequal(*pair)]
        if len(differing) == 2:
            first, second = differing
            if found[first] == wanted[second] and found[second] == wanted[first]:
                return (
                    f"items {first} and {second} are swapped: {_shown(wanted[first])} and "
                    f"{_shown(wanted[second])}"
                )
        size = f"{len(differing)} of {len(wanted)} items differ, first item {at}: "
    else:
        n = abs(len(found) - len(wanted))
        size = f"{n} items {'missing' if len(found) < len(wanted) else 'too many'}, "
        size += f"first difference at item {at}: "
    return f"{size}{_item(found, at)} instead of {_item(wanted, at)}"


def _type_difference(found: list[Any], wanted: list[Any], tokens: list[Any]) -> str:
    at = _first_difference(found, wanted)
    if len(found) != len(wanted) or at >= len(tokens):
        return _list_difference(found, wanted)
    n = sum(_unequal(a, b) for a, b in zip(found, wanted, strict=True))
    more = f", and {n - 1} more" if n > 1 else ""
    return (
        f"{_type_name(found[at])} instead of {_type_name(wanted[at])} for token {at} "
        f"{_shown(tokens[at])}{more}"
    )


def _type_name(number: Any) -> str:
    try:
        return gguf.TokenType(number).name if isinstance(number, int) else repr(number)
    except ValueError:
        return f"unknown type {number}"


def _first_difference(found: Any, wanted: Any) -> int:
    pairs = enumerate(zip_longest(found, wanted, fillvalue=_ABSENT))
    return next(i for i, (a, b) in pairs if _unequal(a, b))


def _unequal(a: Any, b: Any) -> bool:
    return type(a) is not type(b) or a != b


def _item(items: list[Any], at: int) -> str:
    return _shown(items[at]) if at < len(items) else "nothing"


def _shown(value: Any) -> str:
    text = f"{value:.7g}" if isinstance(value, float) else repr(value)  # float32 has no more
    return text if len(text) <= _SHORT else f"{text[: _SHORT - 3]}..."


def _consequence(key: str) -> str:
    arch, _, size = key.partition(".")
    generic = f"{{arch}}.{size}" if arch in FAMILIES else key
    consequence = _CONSEQUENCES.get(key) or _CONSEQUENCES.get(generic)
    return f" ({consequence})" if consequence else ""


def _file_type_difference(target: VerifyTarget) -> Iterator[str]:
    """A difference if most matrices do not have the type that the file states."""
    config = target.checkpoint.config
    types = [
        (found.ggml_type, target.quantization.type_of(entry, config).ggml_type)
        for entry in tensor_specs(config)
        if entry.is_matrix and (found := target.file.tensors.get(entry.gguf_name)) is not None
    ]
    others = [found for found, wanted in types if found != wanted]
    if 2 * len(others) > len(types):
        yield (
            f"{_KEYS.General.FILE_TYPE}: {target.quantization.name}, but {len(others)} of "
            f"{len(types)} matrices are {others[0].name.lower()}"
            f"{_consequence(_KEYS.General.FILE_TYPE)}"
        )
