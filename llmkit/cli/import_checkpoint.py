"""`llmkit import`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from llmkit.cli import import_options as options
from llmkit.cli.options import JsonOption, print_json


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("import")(_import)


def _import(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="File, folder or Hugging Face id: .pt, .pth, .bin, .pkl, .safetensors, llm.c's "
            ".bin, .gguf.",
        ),
    ],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Output folder for the llmkit checkpoint.")
    ],
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
    """Import a GPT that another program trained.

    Takes checkpoints of nanoGPT, build-nanogpt, minGPT, makemore, llm.c, Hugging Face GPT-2, "Build
    a Large Language Model (From Scratch)", and of programs that name tensors in similar ways.
    """
    from llmkit.console import results
    from llmkit.importing.importer import import_checkpoint
    from llmkit.importing.summary import import_tables, next_step, proof_lines

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
    done = import_checkpoint(source, out, given, reference=reference)
    if json_output:
        print_json(asdict(done))
        return
    for table in import_tables(done):
        results.print(table)
    for line in (*proof_lines(done), next_step(done)):
        results.print(line, markup=False, soft_wrap=True)
