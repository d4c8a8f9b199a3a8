"""The sha256 of what `export` and `train` write, to see that a change of structure changes none.

    python tests/tools/print_hashes.py > before.txt

Two runs agree on one machine with one number of threads only.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

from llmkit.api import (
    FinetuneConfig,
    LoRAConfig,
    QuantConfig,
    export,
    finetune_classify,
    finetune_instruct,
    train,
)
from llmkit.data.tales import tales

ROUNDED = QuantConfig(("f16", "q8_0", "q4_0", "q4_k_m"))
GPTQ = QuantConfig(("q4_0", "q4_k_m"), method="gptq")
SIZES = {"n_layer": 2, "n_head": 4, "n_embd": 256, "context_length": 128}
SHORT = {"steps": 4, "batch_size": 4, "eval_interval": 4}
TUNED: dict[str, Any] = {"batch_size": 4, "steps": 6}


def main() -> None:
    """Train, fine-tune and export in a temporary folder; print a line per file."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bases = _bases(folder)
        checkpoints = {**bases, **_finetuned(folder, bases["tied"])}
        for checkpoint in checkpoints.values():
            _print(folder, sorted(checkpoint.glob("*.safetensors")))
        for kind, checkpoint in checkpoints.items():
            own = kind in ("qlora", "qat")
            _exported(folder, checkpoint, f"{kind}-rounded", QuantConfig() if own else ROUNDED)
            if not own:
                _exported(folder, checkpoint, f"{kind}-gptq", GPTQ)
        _exported(folder, checkpoints["lora"], "lora-merged", ROUNDED, merge=True)


def _bases(folder: Path) -> dict[str, Path]:
    text, bases = folder / "text.txt", {}
    text.write_text("\n\n".join(itertools.islice(tales(1), 300)), encoding="utf-8")
    fifty = {**SHORT, "steps": 50, "eval_interval": 25}
    for kind, changes, training in (
        ("tied", {}, fifty),
        ("untied", {"tie_embeddings": False}, SHORT),
        ("no-bias", {"qkv_bias": False, "n_embd": 96}, {**SHORT, "optimizer": "adamw"}),
    ):
        bases[kind] = folder / kind
        train(text, bases[kind], vocab_size=400, model={**SIZES, **changes}, training=training)
    return bases


def _finetuned(folder: Path, base: Path) -> dict[str, Path]:
    asked, labelled = folder / "asked.json", folder / "labelled.csv"
    lines = [tale.splitlines()[0] for tale in itertools.islice(tales(2), 60)]
    records = [{"instruction": line[:24], "output": line[24:48]} for line in lines]
    asked.write_text(json.dumps(records), encoding="utf-8")
    with labelled.open("w", newline="", encoding="utf-8") as file:
        rows = [
            ("text", "label"),
            *((line[:60], ("ham", "spam")[i % 2]) for i, line in enumerate(lines)),
        ]
        csv.writer(file).writerows(rows)
    lora = LoRAConfig(rank=4)
    ways = {
        "lora": FinetuneConfig(lora=lora, add_tokens=True),
        "qlora": FinetuneConfig(lora=lora, qlora="q4_0", add_tokens=True),
        "qat": FinetuneConfig(qat="q4_0", add_tokens=True),
    }
    for kind, config in ways.items():
        finetune_instruct(base, asked, folder / kind, config=config, training=TUNED)
    config = FinetuneConfig(add_tokens=True, split=(0.8, 0.1, 0.1))
    finetune_classify(base, labelled, folder / "classifier", config=config, training=TUNED)
    return {kind: folder / kind for kind in (*ways, "classifier")}


def _exported(
    folder: Path, checkpoint: Path, name: str, quant_config: QuantConfig, *, merge: bool = False
) -> None:
    out = folder / "exports" / name
    export(checkpoint, out, quant_config, name="m", merge=merge, prove=False)
    _print(folder, sorted([*out.glob("*.gguf"), out / "Modelfile"]))


def _print(folder: Path, files: list[Path]) -> None:
    for file in files:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        print(digest[:16], file.relative_to(folder), flush=True)


if __name__ == "__main__":
    sys.exit(main())
