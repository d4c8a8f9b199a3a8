"""LoRA: train a small correction to each matrix, and leave the matrix itself alone.

A frozen layer y = W x + b becomes y = W x + b + scale * B (A x). A is (rank, in), B (out, rank):
rank * (in + out) numbers train in the place of in * out. B starts at zero, so training starts
at the base model. Hu et al., 2021, https://arxiv.org/abs/2106.09685.

Names, shapes and settings are those of Hugging Face's PEFT, which reads these adapters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, cast

import torch
import torch.nn.functional as F
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from llmkit.architectures.base import Family, LanguageModel
from llmkit.architectures.registry import block_matrices, family_of, tensor_specs
from llmkit.errors import CheckpointError, ConfigError, unknown_name
from llmkit.quantization.packed import PackedLinear
from llmkit.validation import validated

TARGETS = tuple(block_matrices())

# Settings of PEFT that change what is computed and that this LoRA has not; each must be unset.
_FOREIGN = (
    *("use_dora", "use_rslora", "use_qalora", "use_bdlora", "lora_bias", "alora_invocation_tokens"),
    *("rank_pattern", "alpha_pattern", "layers_to_transform", "layer_replication"),
    *("exclude_modules", "modules_to_save", "target_parameters", "trainable_token_indices"),
)


def _several(names: object) -> object:
    """A single name as one of several."""
    return (names,) if isinstance(names, str) else names


def _in_order(names: tuple[str, ...]) -> tuple[str, ...]:
    """Targets in the order of TARGETS, each once. Raises ConfigError for an unknown one."""
    for name in names:
        if name not in TARGETS:
            raise ConfigError(unknown_name("LoRA target", name, TARGETS))
    if not names:
        raise ConfigError(f"LoRA needs at least one target; choose from: {', '.join(TARGETS)}")
    return tuple(name for name in TARGETS if name in names)


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class LoRAConfig:
    """How large the correction may be and which matrices of every block have one."""

    rank: Annotated[int, Field(gt=0)]
    # None becomes 2 x rank, a common rule of thumb: the scale is then 2 at every rank, so that
    # a comparison of ranks is not one of step sizes.
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0  # on what A reads, in training only
    # All four: Hu et al. tried attention alone, adapters on every matrix learn more
    # (Dettmers et al., 2023, https://arxiv.org/abs/2305.14314, figure 2).
    targets: Annotated[
        tuple[str, ...], Field(strict=False), BeforeValidator(_several), AfterValidator(_in_order)
    ] = TARGETS

    def __post_init__(self) -> None:
        if self.alpha is None:
            object.__setattr__(self, "alpha", 2.0 * self.rank)  # the dataclass is frozen

    @property
    def scale(self) -> float:
        """The factor of B A: alpha / rank."""
        return cast(float, self.alpha) / self.rank


class LoRALinear(nn.Module):
    """A frozen layer and its correction of low rank."""

    def __init__(self, base: nn.Linear | PackedLinear, config: LoRAConfig) -> None:
        super().__init__()
        device = base.blocks.device if isinstance(base, PackedLinear) else base.weight.device
        self.base = base.requires_grad_(False)
        self.config = config
        self.dropout = nn.Dropout(config.dropout)
        # Drawn on the CPU, so that a seed gives one start on every device.
        start = nn.init.kaiming_uniform_(
            torch.empty(config.rank, base.in_features), a=math.sqrt(5)
        )  # PEFT's start of A
        self.lora_A = nn.Parameter(start.to(device))  # (rank, in)
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, config.rank, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """The base's output and the correction: (..., in) -> (..., out)."""
        y: Tensor = self.base(x)
        low = F.linear(self.dropout(x), self.lora_A)  # (..., rank)
        return y + F.linear(low, self.lora_B) * self.config.scale


def add_lora(model: LanguageModel, config: LoRAConfig) -> None:
    """Wrap the targets of every block in place, and freeze everything but the adapters.

    Where the same adapters are already there, nothing changes. Raises ConfigError where others
    are.
    """
    if layers := lora_layers(model):
        found = next(iter(layers.values())).config
        if found != config:
            raise ConfigError(f"the model already has LoRA adapters ({found}); merge them first")
        return
    model.requires_grad_(False)
    for spec in tensor_specs(model.config):
        if spec.is_block_matrix and spec.module_in_block in config.targets:
            base = cast(nn.Linear | PackedLinear, model.get_submodule(spec.module))
            # A new module is in training mode, whatever the model is in.
            model.set_submodule(spec.module, LoRALinear(base, config).train(model.training))


