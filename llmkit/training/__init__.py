"""Training a GPT on text: `train` prepares, trains, resumes and knows when nothing is left."""

from llmkit.training.config import TrainingConfig, load_run_config, preset_or_depth
from llmkit.training.dry_run import DryRun, dry_run
from llmkit.training.run import TrainingResult, train

__all__ = [
    "DryRun",
    "TrainingConfig",
    "TrainingResult",
    "dry_run",
    "load_run_config",
    "preset_or_depth",
    "train",
]
