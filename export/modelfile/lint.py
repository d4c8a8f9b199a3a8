"""Check a Modelfile against the files that it names."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from llmkit.errors import GGUFError, ModelfileError
from llmkit.export.gguf.adapter import is_adapter
from llmkit.export.gguf.keys import ADAPTER_KEY
from llmkit.export.gguf.reader import GGUFFile, read_gguf
from llmkit.export.modelfile.adapter_lint import (
    RELATIVE_PATH,
    exists,
    lint_adapter,
    safetensors_fault,
)
from llmkit.export.modelfile.facts import chat_template_of, context_length, end_token
from llmkit.export.modelfile.template_fit import difference, misfit
from llmkit.export.modelfile.write import prompt_format_of
from llmkit.export.ollama.address import is_model_name
from llmkit.modelfiles.go_engine import GoEngine, any_go_engine
from llmkit.modelfiles.grammar import Finding, Place, RefusalError
from llmkit.modelfiles.lint import instructions_of, lint_text, place_of
from llmkit.modelfiles.quoting import quoted
from llmkit.modelfiles.reading import ParsedModelfile, read_modelfile
from llmkit.modelfiles.template_lint import plain_text


@dataclass(frozen=True)
class LintReport:
    """What is wrong with a Modelfile, errors first.

    `used_go`: Go's engine ran its TEMPLATE; None where there was none to run.
    """

    findings: tuple[Finding, ...]
    used_go: bool | None

    @property
    def passed(self) -> bool:
        """Whether there are no errors."""
        return all(finding.level != "error" for finding in self.findings)


def lint_modelfile(path: Path) -> LintReport:
    """Find what Ollama refuses, or does differently than intended.

    What Ollama refuses comes alone: TEMPLATE and files are checked once nothing is refused.
    Raises ModelfileError for a file that cannot be read.
    """
    try:
        parsed = read_modelfile(path)
    except RefusalError as refused:
        return LintReport(_ordered((refused.finding, *refused.others)), used_go=None)
    has_template = parsed.modelfile.template is not None
    with any_go_engine() if has_template else nullcontext() as engine:
        found = [*lint_text(parsed, engine), *_Files(parsed, path.parent, engine).lint()]
    return LintReport(_ordered(found), used_go=engine is not None if has_template else None)


def _ordered(found: Iterable[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(found, key=lambda f: (f.level, f.place.line, f.place.column)))


def file_errors(parsed: ParsedModelfile, folder: Path) -> list[Finding]:
    """Errors in what FROM, ADAPTER and the parameters say of files; of TEMPLATE none."""
    # Without an engine TEMPLATE is compared to the letter, and another one is a warning.
    found = _Files(parsed, folder, engine=None).lint()
    return [finding for finding in found if finding.level == "error"]


def local_file(value: str, folder: Path) -> Path:
    """The path that FROM or ADAPTER means: from the Modelfile's folder, `~` is the user's own."""
    path = Path(value)
    try:
        return folder / (path.expanduser() if value.startswith("~") else path)
    except RuntimeError:  # a user that this system does not know
        return path


def _is_path(source: str) -> bool:
    """Whether it is meant as a path, though Ollama would take it for a name: m.gguf, C:/models."""
    return (
        source.lower().endswith((".gguf", ".safetensors"))
        or re.match(r"[A-Za-z]:[/\\]", source) is not None
    )


@dataclass(frozen=True)
class _Files:
    """A Modelfile and the files around it."""

    parsed: ParsedModelfile
    folder: Path
    engine: GoEngine | None

    def lint(self) -> Iterator[Finding]:
        base = None
        for instruction in instructions_of(self.parsed, "from"):
            source, place = instruction.value, instruction.name_at
            path = local_file(source, self.folder)
            # Without such a file Ollama takes it for a model's name.
            if exists(path):
                base = yield from self._source(path, place)
            elif _is_path(source) or not is_model_name(source):
                yield Finding(
                    "error", place, f"invalid model name: FROM {source} does not exist",
                    f"{RELATIVE_PATH}, or a model name such as llama3.2:1b",
                )  # fmt: skip
        adapter = self.parsed.modelfile.adapter
        if adapter is not None:
            place = place_of(self.parsed, "adapter")
            yield from lint_adapter(adapter, local_file(adapter, self.folder), base, place)

    def _source(self, path: Path, place: Place) -> Generator[Finding, None, GGUFFile | None]:
        """Findings in what FROM names; returns the model."""
        fault = safetensors_fault("FROM", path, "config.json")
        if fault is not None:
            yield Finding("error", place, fault, "use the GGUF file from llmkit export")
            return None
        if path.is_dir():
            message = f"FROM names the folder {path.name}, which Ollama converts itself"
            yield Finding(
                "warning", place, message, "use a GGUF file; only that can be checked here"
            )
            return None
        try:
            file = read_gguf(path)
        except GGUFError as error:
            message = f"unknown type: cannot load the GGUF file in FROM: {error}"
            yield Finding("error", place, message, "use the GGUF file from llmkit export")
            return None
        if is_adapter(file):
            message = f"FROM names the adapter {path.name}"
            advice = f"put its base model in FROM, and add ADAPTER ./{path.name}"
            yield Finding("error", place, message, advice)
            return None
        yield from self._context(file)
        yield from self._stops(file)
        yield from self._template(file)
        named = file.metadata.get(ADAPTER_KEY)
        if named is not None and self.parsed.modelfile.adapter is None:
            message = f"{file.path.name} was exported with an adapter, but there is no ADAPTER"
            yield Finding("warning", place, message, f"add ADAPTER ./{Path(str(named)).name}")
        return file

    def _context(self, file: GGUFFile) -> Iterator[Finding]:
        asked, there = self.parsed.modelfile.parameters.num_ctx, context_length(file)
        if asked is not None and there is not None and asked > there:
            yield Finding(
                "error", place_of(self.parsed, "parameter", "num_ctx"),
                f"num_ctx {asked} exceeds the model's context of {there}",
                f"write PARAMETER num_ctx {there}",
            )  # fmt: skip

    def _stops(self, file: GGUFFile) -> Iterator[Finding]:
        end = end_token(file)
        if end is None or end in self.parsed.modelfile.parameters.stop:
            return
        try:
            advice = f"add PARAMETER stop {quoted(end)}"
        except ModelfileError as error:
            advice = str(error)
        place = place_of(self.parsed, "parameter", "stop")
        yield Finding(
            "warning", place, f"PARAMETER stop is missing for the end token {end}", advice
        )

    def _template(self, file: GGUFFile) -> Iterator[Finding]:
        modelfile, form = self.parsed.modelfile, prompt_format_of(file)
        place = place_of(self.parsed, "template")
        advice = f"run llmkit modelfile write {file.path.name} to get a matching one"
        jinja = chat_template_of(file)
        if modelfile.template is None:
            message = (
                "no TEMPLATE: Ollama guesses one from the chat template in the GGUF file"
                if jinja
                else "no TEMPLATE: Ollama uses ChatML and drops the system text"
            )
            yield Finding("warning", place, message, advice)
        elif form is not None:
            fault = misfit(modelfile.template, form, self.engine)
            if fault is not None:
                message = f"TEMPLATE differs from the training format ({form.name}): {fault}"
                yield Finding("error" if self.engine else "warning", place, message, advice)
            if form.default_system and modelfile.system is None:
                message = f"no SYSTEM, but the model was trained with one ({form.name})"
                yield Finding("warning", place, message, advice)
        elif jinja and self.engine is not None:
            fault = difference(modelfile.template, jinja, self.engine)
            if fault is not None:
                message = f"TEMPLATE differs from the file's chat template: {fault}"
                yield Finding(
                    "warning", place, message, "write a TEMPLATE that renders the same text"
                )
        elif not jinja and _is_chat(modelfile.template, end_token(file)):
            message = "TEMPLATE is for chat, but the file has no chat format: is it a base model?"
            yield Finding("warning", place, message, advice)


def _is_chat(template: str, end: str | None) -> bool:
    """Whether a template puts more around a prompt than an end token and white space."""
    return bool(plain_text(template).replace(end or "", "").strip())
