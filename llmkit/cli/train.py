"""`llmkit train`."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from llmkit.cli.options import (
    DelimiterOption,
    DeviceOption,
    EncodingOption,
    JsonOption,
    NewTokenizerOption,
    ResumeOption,
    TextColumnOption,
    VocabSizeOption,
    print_json,
    save_loss_curve,
)

PRESETS = "the preset's"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("train")(_train)


def _train(
    data: Annotated[
        Path,
        typer.Option(
            metavar="PATH",
            help="Training text: a text, JSON, JSONL, Parquet, CSV or TSV file, a folder of text, "
            "a pattern, hf:USER/NAME, or a folder from `llmkit data prepare`.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Checkpoint folder to write.")],
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Model size: nano, micro, gpt2, gpt2-medium, gpt2-large or gpt2-xl.",
            show_default="nano",
        ),
    ] = None,
    depth: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Number of layers, instead of --preset: sets width, heads, context, batch size "
            "and learning rate.",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="TOML file; its tables [model] and [training] override the preset."
        ),
    ] = None,
    tokenizer: NewTokenizerOption = "bpe",
    vocab_size: VocabSizeOption = None,
    steps: Annotated[
        int | None,
        typer.Option(metavar="N", help="Number of training steps.", show_default=PRESETS),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            metavar="N",
            help="Train for N minutes instead of --steps, which are chosen on the way. "
            "Without --preset and --depth, N also sets the depth.",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(metavar="N", help="Sequences per training step.", show_default=PRESETS),
    ] = None,
    batch_tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Batch size in tokens, instead of --batch-size.",
            show_default=PRESETS,
        ),
    ] = None,
    micro_batch: Annotated[
        int | None,
        typer.Option(
            metavar="N|auto",
            parser=lambda text: 0 if text == "auto" else int(text),
            help="Sequences in memory at a time; gradients add up to the batch. auto: as many as "
            "fit.",
            show_default=PRESETS,
        ),
    ] = None,
    activation_checkpointing: Annotated[
        bool,
        typer.Option(
            "--activation-checkpointing",
            help="Recompute activations in the backward pass: less memory, more time.",
        ),
    ] = False,
    compile_: Annotated[
        bool,
        typer.Option(
            "--compile", help="Compile blocks and loss with torch.compile: faster on a GPU."
        ),
    ] = False,
    learning_rate: Annotated[
        float | None, typer.Option(metavar="X", help="Peak learning rate.", show_default=PRESETS)
    ] = None,
    eval_interval: Annotated[
        int | None,
        typer.Option(metavar="N", help="Evaluate every N steps.", show_default=PRESETS),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Random seed; the same seed gives the same weights.",
            show_default="1337",
        ),
    ] = None,
    n_layer: Annotated[
        int | None,
        typer.Option(metavar="N", help="Number of transformer blocks.", show_default=PRESETS),
    ] = None,
    n_head: Annotated[
        int | None,
        typer.Option(metavar="N", help="Attention heads per block.", show_default=PRESETS),
    ] = None,
    n_embd: Annotated[
        int | None, typer.Option(metavar="N", help="Embedding size.", show_default=PRESETS)
    ] = None,
    context_length: Annotated[
        int | None,
        typer.Option(metavar="N", help="Context length in tokens.", show_default=PRESETS),
    ] = None,
    shard: Annotated[
        bool,
        typer.Option(
            "--shard",
            help="Divide weights, gradients and optimizer states among the processes of torchrun "
            "(FSDP2).",
        ),
    ] = False,
    resume: ResumeOption = False,
    tensorboard: Annotated[
        bool,
        typer.Option(
            "--tensorboard",
            help="Also write the evaluations for TensorBoard, into DIR/training/tensorboard.",
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Only time ten steps: show parameters, memory, FLOPs and time; write nothing.",
        ),
    ] = False,
    device: DeviceOption = None,
    text_column: TextColumnOption = None,
    delimiter: DelimiterOption = None,
    encoding: EncodingOption = "utf-8",
    json_output: JsonOption = False,
) -> None:
    """Train a GPT and its tokenizer on text.

    Options override --config, which overrides the preset. The checkpoint folder also holds the
    tokenizer and the metrics. `torchrun --nproc-per-node N -m llmkit train ...` trains in N
    processes.
    """
    started = time.monotonic()  # before PyTorch is imported
    from llmkit.console import command, results
    from llmkit.training import dry_run as estimate
    from llmkit.training import load_run_config, preset_or_depth, train
    from llmkit.training.distributed import is_first

    size = preset_or_depth(preset, depth)
    changes = load_run_config(config, size) if config is not None else {}
    sizes = _given(n_layer=n_layer, n_head=n_head, n_embd=n_embd, context_length=context_length)
    settings = _given(
        steps=steps,
        batch_size=batch_size,
        micro_batch=micro_batch,
        activation_checkpointing=activation_checkpointing or None,
        compile=compile_ or None,
        learning_rate=learning_rate,
        eval_interval=eval_interval,
        seed=seed,
    )
    options: dict[str, Any] = {
        "preset": preset,
        "depth": depth,
        "tokenizer": tokenizer,
        "vocab_size": vocab_size,
        "model": {**changes.get("model", {}), **sizes},
        "training": {**changes.get("training", {}), **settings},
        "batch_tokens": batch_tokens,
        "minutes": minutes,
        "device": device,
    }
    reading: dict[str, Any] = {
        "text_column": text_column,
        "delimiter": delimiter,
        "encoding": encoding,
    }
    if dry_run:
        found = estimate(data, **options, **reading)
        if json_output:
            print_json(asdict(found))
        else:
            results.print(str(found), soft_wrap=True)
        return
    result = train(
        data,
        out,
        **options,
        **reading,
        resume=resume,
        started=started,
        tensorboard=tensorboard,
        shard=shard,
    )
    if not is_first():
        return
    save_loss_curve(result.checkpoint, result.metrics)
    if json_output:
        print_json(asdict(result))
        return
    last = result.metrics[-1]
    folder = result.checkpoint
    words = command("export", folder, "--out", f"{folder}-export")
    results.print(
        f"{result.checkpoint}: {result.n_parameters:,} parameters, {result.steps} steps, "
        f"validation loss {last.val_loss:.4f} ({last.val_bits_per_byte:.3f} bits per byte)\n"
        f"next: {words}",
        markup=False,
        soft_wrap=True,
    )


def _given(**options: float | None) -> dict[str, float]:
    """The options that were given."""
    return {name: value for name, value in options.items() if value is not None}
