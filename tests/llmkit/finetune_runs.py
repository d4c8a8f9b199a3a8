"""Fine-tuning that takes a tenth of a second: questions, settings and the call."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmkit.finetuning.config import FinetuneConfig
from llmkit.finetuning.instruct import InstructResult, finetune_instruct
from llmkit.lora import LoRAConfig
from llmkit.modelfiles.prompt_format import USER_ASSISTANT

ANIMALS = ("fox", "hare", "owl", "cat")
PLACES = ("hill", "sea", "barn", "road", "tree")
TRAINING: dict[str, Any] = {"steps": 6, "batch_size": 4, "eval_interval": 3, "warmup_steps": 1}
KINDS = {
    "full": FinetuneConfig(),
    "lora": FinetuneConfig(lora=LoRAConfig(rank=2, dropout=0.1)),
    "qlora": FinetuneConfig(lora=LoRAConfig(rank=2), qlora="q4_0"),
    "qat": FinetuneConfig(qat="q4_0"),
}


def records() -> list[dict[str, str]]:
    return [
        {"prompt": f"Where is the {animal} of the {place}?", "completion": f"At the {place}."}
        for place in PLACES
        for animal in ANIMALS
    ]


def write_questions(path: Path, content: Sequence[dict[str, Any]] | None = None) -> Path:
    lines = (json.dumps(record) for record in (records() if content is None else content))
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def instruct(
    base: Path,
    data: Path,
    out: Path,
    *,
    config: FinetuneConfig | None = None,
    training: dict[str, Any] | None = None,
    **changes: Any,
) -> InstructResult:
    options: dict[str, Any] = {"prompt_format": USER_ASSISTANT, "device": "cpu", **changes}
    training = {**TRAINING, **(training or {})}
    return finetune_instruct(base, data, out, config=config, training=training, **options)


def instruct_in_process(base: Path, data: Path, out: Path, kind: str, steps: int) -> None:
    """What a child process does: go on with the run; Ctrl-C is 130."""
    training = {"steps": steps, "eval_interval": 5}
    try:
        instruct(base, data, out, config=KINDS[kind], training=training, resume=True)
    except KeyboardInterrupt:
        sys.exit(130)
