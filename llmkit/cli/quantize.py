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
    gguf: Annotated[Path, typer.Argument(metavar="GGUF", help="GGUF file to quantize.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="GGUF file to write.")],
    quant: Annotated[
        str,
        typer.Option(
            metavar="TYPE", help="Quantization type such as q8_0, or preset such as q4_k_m."
        ),
    ],
    method: Annotated[
        Literal["rtn", "gptq", "llama.cpp"],
        typer.Option(
            help="rtn rounds each weight to the nearest value; gptq uses calibration text to "
            "lower the error; llama.cpp runs llama-quantize."
        ),
    ] = "rtn",
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="Calibration text for gptq: a file, folder or JSONL file."
        ),
    ] = None,
    imatrix: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Importance matrix for rtn, from llama-imatrix."),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Allow a file that is already quantized.")
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """Quantize a GGUF file without its checkpoint."""
    from llmkit.console import results
    from llmkit.export.quantization.requantize import requantize
    from llmkit.export.report.tables import megabytes

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
