"""`llmkit quantize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from llmkit.cli.options import JsonOption, print_json


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("quantize")(_quantize)


def _quantize(
    gguf: Annotated[Path, typer.Argument(metavar="GGUF", help="File to quantize.")],
    out: Annotated[Path, typer.Option(help="File to write.")],
    quant: Annotated[
        str, typer.Option(help="A single type such as q8_0, or a preset such as q4_k_m.")
    ],
    method: Annotated[
        Literal["rtn", "gptq", "llama.cpp"],
        typer.Option(
            help="rtn rounds each weight; gptq chooses each number by what the model reads; "
            "llama.cpp is llama-quantize, with its own choice of types."
        ),
    ] = "rtn",
    calibration: Annotated[
        Path | None, typer.Option(help="Text for gptq: a file, a folder or JSONL.")
    ] = None,
    imatrix: Annotated[
        Path | None, typer.Option(help="Importance matrix for rtn, as llama-imatrix writes it.")
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Quantize what is quantized already.")
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """Quantize a GGUF file without its checkpoint."""
    from llmkit.console import results
    from llmkit.export.requantize import requantize
    from llmkit.export.tables import megabytes

    done = requantize(
        gguf, out, quant, method=method, imatrix=imatrix, calibration=calibration, again=again
    )
    n_bytes = out.stat().st_size
    if json_output:
        said = {"path": out, "quant": done.quant, "method": done.method}
        print_json({**said, "bytes": n_bytes, "bits_per_weight": done.bits_per_weight})
        return
    results.print(
        f"{out}: {done.quant}, {megabytes(n_bytes)} MB, {done.bits_per_weight:.2f} bits per weight",
        soft_wrap=True,
    )
