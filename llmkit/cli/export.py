"""`llmkit export`."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from llmkit.cli.options import CheckpointArgument, JsonOption, print_json


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("export")(_export)


def _export(
    checkpoint: CheckpointArgument,
    out: Annotated[Path, typer.Option(help="Folder for the GGUF files and the Modelfile.")],
    quant: Annotated[
        str | None,
        typer.Option(
            help="Joined by commas: f32, f16, bf16, q8_0 (int8), q4_0 (int4), q4_1, q5_0, q5_1, "
            "iq4_nl, q6_k and other single types; llama.cpp's presets q2_k, q2_k_s, q3_k_s, "
            "q3_k_m, q3_k_l, q4_k_s, q4_k_m, q5_k_s, q5_k_m.",
            show_default="f16,q8_0,q4_0; of a QLoRA model the type it was trained on",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the model.", show_default="the checkpoint's")
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Merge a LoRA adapter into the weights.")
    ] = False,
    method: Annotated[
        Literal["rtn", "gptq"],
        typer.Option(
            help="rtn rounds each weight; gptq chooses each number by what the model reads, for "
            "better files of the same size."
        ),
    ] = "rtn",
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="Text for gptq: a file, a folder or JSONL.",
            show_default="what the model was trained on",
        ),
    ] = None,
    imatrix: Annotated[
        Path | None,
        typer.Option(help="Importance matrix for rtn, as llama-imatrix or llmkit writes it."),
    ] = None,
    tensor_type: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN=TYPE",
            help="Type of the matrices of a GGUF name, such as blk.0.*=q8_0; may be repeated. "
            "*=q2_k stores all matrices in one type.",
            show_default="none",
        ),
    ] = None,
    target_size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Types for the least KL in a file of at most 60MB, say."),
    ] = None,
    target_bpw: Annotated[
        float | None,
        typer.Option(help="The same by bits per weight, 4.5 say, of all weights on the mean."),
    ] = None,
    fit_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="The same by the memory it takes to run, 4GiB say; see --context."
        ),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(help="Tokens to have room for in --fit-memory.", show_default="the model's"),
    ] = None,
    prove: Annotated[
        bool,
        typer.Option(
            " /--no-verify", help="Prove nothing; the Modelfile says so.", show_default=False
        ),
    ] = True,
    json_output: JsonOption = False,
) -> None:
    """Write GGUF files and an Ollama Modelfile, and prove them. Exit code 1: a proof fails."""
    from llmkit.console import results
    from llmkit.export.budget import budget_of
    from llmkit.export.convert import export
    from llmkit.export.recipe import Recipe, tensor_types
    from llmkit.export.tables import export_table, plan_table, proof_table

    budget = budget_of(target_size, target_bpw, fit_memory, context)
    types = tensor_types(tensor_type or [])
    recipe = Recipe(quant, method, calibration, imatrix, budget, types)
    done = export(checkpoint, out, recipe, name=name, merge=merge, prove=prove)
    if json_output:
        print_json(asdict(done))
    else:
        results.print(export_table([*done.files, *([done.adapter] if done.adapter else [])]))
        if done.plan:
            results.print(plan_table(done.plan, done.measured_kl))
        if done.proofs:
            results.print(proof_table(done.proofs))
        results.print(f"{done.modelfile}: how to create the model in Ollama stands at its top")
        files = [str(file.path) for file in done.files]
        words = shlex.join(["llmkit", "compare", str(checkpoint), *files])
        results.print(f"next: {words}", markup=False, soft_wrap=True)
    if not done.passed:
        raise typer.Exit(1)
