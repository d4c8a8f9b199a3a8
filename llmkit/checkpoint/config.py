"""config.json: sizes, prompt format, and what else is known about the weights."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from llmkit.architectures.base import ModelConfig
from llmkit.architectures.gpt2 import GPT2
from llmkit.architectures.registry import family
from llmkit.checkpoint.layout import CONFIG_FILE
from llmkit.errors import CheckpointError, ConfigError
from llmkit.files import cannot_read, write_text
from llmkit.modelfiles.prompt_format import PromptFormat, prompt_format_from
from llmkit.validation import validated

FORMAT = 1  # goes up when older versions of llmkit cannot read what is written


@dataclass(frozen=True)
class CheckpointConfig:
    """The content of config.json."""

    model: ModelConfig
    prompt_format: PromptFormat
    labels: tuple[str, ...] = ()
    base_quant: str | None = None
    qat: str | None = None


def read_config(path: Path) -> CheckpointConfig:
    """Read a config.json. Raises CheckpointError for one that llmkit did not write."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.get("format", FORMAT) != FORMAT:
            raise ConfigError(
                f"{path} has format {content['format']}, but this llmkit reads format {FORMAT}; "
                "update llmkit"
            )
        known = family(content.get("architecture", GPT2.name))  # those without one are GPT-2's
        return CheckpointConfig(
            validated(known.config, content["model"], str(path)),
            prompt_format_from(content["prompt_format"], str(path)),
            tuple(str(label) for label in content.get("labels", ())),
            content.get("base_quant"),
            content.get("qat"),
        )
    except OSError as error:
        raise CheckpointError(cannot_read(path, error)) from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is not an llmkit config: it needs `model` and `prompt_format` ({error})"
        ) from error
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def refuse_checkpoint(out: Path) -> None:
    """Raise ConfigError where an export would write into a checkpoint, or where a file is."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; choose a folder with --out")
    path = out / CONFIG_FILE
    # A folder for transformers has a config.json too.
    if path.exists() and b'"architectures"' not in path.read_bytes():
        raise ConfigError(f"{out} is a checkpoint; choose another folder with --out")


def save_config(folder: Path, content: CheckpointConfig) -> None:
    """Write config.json."""
    fields = {
        "format": FORMAT,
        "architecture": content.model.architecture,
        "model": asdict(content.model),
        "prompt_format": content.prompt_format.to_dict(),
        **({"labels": list(content.labels)} if content.labels else {}),
        **({"base_quant": content.base_quant} if content.base_quant else {}),
        **({"qat": content.qat} if content.qat else {}),
    }
    write_text(folder / CONFIG_FILE, json.dumps(fields, indent=2, ensure_ascii=False) + "\n")
