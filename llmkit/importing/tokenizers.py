"""The tokenizer of an imported model, from whatever a program keeps of it.

llmkit and llama.cpp need byte-level BPE with all 256 bytes and a special token that ends a text.
What a vocabulary lacks of these is added behind it, as tokens that the model never says.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, models
from tokenizers import Tokenizer as HFTokenizer

from llmkit.errors import CheckpointError, ConfigError
from llmkit.files import cannot_read
from llmkit.importing.pickles import read_pickle
from llmkit.importing.source import Source, inside
from llmkit.tokenizer import (
    END_OF_TEXT,
    Tokenizer,
    byte_alphabet,
    byte_level,
    download_gpt2,
    is_of_words,
    load_tokenizer,
)

GPT2_VOCAB = 50257
_GPT2_ROWS = 50304  # padded to a multiple of 64 or 128
_TIKTOKEN = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
_HUB_NAMES = ("openai-community/gpt2", "gpt2")
_CHARACTERS = (
    "meta.pkl", "vocab.json", "chars.json", "stoi.json", "itos.json", "tokenizer.pkl"
)  # fmt: skip
_MAX_CHARACTER_BYTES = 1 << 20
_FILES = ("tokenizer.json", "encoder.json", "vocab.bpe", "merges.txt", *_CHARACTERS)
_SPECIAL = re.compile(r"<[^<>\s]+>|\[[A-Z_]+\]")
_END_TOKENS = (END_OF_TEXT, "<|eos|>", "[EOS]", "<eos>", "</s>", "<EOS>", "<|end|>", "<|im_end|>")


# Special tokens that llama.cpp takes for an end of generation by their text (llama-vocab.cpp:
# the ends of known models, and padding, repository and file separators of fill-in-the-middle).
_ENDS_IN_LLAMA_CPP = frozenset(
    (
        *(
            "<|eot_id|>",
            "<|im_end|>",
            "<|end|>",
            "<|return|>",
            "<|call|>",
            "<|flush|>",
            "<|calls|>",
        ),
        *("<end_of_turn>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>"),
        *(
            "<end_of_utterance>",
            "<eos>",
            "</s>",
            "<turn|>",
            "<|fim_pad|>",
            "<fim-pad>",
            "<fim_pad>",
        ),
        *(
            "<PAD>",
            "[PAD]",
            "<|fim_repo|>",
            "<|repo_name|>",
            "<fim-repo>",
            "<REPO>",
            "<|file_sep|>",
        ),
    )
)


@dataclass(frozen=True)
class ImportedTokenizer:
    """A tokenizer, where it is from, and what of it cannot be kept."""

    tokenizer: Tokenizer
    n_own: int  # tokens that the model was trained with; those behind are never said
    origin: str
    end: str = END_OF_TEXT
    notes: tuple[str, ...] = ()


def find_tokenizer(
    source: Source, option: str | None, n_rows: int, implied: str | None
) -> ImportedTokenizer:
    """The tokenizer of a model with `n_rows` rows of token embeddings.

    Raises ConfigError where none is found, or CheckpointError where it has more tokens.
    """
    found = _from_option(option) if option else _beside(source) or _inside(source)
    if found is None and implied == "gpt2" and GPT2_VOCAB <= n_rows <= _GPT2_ROWS:
        found = _gpt2("assumed: the vocabulary has GPT-2's size")
    if found is None:
        raise ConfigError(
            f"no tokenizer was found for the {n_rows:,} tokens of the model; give --tokenizer: a "
            "tokenizer.json or folder, gpt2, a meta.pkl or JSON of characters, or chars:FILE for "
            "a text whose sorted characters are the vocabulary"
        )
    if found.n_own > n_rows:
        raise CheckpointError(
            f"the tokenizer ({found.origin}) has {found.n_own:,} tokens, but the model has "
            f"{n_rows:,} rows of token embeddings; give the tokenizer it was trained with"
        )
    is_padded = source.settings.get("vocab_size") == found.n_own
    if found.n_own < n_rows and "characters" in found.origin and not is_padded:
        raise CheckpointError(
            f"the vocabulary ({found.origin}) has {found.n_own:,} characters, but the model has "
            f"{n_rows:,} rows of token embeddings; give the text or file it was trained with"
        )
    return found


def _from_option(option: str) -> ImportedTokenizer:
    if option == "gpt2":
        return _gpt2("your option")
    kind, separator, name = option.partition(":")
    if separator and kind == "chars":
        path = Path(name)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ConfigError(cannot_read(path, error)) from error
        return from_characters(sorted(set(text)), f"the characters of {path.name}")
    path = Path(option)
    found = _from_folder(path) if path.is_dir() else _from_file(path) if path.is_file() else None
    if found is None:
        raise ConfigError(
            f"--tokenizer {option} is no tokenizer; give a tokenizer.json, a folder with one, "
            "gpt2, a meta.pkl or JSON of characters, or chars:FILE"
        )
    return found


def _beside(source: Source) -> ImportedTokenizer | None:
    """What lies in the source's folder."""
    return _from_folder(source.folder)


