"""`llmkit deploy`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmkit.cli.import_options import ReferenceOption, with_import_options
from llmkit.cli.options import HostOption, JsonOption, print_checks, print_json

if TYPE_CHECKING:
    from llmkit.importing.facts import ImportOptions


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("deploy")(_deploy)


@with_import_options
def _deploy(
    *,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Export folder, checkpoint folder, or whatever `llmkit import` takes.",
            show_default=False,
        ),
    ],
    name: Annotated[
        str, typer.Option(metavar="NAME", help="Name of the model in Ollama.", show_default=False)
    ],
    host: HostOption = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Checkpoint to compare with.", show_default="the one in parity.json"
        ),
    ] = None,
    given: ImportOptions,
    reference: ReferenceOption = None,
    json_output: JsonOption = False,
) -> None:
    """Create a model in a running Ollama and verify it there.

    What is not an export folder yet is imported to NAME and exported to NAME-gguf first. An
    existing model of this name is replaced only if the new one passes.
    Exit code 1 if a check fails.
    """
    from llmkit.console import results
    from llmkit.export.report.tables import proof_table
    from llmkit.importing.deploy_source import deploy_source
    from llmkit.importing.summary import import_tables, proof_lines

    whole = deploy_source(
        source, name, given, reference=reference, host=host, checkpoint=checkpoint
    )
    done = whole.deployment
    if json_output:
        print_json({**done.to_dict(), "commands": whole.commands})
    else:
        if whole.imported:
            for table in import_tables(whole.imported):
                results.print(table)
            for line in proof_lines(whole.imported):
                results.print(line, markup=False, soft_wrap=True)
        if whole.exported:
            results.print(proof_table(whole.exported.proofs))
        if whole.imported or whole.exported or len(whole.commands) > 2:
            results.print("the same, step by step:")
            for command in whole.commands:
                results.print(f"  {command}", markup=False, soft_wrap=True)
        print_checks(done.checks)
        results.print(done.summary, soft_wrap=True)
    if not done.passed:
        raise typer.Exit(1)
