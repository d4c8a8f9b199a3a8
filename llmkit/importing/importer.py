"""`llmkit import`: a checkpoint of another program as one of llmkit's, proved where it can be."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from llmkit.architectures.gpt2 import GPT2
from llmkit.architectures.registry import model_without_weights
from llmkit.checkpoint.checkpoint import label_ids, load_checkpoint
from llmkit.checkpoint.config import CheckpointConfig, save_config
from llmkit.checkpoint.layout import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_FILE,
    CONFIG_FILE,
    MODEL_FILE,
    TOKENIZER_FILE,
)
from llmkit.checkpoint.tensors import fault_of, write_tensors
from llmkit.errors import CheckpointError, ConfigError
from llmkit.files import StrPath, optional_path
from llmkit.importing.assemble import Assembly, Vocabulary, assemble
from llmkit.importing.facts import TO_TRY, Facts, ImportOptions, gather
from llmkit.importing.gguf_file import import_gguf, is_gguf
from llmkit.importing.locate import is_llmkit_checkpoint, local
from llmkit.importing.lora import merged
from llmkit.importing.made import Import, check_out, staged
from llmkit.importing.naming.parts import Parts
from llmkit.importing.naming.take_apart import take_apart
from llmkit.importing.projects import PROJECTS, recognised
from llmkit.importing.prompt_formats import chat_template_in, find_prompt_format
from llmkit.importing.reference import (
    ImportProof,
    ReferenceLogits,
    check_reference,
    find_alternative,
    logits_of,
    prove,
    read_reference,
    with_fitting_heads,
)
from llmkit.importing.refusals import check_sizes, refuse_impossible, refuse_project
from llmkit.importing.source.opening import open_source
from llmkit.importing.source.source import Source, inside, without_prefixes
from llmkit.importing.steps import steps_of
from llmkit.importing.tokenizers.find import find_tokenizer
from llmkit.importing.tokenizers.imported import ImportedTokenizer, without_false_ends
from llmkit.modelfiles.prompt_format import PromptFormat
from llmkit.tokenizer import Tokenizer

_MEASURED_TOKENS = 64
UNKNOWN = "a scheme of names that is not known, read by general rules"


def import_checkpoint(
    source: StrPath,
    out: StrPath,
    options: ImportOptions | None = None,
    *,
    reference: StrPath | None = None,
) -> Import:
    """Write the checkpoint folder `out` from a file, a folder or a Hugging Face id.

    `reference`: an .npz file with `tokens` (B, T) and the `logits` (B, T, V) of the model's own
    program; the import is compared with them at every position. Raises LlmkitError for a source
    that is damaged, or that llama.cpp cannot compute, for a fact that neither the file nor an
    option gives, and where the logits differ. Nothing is written then.
    """
    options = options or ImportOptions()
    out, given = Path(out), optional_path(reference)
    check_out(out)
    path = local(str(source))
    if is_llmkit_checkpoint(path):
        raise ConfigError(f"{source} is a checkpoint of llmkit already; give it to llmkit export")
    if is_gguf(path):
        return import_gguf(path, out, options, read_reference(given) if given else None)
    opened = open_source(path)
    tensors, n_merged = merged(without_prefixes(opened.tensors), options.lora_alpha)
    project = recognised(PROJECTS, opened, tensors)
    refuse_project(project, str(source))
    parts = take_apart(tensors)
    check_sizes(opened, project, parts)
    _leave_out_zeros(opened, parts)
    options = _with_labels(opened, parts, options)
    known = read_reference(given) if given else None
    facts = gather(opened, project, parts, options, has_reference=known is not None)
    refuse_impossible(facts, project)
    implied = project.tokenizer if project else None
    found = find_tokenizer(opened, options.tokenizer, len(parts.tokens.weight), implied)
    tokenizer, vocabulary = _vocabulary(found, parts, options)
    if known is not None:
        check_reference(known, vocabulary.n_kept, len(parts.positions.weight))
        if facts.n_head.origin == TO_TRY:
            facts = with_fitting_heads(parts, facts, known)
    assembly = assemble(parts, facts, vocabulary, GPT2.config)
    template = chat_template_in(opened.folder)
    form, format_notes = find_prompt_format(options, template, found.end, tokenizer)
    tokenizer, renamed = without_false_ends(tokenizer, form.stops)
    with staged(out) as folder:
        _write(folder, assembly, form, tokenizer, options.labels, opened)
        checkpoint = load_checkpoint(folder)
        if checkpoint.lora is not None:  # names, shapes and numbers of its tensors
            checkpoint.add_adapter(model_without_weights(checkpoint.config))
        proof = prove(checkpoint.load_model(), known, vocabulary) if known else None
        if known is not None and proof is not None and not proof.passed:
            raise CheckpointError(_mismatch(parts, facts, known, vocabulary, proof))
    notes = [*found.notes, *format_notes]
    notes += [
        f"the token {token} is called <|{token}|> now: llama.cpp takes {token} for an end"
        for token in renamed
    ]
    if n_merged:
        notes.append(f"{n_merged} LoRA corrections were merged with alpha {options.lora_alpha}")
    return Import(
        out,
        project.name if project else UNKNOWN,
        opened.container,
        assembly.config,
        steps_of(parts, facts, vocabulary, assembly.config.tie_embeddings),
        facts.items(),
        found.origin,
        notes,
        proof,
        _activation_cost(parts, facts, known),
    )


def _leave_out_zeros(source: Source, parts: Parts) -> None:
    """Without the biases that `export --to hf` wrote for a model that has none."""
    fused = [layer.qkv for layer in parts.layers if layer.qkv is not None]
    if source.settings.get("qkv_bias") is False and not any(
        linear.bias is not None and linear.bias.any() for linear in fused
    ):
        for linear in fused:
            linear.bias = None


def _with_labels(source: Source, parts: Parts, options: ImportOptions) -> ImportOptions:
    """The labels of a classifier, which config.json names where the user does not.

    Raises ConfigError where neither does, or for labels of another model.
    """
    head = parts.head
    n_rows = len(parts.tokens.weight)
    if head is not None and len(head.weight) != n_rows:
        n_labels = len(head.weight)
        labels = options.labels or _stated_labels(source, n_labels)
        if len(labels) != n_labels:
            given = f", but --labels has {len(labels)}" if labels else ""
            raise ConfigError(
                f"{head.name} has {n_labels} rows for a vocabulary of {n_rows:,}: this is a "
                f"classifier{given}; name all {n_labels} in the order of the rows, for example "
                "--labels ham,spam"
            )
        return replace(options, labels=labels)
    if options.labels:
        raise ConfigError(
            "--labels: the model is not a classifier, its head has a row for every token; omit it"
        )
    return options


def _stated_labels(source: Source, n_labels: int) -> tuple[str, ...]:
    """The names in `id2label`; none where they are those that transformers makes up."""
    names = source.extras.get(CONFIG_FILE, {}).get("id2label")
    if not isinstance(names, dict):
        return ()
    labels = tuple(str(names.get(str(i))) for i in range(n_labels))
    return () if any(re.fullmatch(r"LABEL_\d+|None", label) for label in labels) else labels


def _vocabulary(
    found: ImportedTokenizer, parts: Parts, options: ImportOptions
) -> tuple[Tokenizer, Vocabulary]:
    """The tokenizer with the labels as words, and which rows the model gets."""
    tokenizer = found.tokenizer
    words = [label for label in options.labels if tokenizer.word_id(label) is None]
    if words:
        tokenizer = tokenizer.with_tokens(words=words)
    ids = label_ids(tokenizer, options.labels)
    return tokenizer, Vocabulary(found.n_own, tokenizer.vocab_size - found.n_own, ids)


def _write(
    folder: Path,
    assembly: Assembly,
    form: PromptFormat,
    tokenizer: Tokenizer,
    labels: Sequence[str],
    source: Source,
) -> None:
    try:
        write_tensors(folder / MODEL_FILE, assembly.shapes, assembly.tensors, {"step": source.step})
    except CheckpointError:
        for name, tensor in source.tensors.items():
            if fault := fault_of(tensor):
                raise CheckpointError(f"{source.path}: tensor {name} {fault}") from None
        raise
    adapter = (ADAPTER_CONFIG_FILE, ADAPTER_FILE)
    if all((source.folder / name).is_file() for name in adapter):
        for name in adapter:
            shutil.copyfile(inside(source.folder, name), folder / name)
    tokenizer.save(folder / TOKENIZER_FILE)
    save_config(folder, CheckpointConfig(assembly.config, form, tuple(labels)))


def _mismatch(
    parts: Parts,
    facts: Facts,
    reference: ReferenceLogits,
    vocabulary: Vocabulary,
    proof: ImportProof,
) -> str:
    said = (
        f"the logits differ from the reference by up to {proof.max_difference:.3g} "
        f"(limit {proof.limit:.1g})"
    )
    other = find_alternative(parts, facts, reference, vocabulary)
    if other is None:
        return f"{said}, and no other activation, head count, norm or mask explains it"
    if not other.is_possible:
        shown = " and ".join(f"{n.replace('_', ' ')} {v}" for n, v in other.changed.items())
        return f"{said}; they agree with {shown}, which llama.cpp's gpt2 graph cannot compute"
    flags = " ".join(f"--{n.replace('_', '-')} {v}" for n, v in other.changed.items())
    return f"{said}; with {flags} they agree ({other.difference:.1g})"


def _activation_cost(parts: Parts, facts: Facts, reference: ReferenceLogits | None) -> float | None:
    """The largest difference of a logit that llama.cpp's GELU makes, on text of the reference."""
    if facts.activation.value != "gelu_erf":
        return None
    if reference is not None:
        tokens = reference.tokens[0]
    else:
        n = min(_MEASURED_TOKENS, len(parts.positions.weight))
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(len(parts.tokens.weight), (n,), generator=generator)
    exact = logits_of(parts, facts, tokens)
    tanh = logits_of(parts, facts.with_value("activation", "gelu_tanh"), tokens)
    return float((exact - tanh).abs().max())
