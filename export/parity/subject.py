"""What is proved: a GGUF file, its adapter, and the checkpoint that they have to equal."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llmkit.checkpoint import Checkpoint, build_model
from llmkit.export.adapter import adapter_of, add_file_adapter
from llmkit.export.gguf_file import GGUFFile, config_of, dequantized_weights, read_gguf
from llmkit.model.gpt import GPT
from llmkit.model.storage import Quantization


@dataclass(frozen=True)
class Subject:
    """A checkpoint and a file of it."""

    checkpoint: Checkpoint
    file: GGUFFile
    adapter: GGUFFile | None  # LoRA matrices that the file names; None where there are none
    quantization: Quantization

    def file_model(self) -> GPT:
        """PyTorch on the file's own numbers, in evaluation mode: its dequantized weights."""
        weights = dequantized_weights(self.file)
        model = build_model(config_of(self.file), weights, str(self.file.path))
        if self.adapter is not None:
            add_file_adapter(model, self.adapter)
        return model.eval()


def open_subject(checkpoint: Checkpoint, gguf: Path) -> Subject:
    """Read a GGUF file and its adapter. Raises GGUFError or QuantizationError for no such file."""
    file = read_gguf(gguf)
    return Subject(checkpoint, file, adapter_of(file), file.quantization())
