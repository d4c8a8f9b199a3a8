"""Options that say what a checkpoint of another program does not."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import typer

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


# By the fields of ImportOptions, in the order of the help.
_OPTIONS: dict[str, Any] = {
    "n_head": HeadOption,
    "activation": ActivationOption,
    "norm": NormOption,
    "norm_type": NormTypeOption,
    "mask": MaskOption,
    "attention_scale": ScaleOption,
    "embedding_scale": EmbeddingScaleOption,
    "qkv_order": QkvOrderOption,
    "layer_norm_epsilon": EpsilonOption,
    "tokenizer": TokenizerOption,
    "prompt_format": FormatOption,
    "labels": LabelsOption,
    "lora_alpha": LoraAlphaOption,
}


def with_import_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command these options; it gets them together as the argument `given`."""

    @wraps(command)
    def run(**arguments: Any) -> None:
        from llmkit.importing.facts import ImportOptions

        given = {name: arguments.pop(name) for name in _OPTIONS}
        names = given.pop("labels")
        labels = tuple(part.strip() for part in names.split(",")) if names else ()
        command(given=ImportOptions(labels=labels, **given), **arguments)

    hints = get_type_hints(command, localns={"ImportOptions": Any}, include_extras=True)
    parameters: list[Parameter] = []
    for parameter in signature(command).parameters.values():
        if parameter.name == "given":  # the options stand in its place
            parameters += [
                Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=kind)
                for name, kind in _OPTIONS.items()
            ]
        else:
            kind = hints[parameter.name]
            parameters.append(parameter.replace(kind=Parameter.KEYWORD_ONLY, annotation=kind))
    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run
