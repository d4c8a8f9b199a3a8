"""`llmkit export`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from llmkit.cli.options import (
    CheckpointArgument,
    JsonOption,
    ParameterOption,
    print_json,
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("export")(_export)


def _export(
    checkpoint: CheckpointArgument,
    out: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Output folder."),
    ],
    to: Annotated[
        Literal["gguf", "hf"],
        typer.Option(
            help="gguf writes GGUF files; hf writes a folder for Hugging Face's transformers."
        ),
    ] = "gguf",
    quant: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE,...",
            help="Types, separated by commas: f32, f16, bf16, q8_0 (int8), q4_0 (int4), q4_1, "
            "q5_0, q5_1, iq4_nl, q6_k and other single types; llama.cpp's presets q2_k, q2_k_s, "
            "q3_k_s, q3_k_m, q3_k_l, q4_k_s, q4_k_m, q5_k_s, q5_k_m.",
            show_default="f16,q8_0,q4_0; for a QLoRA model the type it was trained on",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Name of the model.", show_default="the checkpoint's"),
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Merge the LoRA adapter into the weights.")
    ] = False,
    method: Annotated[
        Literal["rtn", "gptq"],
        typer.Option(
            help="rtn rounds each weight to the nearest value; gptq uses calibration text to "
            "lower the error at the same file size."
        ),
    ] = "rtn",
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Calibration text for gptq: a file, folder or JSONL file.",
            show_default="the training data",
        ),
    ] = None,
    imatrix: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Importance matrix for rtn, from `llmkit imatrix` or llama-imatrix.",
        ),
    ] = None,
    tensor_type: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN=TYPE",
            help="Type of the matrices whose GGUF name matches PATTERN, for example "
            "blk.0.*=q8_0. May be repeated. *=q2_k stores all matrices as q2_k.",
            show_default="none",
        ),
    ] = None,
    target_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Choose types that minimise KL for a file of at most SIZE (for example 60MB).",
        ),
    ] = None,
    target_bpw: Annotated[
        float | None,
        typer.Option(
            metavar="BITS",
            help="Choose types that minimise KL at an average of at most BITS per weight "
            "(for example 4.5).",
        ),
    ] = None,
    fit_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Choose types that minimise KL for a model that runs in SIZE of memory "
            "(for example 4GiB); see --context.",
        ),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Context length in tokens for --fit-memory.",
            show_default="the model's",
        ),
    ] = None,
    parameter: ParameterOption = None,
    no_verify: Annotated[
        bool,
        typer.Option("--no-verify", help="Skip verification; the Modelfile then says so."),
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """Write GGUF files and a Modelfile, or a Hugging Face folder.

    GGUF files are verified; exit code 1 if a check fails.
    """
    if to == "hf":
        of_gguf = {
            "--quant": quant,
            "--method": method != "rtn",
            "--calibration": calibration,
            "--imatrix": imatrix,
            "--tensor-type": tensor_type,
            "--target-size": target_size,
            "--target-bpw": target_bpw,
            "--fit-memory": fit_memory,
            "--context": context,
            "--parameter": parameter,
            "--no-verify": no_verify,
        }
        _export_to_hf(checkpoint, out, of_gguf, name, merge=merge, json_output=json_output)
        return
    from llmkit.console import command, results
    from llmkit.export.convert import export
    from llmkit.export.quantization.budget import budget_of
    from llmkit.export.quantization.config import QuantConfig, tensor_types
    from llmkit.export.report.tables import export_table, plan_table, proof_table
    from llmkit.modelfiles.parameters import read_parameters

    budget = budget_of(target_size, target_bpw, fit_memory, context)
    types = tensor_types(tensor_type or [])
    quant_config = QuantConfig(quant, method, calibration, imatrix, budget, types)
    done = export(
        checkpoint,
        out,
        quant_config,
        name=name,
        merge=merge,
        prove=not no_verify,
        parameters=read_parameters(parameter or ()),
    )
    if json_output:
        print_json(asdict(done))
    else:
        results.print(export_table([*done.files, *([done.adapter] if done.adapter else [])]))
        if done.plan:
            results.print(plan_table(done.plan, done.measured_kl))
        if done.proofs:
            results.print(proof_table(done.proofs))
        results.print(f"{done.modelfile}: its first lines show how to create the model in Ollama")
        files = [file.path for file in done.files]
        words = command("compare", checkpoint, *files)
        results.print(f"next: {words}", markup=False, soft_wrap=True)
    if not done.passed:
        raise typer.Exit(1)


def _export_to_hf(
    checkpoint: Path,
    out: Path,
    of_gguf: Mapping[str, object],
    name: str | None,
    *,
    merge: bool,
    json_output: bool,
) -> None:
    from llmkit.console import results
    from llmkit.errors import ConfigError
    from llmkit.export.to_hf import export_to_hf

    given = [option for option, value in of_gguf.items() if value]
    if given:
        raise ConfigError(f"{', '.join(given)}: only for GGUF files; omit with --to hf")
    done = export_to_hf(checkpoint, out, name=name, merge=merge)
    if json_output:
        print_json(asdict(done))
        return
    results.print(f"{done.folder}: {', '.join(done.files)}", soft_wrap=True)
    for note in done.notes:
        results.print(f"note: {note}", soft_wrap=True)
