"""`llmkit import`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

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
    n_head: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Number of attention heads.", show_default="the file's"
        ),
    ] = None,
    activation: Annotated[
        Literal["gelu_tanh", "gelu_erf", "relu"] | None,
        typer.Option(
            help="Activation of the feed-forward layers. torch.nn.GELU() is gelu_erf.",
            show_default="the file's or the program's",
        ),
    ] = None,
    norm: Annotated[
        Literal["pre", "post"] | None,
        typer.Option(help="Norms before or after attention.", show_default="the program's"),
    ] = None,
    norm_type: Annotated[
        Literal["layer", "rms"] | None,
        typer.Option(
            help="LayerNorm or RMSNorm; norms without biases can be either.",
            show_default="the program's",
        ),
    ] = None,
    mask: Annotated[
        Literal["causal", "none"] | None,
        typer.Option(help="Mask of attention.", show_default="the program's"),
    ] = None,
    attention_scale: Annotated[
        Literal["head", "embd", "none"] | None,
        typer.Option(
            help="Attention scores are divided by the square root of the head width, of n_embd, "
            "or not at all.",
            show_default="head",
        ),
    ] = None,
    embedding_scale: Annotated[
        Literal["none", "sqrt"] | None,
        typer.Option(
            help="sqrt: token embeddings are multiplied by the square root of n_embd.",
            show_default="none",
        ),
    ] = None,
    qkv_order: Annotated[
        Literal["qkv", "qvk", "kqv", "kvq", "vqk", "vkq", "heads"] | None,
        typer.Option(
            help="Order of queries, keys and values in a fused matrix. heads: those of the first "
            "head, then those of the second.",
            show_default="qkv",
        ),
    ] = None,
    layer_norm_epsilon: Annotated[
        float | None,
        typer.Option(metavar="X", help="Epsilon of LayerNorm.", show_default="the file's or 1e-5"),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            metavar="T",
            help="A tokenizer.json or its folder, gpt2, a meta.pkl or JSON of characters, or "
            "chars:FILE for a text whose sorted characters are the vocabulary.",
            show_default="what lies beside the source",
        ),
    ] = None,
    prompt_format: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Prompt format that the model was fine-tuned with, for example alpaca.",
            show_default="completion",
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Labels of a classifier, in the order of its head."),
    ] = None,
    lora_alpha: Annotated[
        float | None, typer.Option(metavar="X", help="Alpha of LoRA matrices in the file.")
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Prove the import: an .npz file with tokens (B, T) and the logits (B, T, V) of "
            "the model's own program.",
        ),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Import a GPT that another program trained: nanoGPT, minGPT, llm.c, Hugging Face, a book."""
    from llmkit.console import results
    from llmkit.importing.facts import ImportOptions
    from llmkit.importing.importer import import_checkpoint
    from llmkit.importing.summary import import_tables, next_steps

    options = ImportOptions(
        n_head,
        activation,
        norm,
        norm_type,
        mask,
        attention_scale,
        embedding_scale,
        qkv_order,
        layer_norm_epsilon,
        lora_alpha,
        tuple(part.strip() for part in labels.split(",")) if labels else (),
        tokenizer,
        prompt_format,
    )
    done = import_checkpoint(source, out, options, reference=reference)
    if json_output:
        print_json(asdict(done))
        return
    for table in import_tables(done):
        results.print(table)
    for line in next_steps(done):
        results.print(line, markup=False, soft_wrap=True)
