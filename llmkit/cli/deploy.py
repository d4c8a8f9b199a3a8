"""`llmkit deploy`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmkit.cli import import_options as options
from llmkit.cli.options import HostOption, JsonOption, print_checks, print_json


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("deploy")(_deploy)


def _deploy(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Export folder, checkpoint folder, or whatever `llmkit import` takes.",
            show_default=False,
        ),
    ],
    name: Annotated[
        str, typer.Option(metavar="NAME", help="Name of the model in Ollama.", show_default=False)
    ],
    host: HostOption = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Checkpoint to compare with.", show_default="the one in parity.json"
        ),
    ] = None,
    n_head: options.HeadOption = None,
    activation: options.ActivationOption = None,
    norm: options.NormOption = None,
    norm_type: options.NormTypeOption = None,
    mask: options.MaskOption = None,
    attention_scale: options.ScaleOption = None,
    embedding_scale: options.EmbeddingScaleOption = None,
    qkv_order: options.QkvOrderOption = None,
    layer_norm_epsilon: options.EpsilonOption = None,
    tokenizer: options.TokenizerOption = None,
    prompt_format: options.FormatOption = None,
    labels: options.LabelsOption = None,
    lora_alpha: options.LoraAlphaOption = None,
    reference: options.ReferenceOption = None,
    json_output: JsonOption = False,
) -> None:
    """Create a model in a running Ollama and verify it there.

    What is not an export folder yet is imported to NAME and exported to NAME-gguf first. An
    existing model of this name is replaced only if the new one passes.
    Exit code 1 if a check fails.
    """
    from llmkit.console import results
    from llmkit.export.report.tables import proof_table
    from llmkit.importing.deploy_source import deploy_source
    from llmkit.importing.summary import import_tables, proof_lines

    given = options.import_options(
        labels,
        n_head=n_head,
        activation=activation,
        norm=norm,
        norm_type=norm_type,
        mask=mask,
        attention_scale=attention_scale,
        embedding_scale=embedding_scale,
        qkv_order=qkv_order,
        layer_norm_epsilon=layer_norm_epsilon,
        tokenizer=tokenizer,
        prompt_format=prompt_format,
        lora_alpha=lora_alpha,
    )
    whole = deploy_source(
        source, name, given, reference=reference, host=host, checkpoint=checkpoint
    )
    done = whole.deployment
    if json_output:
        print_json({**done.to_dict(), "commands": whole.commands})
    else:
        if whole.imported:
            for table in import_tables(whole.imported):
                results.print(table)
            for line in proof_lines(whole.imported):
                results.print(line, markup=False, soft_wrap=True)
        if whole.exported:
            results.print(proof_table(whole.exported.proofs))
        if whole.imported or whole.exported or len(whole.commands) > 2:
            results.print("the same, step by step:")
            for command in whole.commands:
                results.print(f"  {command}", markup=False, soft_wrap=True)
        print_checks(done.checks)
        results.print(done.summary, soft_wrap=True)
    if not done.passed:
        raise typer.Exit(1)
