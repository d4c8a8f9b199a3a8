"""Names of the files in a checkpoint folder, and of the folders of kept checkpoints."""

from __future__ import annotations

from pathlib import Path

CONFIG_FILE = "config.json"
MODEL_FILE = "model.safetensors"
ADAPTER_FILE = "adapter_model.safetensors"  # PEFT's names, so that PEFT loads the folder
ADAPTER_CONFIG_FILE = "adapter_config.json"
TOKENIZER_FILE = "tokenizer.json"
BLOCKS_FILE = "blocks.safetensors"  # what training for blocks made of the matrices
CHECKPOINT_FILES = (
    CONFIG_FILE,
    MODEL_FILE,
    BLOCKS_FILE,
    ADAPTER_FILE,
    ADAPTER_CONFIG_FILE,
    TOKENIZER_FILE,
)
TRAINING_FOLDER = "training"
HELD_OUT_FILE = "held_out.jsonl"  # records that fine-tuning held out
TRAINED_FILE = "trained.jsonl"  # records that fine-tuning trained on


def run_of_kept(checkpoint: Path) -> Path | None:
    """The folder of the run that keeps this checkpoint; None where it is not a kept one."""
    place = checkpoint.resolve()
    training = place.parent.parent if place.parent.name == "saves" else place.parent
    is_kept = place.parent.name == "saves" or place.name == "best"
    return training.parent if is_kept and training.name == TRAINING_FOLDER else None
