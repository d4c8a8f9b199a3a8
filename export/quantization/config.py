"""How the matrices of an export are quantized: which types, and who chooses the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path

from llmkit.architectures.registry import tensor_specs
from llmkit.checkpoint.checkpoint import Checkpoint
from llmkit.console import say
from llmkit.errors import ConfigError
from llmkit.export.gguf.metadata import ChosenBlocks
from llmkit.export.gguf.writer import open_weights
from llmkit.export.quantization.budget import Budget, TypePlan, plan
from llmkit.export.quantization.calibration import Calibration, calibration_of
from llmkit.export.quantization.imatrix import ImportanceFile, read_importance_file
from llmkit.export.quantization.prequantized import (
    Method,
    by_error_feedback,
    by_importance,
    check_error_feedback,
    check_inputs,
    open_model,
    stored_types,
)
from llmkit.files import StrPath, optional_path
from llmkit.quant.types import QuantType, quant_type
from llmkit.quantization.tensor_types import CUSTOM, Quantization, quantization

DEFAULT_QUANTS = ("f16", "q8_0", "q4_0")


@dataclass(frozen=True)
class QuantConfig:
    """What a user asks for. Types come from `quants`, or are the best that a `budget` has room for.

    `method` rtn rounds each weight; gptq chooses each number in the blocks by what the model reads
    in the text `calibration`. Raises ConfigError for what does not go together.
    """

    # Names, or one text of them joined by commas; None: DEFAULT_QUANTS, or what training made.
    quants: Sequence[str] | None = None
    method: Method = "rtn"
    calibration: StrPath | None = None  # None: what the model was trained on
    imatrix: StrPath | None = None  # importances for rtn
    budget: Budget | None = None
    tensor_types: Mapping[str, str] = field(default_factory=dict)  # by patterns of GGUF names

    def __post_init__(self) -> None:
        if isinstance(self.quants, str):
            names = [name.strip() for name in self.quants.split(",")]
            object.__setattr__(self, "quants", [name for name in names if name])
        if self.quants is not None and not self.quants:
            raise ConfigError("no quantization type given; name at least one, for example q4_0")
        if self.budget is not None and (self.quants is not None or self.tensor_types):
            raise ConfigError("a target size chooses the types; omit --quant and --tensor-type")
        check_inputs(self.method, self.calibration if self.budget is None else None, self.imatrix)
        if self.tensor_types and len(self.quants or DEFAULT_QUANTS) != 1:
            raise ConfigError("--tensor-type needs exactly one --quant")


@dataclass(frozen=True)
class Preparation:
    """A config for one checkpoint, read and measured."""

    source: Checkpoint
    merged: bool  # the checkpoint's adapter, if it has one, is part of the weights
    quantizations: list[Quantization]
    plan: TypePlan | None
    text: Calibration | None  # for error feedback
    importances: ImportanceFile | None

    def blocks(self, wanted: Quantization) -> ChosenBlocks | None:
        """Those that training made or that are chosen; None where all are rounded.

        Raises QuantizationError where a method has nothing to choose, or cannot.
        """
        if wanted.name == self.source.qat:
            return ChosenBlocks("qat", None, self.source.trained_blocks(), {})
        table, model = tensor_specs(self.source.config), self.source.config
        types = stored_types(table, model, wanted)
        if self.text is not None:
            return by_error_feedback(
                open_model(self.source, wanted, merged=self.merged), types, self.text
            )
        if self.importances is not None:
            with open_weights(self.source, wanted, merged=self.merged) as tensors:
                matrices = (
                    (name, tensors.get_tensor(name).float().numpy(), qtype)
                    for name, qtype in types.items()
                )
                return by_importance(matrices, table, self.importances)
        return None


def tensor_types(texts: Sequence[str]) -> dict[str, str]:
    """PATTERN=TYPE texts as a table. Raises ConfigError for a text that is none."""
    table = {}
    for text in texts:
        pattern, separator, qtype = text.partition("=")
        if not (pattern and separator):
            raise ConfigError(f"{text!r} is not PATTERN=TYPE; write for example 'blk.0.*=q8_0'")
        table[pattern] = quant_type(qtype).name
    return table


def prepare(source: Checkpoint, config: QuantConfig, *, merged: bool) -> Preparation:
    """Everything that can be refused before a file is written.

    Raises LlmkitError for unknown types, text or importances that do not go with the checkpoint,
    and blocks that it was trained on and that are to be others.
    """
    _check_trained(source, config, merged=merged)
    feeds_back = config.method == "gptq"
    wanted = [] if config.budget else _quantizations(source, config, merged=merged)
    if wanted and feeds_back:
        table = tensor_specs(source.config)
        check_error_feedback([stored_types(table, source.config, each) for each in wanted])
    given = optional_path(config.calibration)
    text = calibration_of(source, given) if feeds_back or config.budget else None
    planned = None
    if config.budget is not None and text is not None:
        planned = plan(source, config.budget, config.method, text, merged=merged)
    return Preparation(
        source,
        merged,
        [planned.quantization()] if planned else wanted,
        planned,
        text if feeds_back else None,
        read_importance_file(Path(config.imatrix)) if config.imatrix else None,
    )


def _check_trained(source: Checkpoint, config: QuantConfig, *, merged: bool) -> None:
    trained_on = None if merged else source.base_quant
    names = [quantization(name).name for name in config.quants or ()]
    rounds = config.method == "rtn" and config.imatrix is None
    if trained_on and not rounds:
        raise ConfigError(
            f"the adapter of {source.folder} was trained on rounded {trained_on} blocks; "
            "omit --method and --imatrix, or add --merge"
        )
    if trained_on and (set(names) - {trained_on} or config.budget or config.tensor_types):
        raise ConfigError(
            f"the adapter of {source.folder} was trained on {trained_on} blocks; "
            f"export it with --quant {trained_on}, or add --merge"
        )
    if source.qat and (source.qat in names or config.quants is None) and not rounds:
        raise ConfigError(
            f"{source.folder} already has trained {source.qat} blocks (--qat); "
            "omit --method and --imatrix"
        )
    others = [name for name in names if name != source.qat]
    if source.qat and others:
        say(
            f"{source.folder} was trained for {source.qat}; {', '.join(others)} will be made "
            "from its blocks"
        )


def _quantizations(source: Checkpoint, config: QuantConfig, *, merged: bool) -> list[Quantization]:
    own = (None if merged else source.base_quant) or source.qat
    names = config.quants if config.quants is not None else (own,) if own else DEFAULT_QUANTS
    wanted = [quantization(name) for name in dict.fromkeys(quantization(n).name for n in names)]
    if not config.tensor_types:
        return wanted
    chosen: dict[str, QuantType] = {}
    for pattern, qtype in config.tensor_types.items():
        matrices = {
            spec.gguf_name.removesuffix(".weight"): spec
            for spec in tensor_specs(source.config)
            if spec.is_matrix
        }
        matching = [s.checkpoint_name for name, s in matrices.items() if fnmatchcase(name, pattern)]
        if not matching:
            shown = [name for name, spec in matrices.items() if not spec.layer]  # one layer of all
            raise ConfigError(
                f"no matrix matches {pattern!r}; names are for example {', '.join(shown)}; "
                "* matches anything"
            )
        chosen |= dict.fromkeys(matching, quant_type(qtype))
    return [replace(wanted[0], name=CUSTOM, chosen=chosen)]
