"""Whether a Modelfile runs what is proved: the file, its adapter, and what it says of both."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from llmkit.errors import GGUFError
from llmkit.export.gguf_file import read_gguf
from llmkit.export.modelfile_lint import file_errors, local_file
from llmkit.export.parity.subject import Subject
from llmkit.modelfiles.grammar import RefusalError
from llmkit.modelfiles.modelfile import Modelfile
from llmkit.modelfiles.reading import read_modelfile


def modelfile_faults(path: Path, subject: Subject) -> Iterator[str]:
    """What Ollama refuses, or runs instead of what is proved.

    What TEMPLATE renders and where answers stop are matters of their own. Raises ModelfileError
    for a file that cannot be read.
    """
    try:
        parsed = read_modelfile(path)
    except RefusalError as refused:
        yield str(refused.finding)
        return
    errors = file_errors(parsed, path.parent)
    yield from map(str, errors)
    if not errors:
        for fault in disagreements(parsed.modelfile, path.parent, subject):
            yield f"{path}: {fault}"


def disagreements(modelfile: Modelfile, folder: Path, subject: Subject) -> Iterator[str]:
    """What FROM and ADAPTER name, seen from `folder`, that is not the subject's.

    FROM may name any GGUF file beside it: an export has one Modelfile for several.
    """
    file = subject.file.path
    for source in (modelfile.source, *modelfile.more_sources):
        path = local_file(source, folder)
        if not path.is_file() or path.parent.resolve() != file.parent.resolve():
            yield f"FROM {source} is not a GGUF file in the folder of {file.name}"
    named, proved = modelfile.adapter, subject.adapter
    if proved is None:
        if named is not None:
            yield f"ADAPTER {named} changes {file.name}, which was exported without one"
    elif named is None:
        yield f"no ADAPTER: {file.name} is the base of {proved.path.name}, and both are the model"
    elif _sha256(local_file(named, folder)) != proved.sha256():
        yield f"ADAPTER {named} is not {proved.path.name}, which {file.name} is the base of"


def _sha256(path: Path) -> str | None:
    try:
        return read_gguf(path).sha256()
    except GGUFError:
        return None
