"""The tokenizer of an imported model, from whatever a program keeps of it.

llmkit and llama.cpp need byte-level BPE with all 256 bytes and a special token that ends a text.
What a vocabulary lacks of these is added behind it, as tokens that the model never says.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from tokenizers import AddedToken, models
from tokenizers import Tokenizer as HFTokenizer

from llmkit.errors import CheckpointError, ConfigError
from llmkit.files import cannot_read
from llmkit.importing.source.source import Source, inside
from llmkit.importing.source.torch_files import read_pickle
from llmkit.importing.tokenizers.byte_level import accepted
from llmkit.importing.tokenizers.characters import characters_of, from_characters
from llmkit.importing.tokenizers.gpt2 import gpt2_tokenizer
from llmkit.importing.tokenizers.imported import END_TOKENS, ImportedTokenizer, as_own
from llmkit.tokenizer import byte_level
from llmkit.tokenizer_files import load_tokenizer

GPT2_VOCAB = 50257
_GPT2_ROWS = 50304  # padded to a multiple of 64 or 128
_CHARACTERS = (
    "meta.pkl", "vocab.json", "chars.json", "stoi.json", "itos.json", "tokenizer.pkl"
)  # fmt: skip
_MAX_CHARACTER_BYTES = 1 << 20
_FILES = ("tokenizer.json", "encoder.json", "vocab.bpe", "merges.txt", *_CHARACTERS)


def find_tokenizer(
    source: Source, option: str | None, n_rows: int, implied: str | None
) -> ImportedTokenizer:
    """The tokenizer of a model with `n_rows` rows of token embeddings.

    Raises ConfigError where none is found, or CheckpointError where it has more tokens.
    """
    found = _from_option(option) if option else _from_folder(source.folder) or _inside(source)
    if found is None and implied == "gpt2" and GPT2_VOCAB <= n_rows <= _GPT2_ROWS:
        found = gpt2_tokenizer("assumed: the vocabulary has GPT-2's size")
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
        return gpt2_tokenizer("your option")
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


def _from_folder(folder: Path) -> ImportedTokenizer | None:
    for name in _FILES:
        inside(folder, name)  # raises for a link out of the folder
    if (folder / "tokenizer.json").is_file():
        return _from_file(folder / "tokenizer.json")
    if (folder / "encoder.json").is_file() and (folder / "vocab.bpe").is_file():
        return as_own(load_tokenizer(folder), "encoder.json and vocab.bpe")
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        try:
            model = models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
        except Exception as error:  # the library raises bare Exception for every bad file
            raise CheckpointError(
                f"{folder}: vocab.json or merges.txt is damaged: {error}"
            ) from error
        hf = byte_level(model)
        ends = [t for t in END_TOKENS if hf.token_to_id(t) is not None]
        hf.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ends])
        return accepted(hf, "vocab.json and merges.txt", folder)
    for name in _CHARACTERS:
        if (folder / name).is_file() and (found := _from_file(folder / name)):
            return found
    for path in sorted(folder.glob("*.json")):  # under any other name
        if inside(folder, path.name).is_file() and path.stat().st_size < _MAX_CHARACTER_BYTES:
            with suppress(OSError, ValueError):
                if found := characters_of(json.loads(path.read_text("utf-8")), path.name):
                    return found
    return None


def _from_file(path: Path) -> ImportedTokenizer | None:
    if path.suffix in (".pkl", ".pickle", ".pt", ".pth"):
        return characters_of(read_pickle(path), path.name)
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
        return accepted(hf, path.name, path.parent)
    return characters_of(content, path.name)


def _inside(source: Source) -> ImportedTokenizer | None:
    """Characters that the checkpoint itself holds."""
    for name, content in source.extras.items():
        if isinstance(content, str):
            content = {name: content}  # only the entries that hold characters are strings
        found = characters_of(content, f"the file: {name}")
        if found is not None:
            return found
    return None
