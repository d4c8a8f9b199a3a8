"""Training a GPT on text: `train` prepares, trains, resumes and knows when nothing is left."""

from llmkit.training.config import TrainingConfig, load_run_config
from llmkit.training.run import TrainingResult, train

__all__ = ["TrainingConfig", "TrainingResult", "load_run_config", "train"]