def lora_layers(model: LanguageModel) -> dict[str, LoRALinear]:
    """The wrapped layers by the path of their module; empty without adapters."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoRALinear)}


def merged_delta(A: Tensor, B: Tensor, scale: float) -> Tensor:  # noqa: N803
    """What an adapter adds to its weight: scale * (B @ A), (out, in), computed in float32."""
    return scale * (B.detach().float() @ A.detach().float())


def merge_lora(model: LanguageModel) -> None:
    """Put nn.Linear layers with weight base + merged_delta, summed in float32, in place.

    Blocks of a packed base become floats. The model stays frozen.
    """
    for path, lora in lora_layers(model).items():
        weight = lora.base.weight.float() + merged_delta(
            lora.lora_A, lora.lora_B, lora.config.scale
        )
        with torch.device("meta"):  # no weights that are thrown away
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias=lora.base.bias is not None)
        linear.weight = nn.Parameter(weight)
        if lora.base.bias is not None:
            linear.bias = nn.Parameter(lora.base.bias.detach())
        model.set_submodule(path, linear.requires_grad_(False).train(model.training))


def n_trainable(model: nn.Module) -> int:
    """Number of parameters that train."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def peft_name(family: Family, path: str, half: str) -> str:
    """PEFT's name for `lora_A` or `lora_B` of a layer at this path."""
    return f"base_model.model.{family.huggingface.prefix}{path}.{half}.weight"


def adapter_tensors(model: LanguageModel) -> dict[str, Tensor]:
    """A (rank, in) and B (out, rank) of every wrapped layer, under PEFT's names; not copies."""
    tensors, family = {}, family_of(model.config)
    for path, lora in lora_layers(model).items():
        tensors[peft_name(family, path, "lora_A")] = lora.lora_A.detach()
        tensors[peft_name(family, path, "lora_B")] = lora.lora_B.detach()
    return tensors


def load_adapter(model: LanguageModel, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy the tensors of an adapter file into a wrapped model.

    Raises CheckpointError naming `source` and the first tensor that is missing, left over or of
    another shape; the model is then as it was.
    """
    wanted = adapter_tensors(model)
    for name in (*wanted, *tensors):
        if name not in tensors:
            raise CheckpointError(
                f"{source}: tensor {name} is missing; the adapter does not match the model"
            )
        if name not in wanted:
            raise CheckpointError(
                f"{source}: unexpected tensor {name}; the adapter does not match the model"
            )
        if tensors[name].shape != wanted[name].shape:
            raise CheckpointError(
                f"{source}: {name} has shape {tuple(tensors[name].shape)}, expected "
                f"{tuple(wanted[name].shape)} from the model and the adapter's rank"
            )
    for name, tensor in wanted.items():
        tensor.copy_(tensors[name])  # shares its memory with the parameter


def peft_config(config: LoRAConfig, base: str, family: Family) -> dict[str, Any]:
    """Content of adapter_config.json: PEFT wraps Hugging Face's model with it as we do ours."""
    alpha = cast(float, config.alpha)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": config.rank,
        "lora_alpha": int(alpha) if alpha.is_integer() else alpha,  # PEFT's is an int
        "lora_dropout": config.dropout,
        # PEFT compares the end of a module's name, and only these two parts are unambiguous.
        "target_modules": list(config.targets),
        "fan_in_fan_out": family.huggingface.is_in_out,
        "bias": "none",
    }


def lora_config_of(content: Mapping[str, Any], source: str) -> LoRAConfig:
    """The settings in an adapter_config.json, PEFT's own included.

    Raises CheckpointError naming `source` for another kind of adapter and for settings that
    change what is computed in a way that this LoRA cannot.
    """
    if content.get("peft_type") != "LORA" or not {"r", "lora_alpha"} <= set(content):
        raise CheckpointError(
            f"{source} is not a LoRA adapter config; it needs peft_type LORA, r and lora_alpha"
        )
    foreign = [name for name in _FOREIGN if content.get(name)]
    if content.get("bias", "none") != "none":
        foreign.append("bias")
    if foreign:
        raise CheckpointError(
            f"{source} sets {', '.join(foreign)}, which llmkit does not support; "
            "train the adapter without it"
        )
    modules = content.get("target_modules")
    if not isinstance(modules, list):
        raise CheckpointError(
            f"{source}: target_modules must be a list of names such as {TARGETS[0]}"
        )
    fields = {
        "rank": content["r"],
        "alpha": content["lora_alpha"],
        "dropout": content.get("lora_dropout", 0.0),
        "targets": [target for module in modules for target in _targets_of(str(module))],
    }
    try:
        return validated(LoRAConfig, fields, "LoRA")
    except ConfigError as error:
        raise CheckpointError(f"{source}: {error}") from error


def _targets_of(module: str) -> list[str]:
    """The targets that PEFT finds by the end of a name, which may be several."""
    matches = [target for target in TARGETS if f".{target}".endswith(f".{module}")]
    return matches or [module]
