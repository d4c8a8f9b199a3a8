"""Whether a Modelfile runs the file and the adapter that are verified."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from llmkit.errors import GGUFError
from llmkit.export.gguf.reader import read_gguf
from llmkit.export.modelfile.lint import file_errors, local_file
from llmkit.export.verify.target import FileTarget, VerifyTarget
from llmkit.modelfiles.grammar import RefusalError
from llmkit.modelfiles.modelfile import Modelfile
from llmkit.modelfiles.reading import read_modelfile


def modelfile_faults(path: Path, target: VerifyTarget) -> Iterator[str]:
    """Lines that Ollama refuses, or that run another model.

    TEMPLATE and stops have checks of their own. Raises ModelfileError for an unreadable file.
    """
    try:
        parsed = read_modelfile(path)
    except RefusalError as refused:
        yield str(refused.finding)
        return
    errors = file_errors(parsed, path.parent)
    yield from map(str, errors)
    if not errors:
        for fault in disagreements(parsed.modelfile, path.parent, target):
            yield f"{path}: {fault}"


def disagreements(modelfile: Modelfile, folder: Path, target: FileTarget) -> Iterator[str]:
    """Where FROM and ADAPTER, relative to `folder`, do not name the target's files.

    FROM may name any GGUF file beside it: an export has one Modelfile for several.
    """
    file = target.file.path
    for source in (modelfile.source, *modelfile.more_sources):
        path = local_file(source, folder)
        if not path.is_file() or path.parent.resolve() != file.parent.resolve():
            yield f"FROM {source} must name a GGUF file in the folder of {file.name}"
    named, proved = modelfile.adapter, target.adapter
    if proved is None:
        if named is not None:
            yield f"ADAPTER {named}: remove it; {file.name} was exported without an adapter"
    elif named is None:
        yield f"ADAPTER is missing: {file.name} needs ADAPTER ./{proved.path.name}"
    elif _sha256(local_file(named, folder)) != proved.sha256():
        yield f"ADAPTER {named} must be {proved.path.name}, the adapter of {file.name}"


def _sha256(path: Path) -> str | None:
    try:
        return read_gguf(path).sha256()
    except GGUFError:
        return None
