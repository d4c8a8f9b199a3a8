"""Whether llama.cpp's tokenizer gives the checkpoint's ids and bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import gguf

from llmkit.architectures.registry import FAMILIES
from llmkit.checkpoint.checkpoint import Checkpoint
from llmkit.export.check import Outcome, counted
from llmkit.export.gguf.reader import GGUFFile
from llmkit.export.llamacpp.runtime import LlamaCpp
from llmkit.export.verify.target import VerifyTarget
from llmkit.export.verify.tokenizer_stress_texts import HARD_TEXTS, fuzzed_texts, long_runs
from llmkit.tokenizer import GPT2_SPLIT, LLAMA3_SPLIT, Tokenizer

N_FUZZED = 2000
_SHOWN_IDS, _SHOWN_TEXT = 4, 40
_KEYS = gguf.Keys.Tokenizer
# Of these keys llama.cpp makes its tokenizer; it also knows some models by their name.
_VOCAB_SIZES = [gguf.Keys.LLM.VOCAB_SIZE.format(arch=name) for name in FAMILIES]
_READ = ("tokenizer.", "general.architecture", "general.name", *_VOCAB_SIZES)
_equal: dict[str, int] = {}  # tokenizers without a difference: in how many texts


@dataclass(frozen=True)
class _TextFault:
    """A text that llama.cpp tokenizes differently."""

    text: str
    found: list[int]
    wanted: list[int]
    parse_special: bool = False


def tokenizer_check(target: VerifyTarget, llama: LlamaCpp, texts: Sequence[str]) -> Outcome:
    """Same ids for texts, same bytes and ends for tokens. Value: texts and tokens that differ.

    `texts`: the user's own, beside hard, fuzzed and long ones and every token's own text. A
    process compares the latter once for all files with the same tokenizer, as an export's are.
    """
    source = target.checkpoint
    tokenizer = source.tokenizer
    key = _tokenizers(target)
    n_texts = _equal.get(key, 0)
    faults: list[_TextFault] = []
    token_faults: list[str] = []
    if not n_texts:
        n_texts, faults = _built_in_faults(target, llama)
        token_faults = list(_token_faults(llama, source))
        if not faults and not token_faults:
            _equal[key] = n_texts
    if not faults and _can_split_long_texts(target):
        n_texts += len(texts)
        faults = list(_text_faults(llama, tokenizer, texts))
    parts = []
    if faults:
        parts.append(_text_of(faults[0], tokenizer, target.file))
        if len(faults) > 1:
            parts.append(f"{len(faults) - 1} more texts differ")
    if token_faults:
        parts.append(token_faults[0])
        if len(token_faults) > 1:
            parts.append(f"{len(token_faults) - 1} more tokens differ")
    fine = f"{n_texts} texts have equal ids and bytes; all {tokenizer.vocab_size} tokens are equal"
    return counted(len(faults) + len(token_faults), fine, "; ".join(parts))


def _tokenizers(target: VerifyTarget) -> str:
    """A hash of all that the two tokenizers are made of."""
    source, metadata = target.checkpoint, target.file.metadata
    read = {key: metadata[key] for key in sorted(metadata) if key.startswith(_READ)}
    parts = (source.tokenizer.hf.to_str(), sorted(source.stop_ids), read)
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _built_in_faults(target: VerifyTarget, llama: LlamaCpp) -> tuple[int, list[_TextFault]]:
    """How many texts were compared, and those that differ."""
    tokenizer = target.checkpoint.tokenizer
    texts = [
        *HARD_TEXTS,
        *_texts_with_special_tokens(tokenizer),
        *(tokenizer.decode([token_id]) for token_id in range(tokenizer.vocab_size)),
        *fuzzed_texts(N_FUZZED),
    ]
    faults = [*_text_faults(llama, tokenizer, texts), *_special_faults(llama, tokenizer)]
    if not faults and _can_split_long_texts(target):
        long_texts = long_runs()
        texts += long_texts
        faults = list(_text_faults(llama, tokenizer, long_texts))
    return len(texts), faults


def _can_split_long_texts(target: VerifyTarget) -> bool:
    # llama.cpp's other splits are recursive, and a long run of letters overflows their stack:
    # the process would end instead of the check.
    return target.file.metadata.get(_KEYS.PRE) in (GPT2_SPLIT, LLAMA3_SPLIT)


def _texts_with_special_tokens(tokenizer: Tokenizer) -> Iterator[str]:
    for token_id in sorted(tokenizer.special_ids):
        token = tokenizer.tokens[token_id]
        yield from (token, f"a{token}b", f"{token}{token}", f" {token} \n{token}", token[:-1])


def _text_faults(
    llama: LlamaCpp, tokenizer: Tokenizer, texts: Sequence[str]
) -> Iterator[_TextFault]:
    """Texts with other ids, or whose tokens do not give the text's bytes back."""
    n_tokens = min(llama.vocab_size, tokenizer.vocab_size)
    pieces = [llama.token_bytes(token_id) for token_id in range(n_tokens)]
    for text, wanted in zip(texts, tokenizer.encode_batch(texts), strict=True):
        found = llama.tokenize(text)
        is_back = max(found, default=0) < n_tokens and (
            b"".join(map(pieces.__getitem__, found)) == text.encode()
        )
        if found != wanted or not is_back:
            yield _TextFault(text, found, wanted)


