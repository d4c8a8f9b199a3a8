"""The same fine-tuning several times with one thing changed, each in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from inspect import signature
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from llmkit.console import say
from llmkit.errors import ConfigError, unknown_name
from llmkit.finetuning.config import DEFAULT_LORA_RANK, FinetuneConfig
from llmkit.finetuning.run import FinetuneResult
from llmkit.lora import LoRAConfig
from llmkit.memory import peak_rss_bytes

FULL = "full"
# What can be swept, and the argument of the fine-tuning functions that holds it.
ARGUMENTS = {
    "lora": "config",
    "qlora": "config",
    "mask-prompt": "mask_prompt",
    "unfreeze": "unfreeze",
}
_EXAMPLES = {"lora": "8,16", "qlora": "q8_0,q4_0", "unfreeze": "head,1,all"}


@dataclass(frozen=True)
class Variant:
    """A run's name in the table and what is changed for it."""

    name: str
    changed: str
    value: str

    def applied(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The arguments of the fine-tuning function with this variant's change."""
        config: FinetuneConfig = arguments.get("config") or FinetuneConfig()
        if self.changed == "lora":
            return {**arguments, "config": replace(config, lora=self._lora(config))}
        if self.changed == "qlora":
            lora = config.lora or LoRAConfig(rank=DEFAULT_LORA_RANK)
            return {**arguments, "config": replace(config, lora=lora, qlora=self.value)}
        if self.changed == "mask-prompt":
            return {**arguments, "mask_prompt": self.value == "on"}
        return {**arguments, "unfreeze": self.value}

    def _lora(self, config: FinetuneConfig) -> LoRAConfig | None:
        if self.value == FULL:
            return None
        if not self.value.isdecimal() or int(self.value) < 1:
            raise ConfigError(f"--sweep lora={self.value}: use a number or {FULL}")
        # Alpha follows the rank, so that the ranks are compared and not the scales.
        return replace(config.lora or LoRAConfig(rank=1), rank=int(self.value), alpha=None)


@dataclass(frozen=True)
class SweepRow:
    """What one variant came to."""

    variant: str
    quality: float
    n_trained: int
    n_parameters: int
    peak_rss_bytes: int
    elapsed_s: float
    checkpoint: str


@dataclass(frozen=True)
class Sweep:
    """All variants of one seed on the same records."""

    quality_name: str
    higher_is_better: bool
    rows: list[SweepRow]


def variants(texts: Sequence[str]) -> list[Variant]:
    """Read `lora=8,16`, `mask-prompt`, `unfreeze=head,all`, ... Raises ConfigError."""
    found: list[Variant] = []
    for text in texts:
        changed, _, values = text.partition("=")
        if changed not in ARGUMENTS:
            raise ConfigError(f"--sweep {text}: {unknown_name('setting', changed, ARGUMENTS)}")
        if changed == "mask-prompt":
            values = values or "on,off"
            if set(values.split(",")) - {"on", "off"}:
                raise ConfigError(f"--sweep {text}: use on or off")
        if not values:
            raise ConfigError(
                f"--sweep {text}: give values, for example {changed}={_EXAMPLES[changed]}"
            )
        for value in dict.fromkeys(part.strip() for part in values.split(",")):
            found.append(Variant(f"{changed}-{value}", changed, value))
    return found


def sweep(
    function: Callable[..., FinetuneResult],
    chosen: Sequence[Variant],
    out: Path,
    **arguments: Any,
) -> Sweep:
    """Run `function` once for each variant, into `out`/NAME.

    Every run has its own process, so that its peak memory is its own. A run that is finished
    already is only read. Raises LlmkitError as the function does.
    """
    taken = signature(function).parameters
    for variant in chosen:
        name = ARGUMENTS[variant.changed]
        if name not in taken:
            possible = [setting for setting, name in ARGUMENTS.items() if name in taken]
            raise ConfigError(
                f"--sweep {variant.changed}: this command can only vary {', '.join(possible)}"
            )
    rows = []
    kind: type[FinetuneResult] = FinetuneResult
    plans = [(variant, variant.applied(arguments)) for variant in chosen]  # errors come first
    for variant, changed in plans:
        say(f"{variant.name}:")
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            run = pool.submit(_measured, function, {**changed, "out": out / variant.name})
            result, peak = run.result()
        kind = type(result)
        rows.append(
            SweepRow(
                variant.name,
                result.quality,
                result.n_trained,
                result.n_parameters,
                peak,
                result.last.elapsed_s,
                str(result.checkpoint),
            )
        )
    return Sweep(kind.quality_name, kind.higher_is_better, rows)


def _measured(
    function: Callable[..., FinetuneResult], arguments: dict[str, Any]
) -> tuple[FinetuneResult, int]:
    return function(**arguments), peak_rss_bytes()
