"""One command from a checkpoint of any kind to a verified model in Ollama: what is left is done."""

from __future__ import annotations

import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

from llmkit.console import command, say
from llmkit.errors import ConfigError, OllamaError
from llmkit.export.convert import Export, export
from llmkit.export.deploy.deploy import Deployment, deploy
from llmkit.export.doctor.ollama_server import server_checks
from llmkit.export.modelfile.write import write_modelfile
from llmkit.export.ollama.address import check_name
from llmkit.export.ollama.transport import Patience
from llmkit.export.verify.verify import MODELFILE
from llmkit.files import StrPath, all_or_nothing, optional_path
from llmkit.importing.facts import ImportOptions
from llmkit.importing.gguf_file import is_gguf
from llmkit.importing.importer import import_checkpoint
from llmkit.importing.locate import is_llmkit_checkpoint, local
from llmkit.importing.made import Import
from llmkit.importing.source.opening import open_source


@dataclass(frozen=True)
class SourceDeployment:
    """A deployment, the steps before it, and the commands that do the same one by one."""

    deployment: Deployment
    imported: Import | None
    exported: Export | None
    commands: tuple[str, ...]


def deploy_source(
    source: StrPath,
    name: str,
    options: ImportOptions | None = None,
    *,
    reference: StrPath | None = None,
    host: str | None = None,
    checkpoint: StrPath | None = None,
    patience: Patience | None = None,
) -> SourceDeployment:
    """Import, export, prove and deploy `source`, as far as that is not done yet.

    `source`: whatever `import_checkpoint` takes, a checkpoint of llmkit, or an export folder. The
    folders NAME and NAME-gguf are made here and stay. Raises LlmkitError as the steps do, and
    OllamaError before the first step where no server answers.
    """
    check_name(name)
    commands: list[str] = []
    folder = Path(source)
    imported = exported = None
    given = optional_path(checkpoint)
    if (folder / MODELFILE).is_file() and not is_llmkit_checkpoint(folder):
        if options not in (None, ImportOptions()) or reference is not None:
            raise ConfigError(f"{folder} is an export folder; options of import do nothing for it")
    else:
        if not is_llmkit_checkpoint(folder):
            path = local(str(source))
            if not is_gguf(path):
                open_source(path)  # names what is wrong with it before all else
        _require_server(host)
        base = re.sub(r"[^A-Za-z0-9._-]+", "-", name)
        if is_gguf(folder):
            return _deploy_file(folder, Path(f"{base}-gguf"), name, host, given, patience)
        own = folder
        if not is_llmkit_checkpoint(folder):
            own = Path(base)
            commands.append(_importcommand(str(source), own, options, reference))
            say(f"import {source} -> {own}")
            imported = import_checkpoint(source, own, options, reference=reference)
        elif options not in (None, ImportOptions()) or reference is not None:
            raise ConfigError(f"{folder} is a checkpoint; options of import do nothing for it")
        folder = Path(f"{base}-gguf")
        commands.append(command("export", str(own), "--out", str(folder)))
        say(f"export {own} -> {folder}")
        exported = export(own, folder)
        given = given or own
    done = deploy(folder, name, host=host, checkpoint=given, patience=patience)
    commands += [command("deploy", str(folder), "--name", name), f"ollama run {name}"]
    return SourceDeployment(done, imported, exported, tuple(commands))


def _deploy_file(
    file: Path,
    folder: Path,
    name: str,
    host: str | None,
    checkpoint: Path | None,
    patience: Patience | None,
) -> SourceDeployment:
    """A GGUF file as it is, in a folder with a Modelfile."""
    if folder.exists():
        raise ConfigError(f"{folder} exists already; deploy it, or choose another --name")
    with all_or_nothing(folder):
        folder.mkdir(parents=True)
        linked = folder / file.name
        try:
            linked.hardlink_to(file.resolve())
        except OSError:  # on another disk
            shutil.copyfile(file, linked)
        write_modelfile(linked)
    done = deploy(folder, name, host=host, checkpoint=checkpoint, patience=patience)
    commands = (
        shlex.join(["mkdir", str(folder)]),
        shlex.join(["cp", str(file), str(linked)]),
        command("modelfile", "write", str(linked)),
        command("deploy", str(folder), "--name", name),
        f"ollama run {name}",
    )
    return SourceDeployment(done, None, None, commands)


def _require_server(host: str | None) -> None:
    found = server_checks(host)
    if not found.answers:
        failed = next(check for check in found.checks if not check.passed)
        raise OllamaError(f"{failed.detail}; {failed.advice}" if failed.advice else failed.detail)


def _importcommand(
    source: str, out: Path, options: ImportOptions | None, reference: StrPath | None
) -> str:
    given: list[str] = []
    for option, value in vars(options or ImportOptions()).items():
        if value not in (None, ()):
            shown = ",".join(value) if isinstance(value, tuple) else str(value)
            given += [f"--{option.replace('_', '-')}", shown]
    if reference is not None:
        given += ["--reference", str(reference)]
    return command("import", source, "--out", str(out), *given)