def _from_folder(folder: Path) -> ImportedTokenizer | None:
    for name in _FILES:
        inside(folder, name)  # raises for a link out of the folder
    if (folder / "tokenizer.json").is_file():
        return _from_file(folder / "tokenizer.json")
    if (folder / "encoder.json").is_file() and (folder / "vocab.bpe").is_file():
        return _own(load_tokenizer(folder), "encoder.json and vocab.bpe")
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        try:
            model = models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
        except Exception as error:  # the library raises bare Exception for every bad file
            raise CheckpointError(
                f"{folder}: vocab.json or merges.txt is damaged: {error}"
            ) from error
        hf = byte_level(model)
        ends = [t for t in _END_TOKENS if hf.token_to_id(t) is not None]
        hf.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ends])
        return _accepted(hf, "vocab.json and merges.txt", folder)
    for name in _CHARACTERS:
        if (folder / name).is_file() and (found := _from_file(folder / name)):
            return found
    for path in sorted(folder.glob("*.json")):  # under any other name
        if inside(folder, path.name).is_file() and path.stat().st_size < _MAX_CHARACTER_BYTES:
            with suppress(OSError, ValueError):
                if found := _characters_of(json.loads(path.read_text("utf-8")), path.name):
                    return found
    return None


def _from_file(path: Path) -> ImportedTokenizer | None:
    if path.suffix in (".pkl", ".pickle", ".pt", ".pth"):
        return _characters_of(read_pickle(path), path.name)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{cannot_read(path, error)}; give a JSON file, or chars:FILE") from error
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        for name in ("continuing_subword_prefix", "end_of_word_suffix"):
            if content["model"].get(name) and content["model"].get("type") == "BPE":
                raise CheckpointError(
                    f"{path.name} has BPE with a {name}, which llama.cpp's gpt2 tokenizer has not"
                )
        try:
            hf = HFTokenizer.from_file(str(path))
        except Exception as error:
            raise CheckpointError(f"{path} is not a tokenizer: {error}") from error
        return _accepted(hf, path.name, path.parent)
    return _characters_of(content, path.name)


def _inside(source: Source) -> ImportedTokenizer | None:
    """Characters that the checkpoint itself holds."""
    for name, content in source.extras.items():
        if isinstance(content, str):
            content = {name: content}  # only the entries that hold characters are strings
        found = _characters_of(content, f"the file: {name}")
        if found is not None:
            return found
    return None


def _characters_of(content: Any, origin: str) -> ImportedTokenizer | None:
    """A vocabulary of characters: itos or stoi, as a list or mapping, or one that holds them."""
    content = getattr(content, "__dict__", content)
    if isinstance(content, Mapping):
        for name in ("itos", "stoi", "chars", "char_to_id", "id_to_char", "vocab", "token_to_id",
                     "characters", "tokenizer"):  # fmt: skip
            inner = content.get(name)
            if isinstance(inner, str) and len(set(inner)) < len(inner):
                continue  # a path or a name
            if isinstance(inner, Mapping | list | tuple | str) and len(inner) > 1:
                found = _characters_of(inner, origin)
                if found is not None:
                    return found
        by_id = _by_id(content)
    elif isinstance(content, list | tuple | str):
        by_id = dict(enumerate(content))
    else:
        return None
    if not by_id or sorted(by_id) != list(range(len(by_id))):
        return None
    tokens = [by_id[i] for i in range(len(by_id))]
    if not all(isinstance(token, str) and token for token in tokens):
        return None
    if sum(len(t) == 1 or bool(_SPECIAL.fullmatch(t)) for t in tokens) < 0.9 * len(tokens):
        return None
    return from_characters(tokens, f"characters of {origin}")


