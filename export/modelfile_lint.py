"""Whether a Modelfile fits the files that it names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gguf

from llmkit.errors import GGUFError
from llmkit.export.gguf_file import GGUFFile, read_gguf
from llmkit.modelfiles.lint import Finding, lint_text, place_of
from llmkit.modelfiles.reading import ParsedModelfile, read_modelfile

_CONTEXT = "gpt2.context_length"
_HALVES = (".lora_a", ".lora_b")


def lint_modelfile(path: Path) -> list[Finding]:
    """Everything that will surprise a user of the Modelfile, errors first.

    Raises ModelfileError for what Ollama refuses to read.
    """
    parsed = read_modelfile(path)
    found = [*lint_text(parsed), *_file_findings(parsed, path.parent)]
    return sorted(found, key=lambda finding: finding.level)


def _file_findings(parsed: ParsedModelfile, folder: Path) -> Iterator[Finding]:
    source = parsed.modelfile.source
    place = str(place_of(parsed, "from"))
    path = folder / source
    if not _is_path(source):
        if path.exists():
            yield Finding(
                "error", place, f"FROM {source} is a model's name to Ollama; write ./{source}"
            )
        return  # a model of Ollama's own
    if not path.exists():
        yield Finding("error", place, f"FROM names {source}, which is not there")
        return
    try:
        file = read_gguf(path)
    except GGUFError as error:
        yield Finding("error", place, f"FROM is no GGUF file that runs: {error}")
        return
    yield from _context_findings(parsed, file)
    yield from _stop_findings(parsed, file)
    yield from _template_findings(parsed, file)
    if parsed.modelfile.adapter is not None:
        yield from _adapter_findings(parsed, folder / parsed.modelfile.adapter, file)


def _is_path(source: str) -> bool:
    return source.startswith((".", "/", "~")) or source.lower().endswith(".gguf")


def _context_findings(parsed: ParsedModelfile, file: GGUFFile) -> Iterator[Finding]:
    asked, there = parsed.modelfile.parameters.num_ctx, file.metadata.get(_CONTEXT)
    if asked is not None and isinstance(there, int) and asked > there:
        place = str(place_of(parsed, "parameter", "num_ctx"))
        yield Finding(
            "error", place, f"num_ctx {asked} is more than the model's context of {there}"
        )


def _stop_findings(parsed: ParsedModelfile, file: GGUFFile) -> Iterator[Finding]:
    tokens = file.metadata.get(gguf.Keys.Tokenizer.LIST)
    end_id = file.metadata.get(gguf.Keys.Tokenizer.EOS_ID)
    if not isinstance(tokens, list) or not isinstance(end_id, int) or end_id >= len(tokens):
        return
    end = str(tokens[end_id])
    if end not in parsed.modelfile.parameters.stop:
        place = str(place_of(parsed, "parameter", "stop"))
        yield Finding(
            "warning", place, f"no stop for the model's end token; add PARAMETER stop {end}"
        )


def _template_findings(parsed: ParsedModelfile, file: GGUFFile) -> Iterator[Finding]:
    if parsed.modelfile.template is None:
        place = str(place_of(parsed, "template"))
        message = (
            "no TEMPLATE: Ollama sends prompts bare, drops the system text and chats in ChatML"
        )
        if file.metadata.get(gguf.Keys.Tokenizer.CHAT_TEMPLATE) is None:
            message += "; for a base model write TEMPLATE {{ .Prompt }}{{ .Response }}"
        yield Finding("warning", place, message)


def _adapter_findings(parsed: ParsedModelfile, path: Path, base: GGUFFile) -> Iterator[Finding]:
    place = str(place_of(parsed, "adapter"))
    if not path.exists():
        yield Finding("error", place, f"ADAPTER names {path.name}, which is not there")
        return
    try:
        adapter = read_gguf(path)
    except GGUFError as error:
        yield Finding("error", place, f"ADAPTER is no GGUF file: {error}")
        return
    if adapter.metadata.get("general.type") != "adapter":
        yield Finding("error", place, f"{path.name} is a model, no adapter: Ollama would ignore it")
        return
    for name, tensor in adapter.tensors.items():
        half = next((half for half in _HALVES if name.endswith(half)), None)
        matrix = base.tensors.get(name.removesuffix(half)) if half else None
        if matrix is None:
            yield Finding("error", place, f"{path.name} is of another model: {name} has no base")
            return
        # lora_a is (rank, in), lora_b (out, rank), the matrix (out, in)
        fits = (
            tensor.shape[1] == matrix.shape[1]
            if half == ".lora_a"
            else (tensor.shape[0] == matrix.shape[0])
        )
        if not fits:
            yield Finding(
                "error", place, f"{path.name} is of another model: {name} is {tensor.shape}"
            )
            return
