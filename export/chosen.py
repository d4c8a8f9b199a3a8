"""Blocks chosen with a calibration text: what a file holds where rounding alone did not make it."""

from __future__ import annotations

from typing import Literal

from llmkit.checkpoint import Checkpoint, build_model
from llmkit.errors import QuantizationError
from llmkit.export.calibration import Calibration
from llmkit.export.gguf_write import entry_type, open_weights
from llmkit.export.metadata import ChosenBlocks
from llmkit.export.names import tensor_table
from llmkit.model.gpt import GPT
from llmkit.model.layerwise import error_feedback
from llmkit.model.storage import Quantization, is_matrix
from llmkit.quant.grids import grid_of
from llmkit.quant.types import QuantType

Method = Literal["rtn", "gptq"]


def chosen_blocks(
    source: Checkpoint, quantization: Quantization, text: Calibration | None, *, merged: bool
) -> ChosenBlocks | None:
    """The blocks that training made, those that are to be chosen with `text`, or None: rounding."""
    if quantization.name == source.qat:
        return ChosenBlocks("qat", None, source.trained_blocks())
    return choose_blocks(source, quantization, text, merged=merged) if text else None


def choose_blocks(
    source: Checkpoint, quantization: Quantization, text: Calibration, *, merged: bool
) -> ChosenBlocks:
    """Error feedback (GPTQ) of every matrix whose type has numbers to choose.

    `merged`: with the checkpoint's adapter in the weights. Raises QuantizationError where no
    matrix has such a type.
    """
    types = {
        name: qtype
        for name, qtype in stored_types(source, quantization).items()
        if grid_of(qtype) is not None
    }
    if not types:
        raise QuantizationError(
            f"method gptq has nothing to choose in {quantization.name}: it is for q8_0 and for "
            "types of 4 to 6 bits; leave --method out"
        )
    model = open_model(source, merged=merged)
    return ChosenBlocks("gptq", text.sha256, error_feedback(model, types, text.tokens))


def open_model(source: Checkpoint, *, merged: bool) -> GPT:
    """The model whose weights a file is made of, in evaluation mode."""
    with open_weights(source, merged=merged) as tensors:
        weights = {name: tensors.get_tensor(name).float() for name in tensors.keys()}  # noqa: SIM118
    return build_model(source.config, weights, str(source.folder)).eval()


def stored_types(source: Checkpoint, quantization: Quantization) -> dict[str, QuantType]:
    """The type of every matrix, by its name in the checkpoint."""
    return {
        entry.checkpoint_name: entry_type(entry, quantization, source.config)
        for entry in tensor_table(source.config)
        if is_matrix(entry.checkpoint_name, entry.shape)
    }
