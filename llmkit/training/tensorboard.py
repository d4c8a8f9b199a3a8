"""Evaluations of a run as an event file for TensorBoard."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from llmkit.errors import ConfigError
from llmkit.training.run_state import Metrics


class TensorBoard:
    """Writes into a folder if it is there: `--tensorboard` makes it, and `--resume` goes on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer: Any = None

    def start(self) -> None:
        """Make the folder. Raises ConfigError without tensorboard."""
        summary_writer()
        self.folder.mkdir(parents=True, exist_ok=True)

    def add(self, metrics: Metrics) -> None:
        """Write the numbers of a line of metrics.jsonl, under their names there."""
        if not self.folder.is_dir():
            return
        if self._writer is None:  # evaluations that the run has gone back behind are dropped
            self._writer = summary_writer()(str(self.folder), purge_step=metrics.step)
        for name, value in asdict(metrics).items():
            if value is not None and name != "step":
                self._writer.add_scalar(name, value, metrics.step)
        self._writer.flush()


def summary_writer() -> Any:
    """PyTorch's class. Raises ConfigError without tensorboard."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "--tensorboard needs tensorboard: pip install 'llmkit[tensorboard]'"
        ) from error
    return SummaryWriter