def _special_faults(llama: LlamaCpp, tokenizer: Tokenizer) -> Iterator[_TextFault]:
    """Special tokens that llama.cpp does not find in a text when told to."""
    for token_id in sorted(tokenizer.special_ids):
        token = tokenizer.tokens[token_id]
        for before, after in (("", ""), ("a", "b"), ("\n", " ")):
            text = before + token + after
            found = llama.tokenize(text, parse_special=True)
            wanted = [*tokenizer.encode(before), token_id, *tokenizer.encode(after)]
            if found != wanted:
                yield _TextFault(text, found, wanted, parse_special=True)


def _token_faults(llama: LlamaCpp, source: Checkpoint) -> Iterator[str]:
    """Tokens with different bytes in llama.cpp, or that end generation in only one program."""
    tokenizer = source.tokenizer
    if llama.vocab_size != tokenizer.vocab_size:
        yield f"llama.cpp has {llama.vocab_size} tokens, the checkpoint {tokenizer.vocab_size}"
    for token_id in range(min(llama.vocab_size, tokenizer.vocab_size)):
        token = f"token {token_id} {tokenizer.tokens[token_id]!r}"
        found, wanted = llama.token_bytes(token_id), tokenizer.decode_bytes([token_id])
        if found != wanted:
            yield f"{token} decodes to {found!r} instead of {wanted!r} in llama.cpp"
        ends, shall_end = llama.is_end_of_generation(token_id), token_id in source.stop_ids
        if ends and not shall_end:
            yield f"{token} ends generation in llama.cpp, but not in the checkpoint"
        elif shall_end and not ends:
            yield f"{token} ends generation in the checkpoint, but not in llama.cpp"


def _text_of(fault: _TextFault, tokenizer: Tokenizer, file: GGUFFile) -> str:
    pairs = enumerate(zip_longest(fault.found, fault.wanted))
    at = next((i for i, (a, b) in pairs if a != b), None)
    shown = _shown_text(fault, tokenizer, at or 0)
    if at is None:
        return f"llama.cpp's tokens of {shown} do not decode to its bytes"
    ids = [_ids(sequence, at) for sequence in (fault.found, fault.wanted)]
    special = ", special tokens parsed," if fault.parse_special else ""
    names = [_names(sequence, at, tokenizer) for sequence in (fault.found, fault.wanted)]
    return (
        f"llama.cpp's ids of {shown}{special} differ at id {at}: {ids[0]} {names[0]} "
        f"instead of {ids[1]} {names[1]}; {_in_file(fault, at, tokenizer, file)}"
    )


