"""Blocks that are more than rounded weights: chosen with a text, or with importances from one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from llmkit.checkpoint import Checkpoint, build_model
from llmkit.errors import QuantizationError
from llmkit.export.calibration import Calibration
from llmkit.export.gguf_write import entry_type, open_weights
from llmkit.export.imatrix import ImportanceFile
from llmkit.export.metadata import ChosenBlocks, hash_of_choice
from llmkit.export.names import tensor_table
from llmkit.model.config import GPTConfig
from llmkit.model.device import device_with_float64
from llmkit.model.gpt import GPT
from llmkit.model.layerwise import error_feedback
from llmkit.model.storage import Quantization, is_matrix
from llmkit.quant import quantize
from llmkit.quant.grids import grid_of
from llmkit.quant.types import QuantType

Method = Literal["rtn", "gptq"]


def by_error_feedback(
    model: GPT, types: Mapping[str, QuantType], text: Calibration
) -> ChosenBlocks:
    """GPTQ of every matrix in `types` whose type has numbers to choose.

    Raises QuantizationError where none has.
    """
    choosable = {name: qtype for name, qtype in types.items() if grid_of(qtype) is not None}
    if not choosable:
        raise QuantizationError(
            f"method gptq has nothing to choose in {', '.join({q.name for q in types.values()})}: "
            "it is for q8_0 and for types of 4 to 6 bits; leave --method out"
        )
    model = model.eval().to(device_with_float64())
    weights = dict(model.named_parameters())
    blocks = error_feedback(model, choosable, text.tokens)
    hashes = {
        name: hash_of_choice(weights[name].detach().cpu().numpy(), packed)
        for name, packed in blocks.items()
    }
    return ChosenBlocks("gptq", text.sha256, blocks, hashes)


def by_importance(
    source: Checkpoint,
    types: Mapping[str, QuantType],
    importances: ImportanceFile,
    *,
    merged: bool,
) -> ChosenBlocks:
    """Ggml's rounding with the squared error of each column weighed, as llama-quantize does.

    `merged`: with the checkpoint's adapter in the weights. Raises QuantizationError for importances
    of another width, or of a matrix whose type needs them and that has none.
    """
    names = {entry.checkpoint_name: entry.gguf_name for entry in tensor_table(source.config)}
    blocks, hashes = {}, {}
    with open_weights(source, merged=merged) as tensors:
        for name, qtype in types.items():
            weights = tensors.get_tensor(name).float().numpy()
            importance = importances.matrix.importance(names[name])
            blocks[name] = quantize(weights, qtype, name, importance)
            hashes[name] = hash_of_choice(weights, blocks[name])
    return ChosenBlocks("imatrix", importances.sha256, blocks, hashes)


def open_model(source: Checkpoint, *, merged: bool) -> GPT:
    """The model whose weights a file is made of, in evaluation mode."""
    with open_weights(source, merged=merged) as tensors:
        weights = {name: tensors.get_tensor(name).float() for name in tensors.keys()}  # noqa: SIM118
    return build_model(source.config, weights, str(source.folder)).eval()


def stored_types(config: GPTConfig, quantization: Quantization) -> dict[str, QuantType]:
    """The type of every matrix, by its name in the checkpoint."""
    return {
        entry.checkpoint_name: entry_type(entry, quantization, config)
        for entry in tensor_table(config)
        if is_matrix(entry.checkpoint_name, entry.shape)
    }
