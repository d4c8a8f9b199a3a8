"""Options that say how a text is sampled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from llmkit.cli.option_groups import with_options

if TYPE_CHECKING:
    from llmkit.sampling import Sampling


def sampling(  # in the order in which llama.cpp applies them
    repeat_penalty: Annotated[
        float,
        typer.Option(
            metavar="X", help="Above 1: make tokens of the last --repeat-last-n less likely."
        ),
    ] = 1.0,
    repeat_last_n: Annotated[
        int,
        typer.Option(
            metavar="N", help="Tokens of prompt and answer that --repeat-penalty looks at."
        ),
    ] = 64,
    top_k: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Sample from the N most probable tokens.", show_default="all"
        ),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            metavar="P",
            help="Sample from the most probable tokens whose probabilities add up to P (0 to 1).",
        ),
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(
            metavar="P",
            help="Drop tokens below P (0 to 1) times the probability of the most probable one.",
        ),
    ] = None,
    temperature: Annotated[
        float,
        typer.Option(
            metavar="X", help="Sampling temperature; 0 always picks the most probable token."
        ),
    ] = 0.8,
    seed: Annotated[
        int, typer.Option(metavar="N", help="Random seed; the same seed gives the same text.")
    ] = 0,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Stop after N tokens.", show_default="until the context is full"
        ),
    ] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Stop before this text. May be repeated."),
    ] = None,
    context_shift: Annotated[
        bool,
        typer.Option(
            "--context-shift",
            help="When the context is full, drop the older half of its tokens and go on, "
            "for at most ten contexts.",
        ),
    ] = False,
    num_keep: Annotated[
        int, typer.Option(metavar="N", help="Tokens at the start that --context-shift keeps.")
    ] = 4,
) -> Sampling:
    """How a text is sampled."""
    given = dict(locals())
    from llmkit.sampling import Sampling

    return Sampling(**given | {"stop": tuple(stop or ())})


with_sampling_options = with_options("sampling", sampling)
