"""Blocks chosen with a calibration text: what a file holds where rounding alone did not make it."""

from __future__ import annotations

from typing import Literal

from llmkit.checkpoint import Checkpoint, build_model
from llmkit.errors import QuantizationError
from llmkit.export.calibration import Calibration
from llmkit.export.gguf_write import open_weights
from llmkit.export.layerwise import error_feedback
from llmkit.export.metadata import ChosenBlocks
from llmkit.model.storage import Quantization, is_matrix
from llmkit.quant.grids import grid_of

Method = Literal["rtn", "gptq"]


def choose_blocks(
    source: Checkpoint, quantization: Quantization, text: Calibration, *, merged: bool
) -> ChosenBlocks:
    """Error feedback (GPTQ) of every matrix whose type has numbers to choose.

    `merged`: with the checkpoint's adapter in the weights. Raises QuantizationError where no
    matrix has such a type.
    """
    with open_weights(source, merged=merged) as tensors:
        weights = {name: tensors.get_tensor(name).float() for name in tensors.keys()}  # noqa: SIM118
    stored = {
        name: quantization.type_of(name, tuple(tensor.shape), source.config)
        for name, tensor in weights.items()
        if is_matrix(name, tuple(tensor.shape))
    }
    types = {name: qtype for name, qtype in stored.items() if grid_of(qtype) is not None}
    if not types:
        raise QuantizationError(
            f"method gptq has nothing to choose in {quantization.name}: it is for q8_0 and for "
            "types of 4 to 6 bits; leave --method out"
        )
    model = build_model(source.config, weights, str(source.folder)).eval()
    return ChosenBlocks("gptq", text.sha256, error_feedback(model, types, text.tokens))
