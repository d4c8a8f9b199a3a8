"""Options that say what a checkpoint of another program does not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from llmkit.cli.option_groups import with_options

if TYPE_CHECKING:
    from llmkit.importing.facts import ImportOptions

ReferenceOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Prove the import: an .npz file with tokens (B, T) and the logits (B, T, V) of "
        "the model's own program.",
    ),
]


def import_options(
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
) -> ImportOptions:
    """What the user says of a checkpoint."""
    given = dict(locals())
    from llmkit.importing.facts import ImportOptions

    names = tuple(part.strip() for part in labels.split(",")) if labels else ()
    return ImportOptions(**given | {"labels": names})


with_import_options = with_options("given", import_options)
