"""`llmkit generate`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmkit.cli.options import BackendOption
from llmkit.cli.sampling_options import with_sampling_options

if TYPE_CHECKING:
    from llmkit.sampling import Sampling


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("generate")(_generate)


@with_sampling_options
def _generate(
    *,
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Checkpoint folder or GGUF file.")],
    prompt: Annotated[
        str,
        typer.Option(
            metavar="TEXT", help="Text to continue, or a question for a fine-tuned model."
        ),
    ] = "",
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Text file with a prompt per line, instead of --prompt. Prints a JSON object per "
            "line. A checkpoint computes several at once.",
        ),
    ] = None,
    sampling: Sampling,
    backend: BackendOption = "cpu",
) -> None:
    """Continue a text, or answer a question.

    Sampling works as in llama.cpp and Ollama: penalty, top-k, top-p, min-p, temperature.
    """
    from llmkit.errors import ConfigError
    from llmkit.export.llamacpp.runners import answer_text, generate_texts, open_runner
    from llmkit.modelfiles.prompt_format import Message
    from llmkit.records.text_files import read_text

    if prompts is not None:
        if prompt:
            raise ConfigError("give --prompt or --prompts, not both")
        text = read_text(prompts, "a text file with a prompt per line")
        lines = [line for line in text.splitlines() if line.strip()]
        texts = generate_texts(model, lines, sampling, backend=backend)
        for line, answer in zip(lines, texts, strict=True):
            print(json.dumps({"prompt": line, "text": answer}, ensure_ascii=False))
        return
    with open_runner(model, backend) as runner:
        pieces = answer_text(runner, runner.prompt([Message("user", prompt)]), sampling)
        first = next(pieces, "")  # an error in the prompt comes before any output
        sys.stdout.write(prompt + first if runner.continues else first)
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
    sys.stdout.write("\n")