def _by_id(content: Mapping[Any, Any]) -> dict[int, Any] | None:
    if all(isinstance(value, int) for value in content.values()):
        return {value: token for token, value in content.items()}
    try:
        return {int(number): token for number, token in content.items()}
    except (TypeError, ValueError):
        return None


def from_characters(characters: Sequence[str], origin: str) -> ImportedTokenizer:
    """A token for each character, in the given order; longer entries become special tokens."""
    alphabet = byte_alphabet()
    vocab: dict[str, int] = {}
    special: list[str] = []
    for character in characters:
        token = character
        if len(character) == 1:
            token = "".join(alphabet[byte] for byte in character.encode("utf-8", "replace"))
        else:
            special.append(character)
        if token in vocab:
            raise CheckpointError(f"{origin}: {character!r} occurs twice")
        vocab[token] = len(vocab)
    n_own = len(vocab)
    for symbol in alphabet:
        vocab.setdefault(symbol, len(vocab))
    merges: dict[tuple[str, str], None] = {}
    for character in characters:
        if len(character) == 1:
            first, *rest = (alphabet[byte] for byte in character.encode("utf-8", "replace"))
            for symbol in rest:
                merges[(first, symbol)] = None
                first += symbol
                vocab.setdefault(first, len(vocab))
    hf = byte_level(models.BPE(vocab=vocab, merges=list(merges)))
    end = next((token for token in _END_TOKENS if token in special), None)
    return completed(hf, n_own, origin, special, (), end)


def _accepted(hf: HFTokenizer, origin: str, folder: Path) -> ImportedTokenizer:
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


def _is_byte_level(model: Mapping[str, Any]) -> bool:
    return all(symbol in model["vocab"] for symbol in byte_alphabet())


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
    return next((token for token in _END_TOKENS if token in special), None)


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


def _own(tokenizer: Tokenizer, origin: str) -> ImportedTokenizer:
    return ImportedTokenizer(tokenizer, tokenizer.vocab_size, origin)


def _gpt2(origin: str) -> ImportedTokenizer:
    """GPT-2's own tokenizer, from what tiktoken or Hugging Face have kept, or from the hub."""
    folder = _tiktoken_files()
    if folder is not None:
        return _own(folder, f"gpt2, from tiktoken's cache ({origin})")
    path = _hub_file()
    if path is not None:
        return _own(load_tokenizer(path.parent), f"gpt2, from Hugging Face's cache ({origin})")
    try:
        return _own(download_gpt2(), f"gpt2 ({origin})")
    except CheckpointError as error:
        raise ConfigError(
            "the GPT-2 tokenizer is not on this machine and could not be downloaded; put "
            "encoder.json and vocab.bpe into a folder and give it as --tokenizer"
        ) from error


def _tiktoken_files() -> Tokenizer | None:
    default = Path(tempfile.gettempdir()) / "data-gym-cache"
    folder = Path(
        os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR") or default
    )
    names = {
        name: folder / hashlib.sha1((_TIKTOKEN + name).encode()).hexdigest()
        for name in ("encoder.json", "vocab.bpe")
    }
    if not all(path.is_file() for path in names.values()):
        return None
    with tempfile.TemporaryDirectory() as copies:
        for name, path in names.items():
            (Path(copies) / name).write_bytes(path.read_bytes())
        return load_tokenizer(Path(copies))


def _hub_file() -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    for name in _HUB_NAMES:
        found = try_to_load_from_cache(name, "tokenizer.json")
        if isinstance(found, str):
            return Path(found)
    return None
