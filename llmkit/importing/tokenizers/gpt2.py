"""GPT-2's own tokenizer."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from llmkit.errors import CheckpointError, ConfigError
from llmkit.importing.tokenizers.imported import ImportedTokenizer, as_own
from llmkit.tokenizer import Tokenizer
from llmkit.tokenizer_files import download_gpt2, load_tokenizer

_TIKTOKEN = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
_HUB_NAMES = ("openai-community/gpt2", "gpt2")


def gpt2_tokenizer(origin: str) -> ImportedTokenizer:
    """GPT-2's own tokenizer, from what tiktoken or Hugging Face have kept, or from the hub."""
    folder = _tiktoken_files()
    if folder is not None:
        return as_own(folder, f"gpt2, from tiktoken's cache ({origin})")
    path = _hub_file()
    if path is not None:
        return as_own(load_tokenizer(path.parent), f"gpt2, from Hugging Face's cache ({origin})")
    try:
        return as_own(download_gpt2(), f"gpt2 ({origin})")
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
