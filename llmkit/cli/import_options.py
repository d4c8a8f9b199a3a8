"""Options that say what a checkpoint of another program does not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from llmkit.cli.option_groups import Option, with_options

HeadOption = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="Number of attention heads.", show_default="the file's"),
]
ActivationOption = Annotated[
    Literal["gelu_tanh", "gelu_erf", "relu"] | None,
    typer.Option(
        help="Activation of the feed-forward layers. torch.nn.GELU() is gelu_erf.",
        show_default="the file's or the program's",
    ),
]
NormOption = Annotated[
    Literal["pre", "post"] | None,
    typer.Option(help="Norms before or after attention.", show_default="the program's"),
]
NormTypeOption = Annotated[
    Literal["layer", "rms"] | None,
    typer.Option(
        help="LayerNorm or RMSNorm; norms without biases can be either.",
        show_default="the program's",
    ),
]
MaskOption = Annotated[
    Literal["causal", "none"] | None,
    typer.Option(help="Mask of attention.", show_default="the program's"),
]
ScaleOption = Annotated[
    Literal["head", "embd", "none"] | None,
    typer.Option(
        help="Attention scores are divided by the square root of the head width, of n_embd, "
        "or not at all.",
        show_default="head",
    ),
]
EmbeddingScaleOption = Annotated[
    Literal["none", "sqrt"] | None,
    typer.Option(
        help="sqrt: token embeddings are multiplied by the square root of n_embd.",
        show_default="none",
    ),
]
QkvOrderOption = Annotated[
    Literal["qkv", "qvk", "kqv", "kvq", "vqk", "vkq", "heads"] | None,
    typer.Option(
        help="Order of queries, keys and values in a fused matrix. heads: those of the first "
        "head, then those of the second.",
        show_default="qkv",
    ),
]
EpsilonOption = Annotated[
    float | None,
    typer.Option(metavar="X", help="Epsilon of LayerNorm.", show_default="the file's or 1e-5"),
]
TokenizerOption = Annotated[
    str | None,
    typer.Option(
        metavar="T",
        help="A tokenizer.json or its folder, gpt2, a meta.pkl or JSON of characters, or "
        "chars:FILE for a text whose sorted characters are the vocabulary.",
        show_default="what lies beside the source",
    ),
]
FormatOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE",
        help="Prompt format that the model was fine-tuned with, for example alpaca.",
        show_default="completion",
    ),
]
LabelsOption = Annotated[
    str | None,
    typer.Option(metavar="A,B", help="Labels of a classifier, in the order of its head."),
]
LoraAlphaOption = Annotated[
    float | None, typer.Option(metavar="X", help="Alpha of LoRA matrices in the file.")
]
ReferenceOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Prove the import: an .npz file with tokens (B, T) and the logits (B, T, V) of "
        "the model's own program.",
    ),
]


def _import_options(labels: str | None, **given: Any) -> Any:
    from llmkit.importing.facts import ImportOptions

    names = tuple(part.strip() for part in labels.split(",")) if labels else ()
    return ImportOptions(labels=names, **given)


# By the fields of ImportOptions, in the order of the help.
with_import_options = with_options(
    "given",
    {
        "n_head": Option(HeadOption),
        "activation": Option(ActivationOption),
        "norm": Option(NormOption),
        "norm_type": Option(NormTypeOption),
        "mask": Option(MaskOption),
        "attention_scale": Option(ScaleOption),
        "embedding_scale": Option(EmbeddingScaleOption),
        "qkv_order": Option(QkvOrderOption),
        "layer_norm_epsilon": Option(EpsilonOption),
        "tokenizer": Option(TokenizerOption),
        "prompt_format": Option(FormatOption),
        "labels": Option(LabelsOption),
        "lora_alpha": Option(LoraAlphaOption),
    },
    _import_options,
)
