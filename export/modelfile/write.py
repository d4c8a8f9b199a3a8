"""A Modelfile for a GGUF file, from what the file or its checkpoint says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import gguf

from llmkit.errors import ConfigError, GGUFError
from llmkit.export.gguf.adapter import adapter_of, is_adapter
from llmkit.export.gguf.keys import LABELS_KEY
from llmkit.export.gguf.reader import GGUFFile, is_gguf, load_folder, read_gguf
from llmkit.export.llamacpp.runtime import DEFAULT_CONTEXT
from llmkit.export.modelfile.derived_format import derived_format
from llmkit.export.modelfile.facts import context_length, end_token
from llmkit.files import write_text
from llmkit.modelfiles.modelfile import Modelfile, render
from llmkit.modelfiles.parameters import KINDS, NONE_GIVEN, Parameters
from llmkit.modelfiles.prompt_format import COMPLETION, PROMPT_FORMATS, PromptFormat


def modelfile_for(
    form: PromptFormat,
    source: str,
    *,
    context_length: int | None,
    is_classifier: bool = False,
    adapter: str | None = None,
    comment: Sequence[str] = (),
    given: Parameters = NONE_GIVEN,
) -> Modelfile:
    """The Modelfile of a model that was trained with this prompt format.

    `given`: the user's own parameters.
    """
    parameters = Parameters(stop=form.stops, num_ctx=context_length)
    if is_classifier:  # the label is one token, and the most probable one
        parameters = replace(parameters, num_predict=1, temperature=0)
    return Modelfile(
        source=source,
        adapter=adapter,
        template=form.template,
        system=form.default_system or None,
        parameters=_with_given(parameters, given),
        comment=tuple(comment),
    )


def _with_given(parameters: Parameters, given: Parameters) -> Parameters:
    """Values of the user's replace others; stop strings are added."""
    values = {name: value for name in KINDS if (value := getattr(given, name)) is not None}
    return replace(parameters, **{**values, "stop": (*parameters.stop, *given.stop)})


def write_modelfile(
    model: Path,
    out: Path | None = None,
    *,
    gguf_file: Path | None = None,
    form: PromptFormat | None = None,
    system: str | None = None,
    parameters: Parameters = NONE_GIVEN,
) -> Path:
    """Write the Modelfile of a GGUF file; `out` is `Modelfile` beside it unless given.

    `model` is that file, or a checkpoint whose file `gguf_file` is. A file names its prompt format
    by its chat template, whatever program wrote it; one without is a base model, which completes.
    Raises LlmkitError: a format that has to be named, a file `out` that is already there.
    """
    checkpoint = None if is_gguf(model) else load_folder(model)
    if checkpoint is None and gguf_file is not None:
        raise ConfigError(f"{model} is already a GGUF file; remove --gguf")
    if checkpoint is not None and gguf_file is None:
        raise ConfigError(
            f"{model} is a checkpoint; pass the GGUF file exported from it with --gguf"
        )
    file = read_gguf(gguf_file or model)
    if is_adapter(file):
        raise GGUFError(f"{file.path} is an adapter; use its base model, and ADAPTER is added")
    if gguf.Keys.General.ARCHITECTURE not in file.metadata:
        raise GGUFError(
            f"{file.path} has no {gguf.Keys.General.ARCHITECTURE}; Ollama needs a model"
        )
    if checkpoint is not None:
        form = form or checkpoint.prompt_format
        _check_context(file, checkpoint.config.context_length, model)
    out = out or file.path.parent / "Modelfile"
    if out.exists():
        raise ConfigError(f"{out} already exists; choose another --out, or remove it")
    text = render(_filled(file, out, form or _format_or_completion(file), system, parameters))
    write_text(out, text)
    return out


def prompt_format_of(file: GGUFFile) -> PromptFormat | None:
    """The built-in format that a file's chat template is; None for another, or for none."""
    there = file.metadata.get(gguf.Keys.Tokenizer.CHAT_TEMPLATE)
    return next((form for form in PROMPT_FORMATS.values() if form.chat_template == there), None)


def _filled(
    file: GGUFFile,
    out: Path,
    form: PromptFormat,
    system: str | None,
    parameters: Parameters,
) -> Modelfile:
    adapter, length = adapter_of(file), context_length(file)
    modelfile = modelfile_for(
        form,
        _seen_from(out, file.path),
        context_length=None if length is None else min(length, DEFAULT_CONTEXT),
        is_classifier=LABELS_KEY in file.metadata,
        adapter=_seen_from(out, adapter.path) if adapter else None,
        given=parameters,
    )
    end = end_token(file)
    stops = modelfile.parameters.stop
    if end is not None and end not in stops:
        stops = (end, *stops)
    return replace(
        modelfile,
        system=modelfile.system if system is None else system,
        parameters=replace(modelfile.parameters, stop=stops),
    )


def _seen_from(modelfile: Path, file: Path) -> str:
    """The file's path from the Modelfile's folder, so that both can be moved together."""
    folder, file = modelfile.resolve().parent, file.resolve()
    if file.is_relative_to(folder):
        return f"./{file.relative_to(folder).as_posix()}"
    return file.as_posix()


def _format_or_completion(file: GGUFFile) -> PromptFormat:
    if gguf.Keys.Tokenizer.CHAT_TEMPLATE not in file.metadata:
        return COMPLETION
    form = prompt_format_of(file) or derived_format(file)
    if form is None:
        raise ConfigError(
            f"cannot turn the chat template of {file.path} into a TEMPLATE; set its format with "
            f"--format: {', '.join(PROMPT_FORMATS)}, or the path of a .toml file"
        )
    return form


def _check_context(file: GGUFFile, length: int, checkpoint: Path) -> None:
    if context_length(file) != length:
        raise ConfigError(
            f"{file.path} has a context of {context_length(file)}, but {checkpoint} has {length}; "
            "use a file exported from this checkpoint"
        )
