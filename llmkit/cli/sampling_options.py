"""Options that say how a text is sampled."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from llmkit.cli.option_groups import Option, with_options


def _sampling(stop: list[str] | None, **given: Any) -> Any:
    from llmkit.sampling import Sampling

    return Sampling(stop=tuple(stop or ()), **given)


def _option(kind: Any, metavar: str, text: str, show_default: str | bool = True) -> Any:
    return Annotated[kind, typer.Option(metavar=metavar, help=text, show_default=show_default)]


# By the fields of Sampling, in the order in which llama.cpp applies them.
with_sampling_options = with_options(
    "sampling",
    {
        "repeat_penalty": Option(
            _option(float, "X", "Above 1: make tokens of the last --repeat-last-n less likely."),
            1.0,
        ),
        "repeat_last_n": Option(
            _option(int, "N", "Tokens of prompt and answer that --repeat-penalty looks at."), 64
        ),
        "top_k": Option(_option(int | None, "N", "Sample from the N most probable tokens.", "all")),
        "top_p": Option(
            _option(
                float | None,
                "P",
                "Sample from the most probable tokens whose probabilities add up to P (0 to 1).",
            )
        ),
        "min_p": Option(
            _option(
                float | None,
                "P",
                "Drop tokens below P (0 to 1) times the probability of the most probable one.",
            )
        ),
        "temperature": Option(
            _option(float, "X", "Sampling temperature; 0 always picks the most probable token."),
            0.8,
        ),
        "seed": Option(_option(int, "N", "Random seed; the same seed gives the same text."), 0),
        "max_tokens": Option(
            _option(int | None, "N", "Stop after N tokens.", "until the context is full")
        ),
        "stop": Option(
            _option(list[str] | None, "TEXT", "Stop before this text. May be repeated.")
        ),
        "context_shift": Option(
            Annotated[
                bool,
                typer.Option(
                    "--context-shift",
                    help="When the context is full, drop the older half of its tokens and go on, "
                    "for at most ten contexts.",
                ),
            ],
            False,
        ),
        "num_keep": Option(_option(int, "N", "Tokens at the start that --context-shift keeps."), 4),
    },
    _sampling,
)
