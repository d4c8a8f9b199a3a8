"""Options of every kind of fine-tuning, and what is printed at its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmkit.cli.option_groups import with_options
from llmkit.cli.options import (
    DeviceOption,
    JsonOption,
    ResumeOption,
    print_json,
    save_loss_curve,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from llmkit.finetuning.run import FinetuneResult

OutOption = Annotated[Path, typer.Option(metavar="DIR", help="Checkpoint folder to write.")]


@dataclass(frozen=True)
class Tuning:
    """The options that every kind of fine-tuning has."""

    config: dict[str, Any]  # fields of FinetuneConfig
    arguments: dict[str, Any]  # of the function that trains
    sweep: list[str] | None
    plot: Path | None
    json_output: bool

    def run(
        self,
        function: Callable[..., FinetuneResult],
        out: Path,
        show: Callable[[Any], None],
        figure: Callable[[Any], Figure] | None = None,
        config: Mapping[str, Any] = MappingProxyType({}),
        **arguments: Any,
    ) -> None:
        """Run the function once, or once for each variant, and print what came out.

        `figure` draws a single result; `config` has more fields of FinetuneConfig. Raises
        ConfigError where there is nothing that could be drawn.
        """
        from llmkit.finetuning.config import FinetuneConfig
        from llmkit.validation import validated

        arguments |= self.arguments
        arguments["config"] = validated(
            FinetuneConfig, {**self.config, **(config or {})}, "finetune"
        )
        if self.plot is not None:
            from llmkit.errors import ConfigError
            from llmkit.export.report.plots import check_plot_path

            if figure is None and not self.sweep:
                raise ConfigError("--plot needs --sweep here; give --sweep too, or omit --plot")
            check_plot_path(self.plot)
        if self.sweep:
            _sweep(function, out, self.sweep, self.json_output, self.plot, arguments)
            return
        result = function(out=out, **arguments)
        save_loss_curve(result.checkpoint, result.metrics)
        if self.plot is not None and figure is not None:
            from llmkit.export.report.plots import save_figure

            save_figure(figure(result), self.plot)
        if self.json_output:
            print_json(asdict(result))
            return
        from llmkit.console import command, results

        show(result)
        folder = result.checkpoint
        words = command("export", folder, "--out", f"{folder}-export")
        results.print(f"next: {words}", markup=False, soft_wrap=True)


def tuning(
    lora: Annotated[
        int | None,
        typer.Option(
            metavar="RANK",
            help="Train LoRA adapters of this rank (16 if only other LoRA options are given).",
            show_default="full fine-tuning",
        ),
    ] = None,
    lora_alpha: Annotated[
        float | None,
        typer.Option(metavar="X", help="LoRA scaling alpha.", show_default="twice the rank"),
    ] = None,
    lora_dropout: Annotated[
        float, typer.Option(metavar="P", help="LoRA dropout, 0 or more and below 1.")
    ] = 0.0,
    lora_targets: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Matrices to adapt, for example attn.c_attn.",
            show_default="all in every block",
        ),
    ] = None,
    qlora: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE",
            help="Train LoRA adapters on a base quantized to this GGUF type (for example q4_0).",
        ),
    ] = None,
    qat: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE",
            help="Quantization-aware training for this GGUF type (for example q4_0).",
        ),
    ] = None,
    epochs: Annotated[float, typer.Option(metavar="X", help="Passes over the records.")] = 3,
    batch_size: Annotated[
        int | None, typer.Option(metavar="N", help="Records per training step.", show_default="8")
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            metavar="X", help="Peak learning rate.", show_default="depends on the command"
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            metavar="N", help="Random seed; the same seed gives the same split and weights."
        ),
    ] = 1337,
    add_tokens: Annotated[
        bool,
        typer.Option("--add-tokens", help="Add tokens that the prompt format or the labels need."),
    ] = False,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUES",
            help="Train variants and compare them: lora=8,16,full, qlora=q8_0,q4_0, mask-prompt "
            "(instruct), unfreeze=head,1,all (classify). May be repeated.",
            show_default=False,
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Plot the sweep, or a classifier's confusion matrix (.png or .svg).",
        ),
    ] = None,
    resume: ResumeOption = False,
    device: DeviceOption = None,
    json_output: JsonOption = False,
) -> Tuning:
    """What the options stand for. Raises ConfigError."""
    from llmkit.finetuning.config import DEFAULT_LORA_RANK
    from llmkit.lora import LoRAConfig
    from llmkit.validation import validated

    adapters = None
    asked = (lora, qlora, lora_alpha, lora_targets, lora_dropout or None)
    if any(option is not None for option in asked):
        fields: dict[str, Any] = {"rank": lora if lora is not None else DEFAULT_LORA_RANK}
        fields |= {"alpha": lora_alpha, "dropout": lora_dropout}
        if lora_targets is not None:
            fields["targets"] = tuple(part.strip() for part in lora_targets.split(","))
        adapters = validated(LoRAConfig, fields, "LoRA")
    training = {"batch_size": batch_size, "learning_rate": learning_rate, "seed": seed}
    return Tuning(
        {
            "lora": adapters,
            "qlora": qlora,
            "qat": qat,
            "epochs": epochs,
            "add_tokens": add_tokens,
        },
        {"training": training, "resume": resume, "device": device},
        sweep,
        plot,
        json_output,
    )


with_tuning = with_options("tuning", tuning)


def _sweep(
    function: Callable[..., FinetuneResult],
    out: Path,
    sweep_options: list[str],
    json_output: bool,
    plot: Path | None,
    arguments: dict[str, Any],
) -> None:
    """Run the function once for each variant, and print and draw the comparison."""
    from llmkit.console import results
    from llmkit.export.report.plots import save_figure
    from llmkit.export.report.sweep import sweep_figure, sweep_table
    from llmkit.finetuning.sweep import sweep, variants

    compared = sweep(function, variants(sweep_options), out, **arguments)
    if plot is not None:
        save_figure(sweep_figure(compared), plot)
    if json_output:
        print_json(asdict(compared))
    else:
        results.print(sweep_table(compared))
