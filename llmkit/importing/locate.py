"""Where the source of an import is."""

from __future__ import annotations

import json
import re
from pathlib import Path

from llmkit.checkpoint.layout import CONFIG_FILE
from llmkit.errors import ConfigError

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def is_llmkit_checkpoint(folder: Path) -> bool:
    """Whether a folder's config.json is one that llmkit writes."""
    try:
        content = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "prompt_format" in content


def local(source: str) -> Path:
    """A path as it is; a Hugging Face id downloaded."""
    path = Path(source)
    if path.exists() or not _HUB_ID.fullmatch(source) or source.startswith("."):
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    try:
        return Path(
            snapshot_download(
                source,
                allow_patterns=["*.json", "*.safetensors", "merges.txt", "*.model"],
            )
        )
    except Exception as error:  # every failure of the network has its own type
        raise ConfigError(
            f"{source} is not a file or folder here, and could not be downloaded from Hugging Face "
            f"({type(error).__name__}); check the name and the network"
        ) from error