def _shown_text(fault: _TextFault, tokenizer: Tokenizer, at: int) -> str:
    """The text, cut to what stands around the first token that differs."""
    if len(fault.text) <= _SHOWN_TEXT:
        return repr(fault.text)
    start = len(tokenizer.decode(fault.wanted[:at]))
    start = max(0, min(start - _SHOWN_TEXT // 4, len(fault.text) - _SHOWN_TEXT))
    end = start + _SHOWN_TEXT
    left, right = "..." * (start > 0), "..." * (end < len(fault.text))
    return f"{left}{fault.text[start:end]!r}{right}"


def _ids(ids: Sequence[int], at: int) -> str:
    more = ", ..." if len(ids) > at + _SHOWN_IDS else ""
    return f"[{', '.join(map(str, ids[at : at + _SHOWN_IDS]))}{more}]"


def _names(ids: Sequence[int], at: int, tokenizer: Tokenizer) -> str:
    tokens = tokenizer.tokens
    shown = ids[at : at + _SHOWN_IDS]
    return f"({' '.join(tokens[i] if i < len(tokens) else '?' for i in shown)})"


def _in_file(fault: _TextFault, at: int, tokenizer: Tokenizer, file: GGUFFile) -> str:
    """What differs in the file: a token, a merge, a type, or else the key of the split."""
    wanted_tokens = [tokenizer.tokens[token_id] for token_id in fault.wanted[at:]]
    return (
        _token_cause(fault, at, tokenizer, _list(file, _KEYS.LIST))
        or _merge_cause(wanted_tokens, tokenizer, _list(file, _KEYS.MERGES))
        or _type_cause(tokenizer, _list(file, _KEYS.TOKEN_TYPE))
        or f"tokens, merges and types are equal; {_KEYS.PRE} is {file.metadata.get(_KEYS.PRE)!r}"
    )


def _list(file: GGUFFile, key: str) -> list[Any]:
    value = file.metadata.get(key)
    return value if isinstance(value, list) else []


def _token_cause(fault: _TextFault, at: int, tokenizer: Tokenizer, tokens: list[Any]) -> str:
    """A token with a different name, if possible one at the difference."""
    ids = [*fault.wanted[at : at + 1], *fault.found[at : at + 1], *range(tokenizer.vocab_size)]
    for token_id in ids:
        wanted = tokenizer.tokens[token_id] if token_id < tokenizer.vocab_size else None
        found = tokens[token_id] if token_id < len(tokens) else None
        if found != wanted:
            if found is None or wanted is None:
                where = "missing in" if found is None else "only in"
                return f"token {token_id} {wanted or found!r} is {where} the file"
            return f"token {token_id} is {found!r} in the file instead of {wanted!r}"
    return ""


def _merge_cause(wanted_tokens: Iterable[str], tokenizer: Tokenizer, merges: list[Any]) -> str:
    """A merge that is missing, extra or of a different rank, if possible one of this text."""
    wanted = [f"{left} {right}" for left, right in tokenizer.merges]
    if merges == wanted:
        return ""
    found_set, wanted_set = set(map(str, merges)), set(wanted)
    missing = [merge for merge in wanted if merge not in found_set]
    used = [
        merge for token in wanted_tokens for merge in missing if merge.replace(" ", "") in token
    ]
    for merge in (*used, *missing):
        return f"merge {merge!r} is missing in the file"
    for merge in merges:
        if merge not in wanted_set:
            return f"merge {merge!r} is only in the file"
    moved = [merge for merge, other in zip(merges, wanted, strict=False) if merge != other]
    if len(moved) == 2:
        return f"merges {moved[1]!r} and {moved[0]!r} are swapped"
    order = f"merges are in a different order, first {moved[0]!r}"
    return order if moved else "the file repeats merges"


def _type_cause(tokenizer: Tokenizer, types: list[Any]) -> str:
    control = int(gguf.TokenType.CONTROL)
    for token_id, kind in enumerate(types[: tokenizer.vocab_size]):
        if (kind == control) != (token_id in tokenizer.special_ids):
            wanted = "CONTROL" if token_id in tokenizer.special_ids else "NORMAL"
            return f"token {token_id} {tokenizer.tokens[token_id]!r} must be {wanted} in the file"
    return ""
