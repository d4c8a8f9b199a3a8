"""TEMPLATE of files by other programs, from chat templates that are in wide use."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from gguf_surgery import Kind, keys_of
from other_architectures import SHAPES, write_model

from llmkit.errors import ConfigError
from llmkit.export.gguf.reader import read_gguf
from llmkit.export.llamacpp.chat_template import ChatTemplate
from llmkit.export.modelfile.derived_format import derived_format
from llmkit.export.modelfile.lint import lint_modelfile
from llmkit.export.modelfile.write import write_modelfile
from llmkit.modelfiles.go_engine import any_go_engine
from llmkit.modelfiles.prompt_format import Message
from llmkit.modelfiles.reading import read_modelfile

CHATML = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + "
    "message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA_3 = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + "
    "'<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{% set role = 'model' %}"
    "{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
ZEPHYR = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + "
    "eos_token }}{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    "{% endfor %}"
)
# The system text is part of the user's turn.
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set system = '<<SYS>>' + messages[0]['content'] "
    "+ '<</SYS>>' %}{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' }}"
    "{% if loop.first %}{{ system }}{% endif %}{{ message['content'] + ' [/INST]' }}{% else %}"
    "{{ message['content'] + '<|eot_id|>' }}{% endif %}{% endfor %}"
)
SPECIAL = (
    "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "<start_of_turn>", "<end_of_turn>", "</s>",
)  # fmt: skip
QUESTION, SYSTEM = Message("user", "Who is it?"), Message("system", "Be brief.")
TURNS = (QUESTION, Message("assistant", "Ida."), Message("user", "And then?"))


def with_template(path: Path, template: str) -> Path:
    """A model with the special tokens of all templates."""
    keys = keys_of(write_model(path, "llama"))
    tokens, types = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    n = len(SPECIAL)
    more = {
        "tokenizer.ggml.tokens": ([*tokens[0][:-n], *SPECIAL], *tokens[1:]),
        "tokenizer.ggml.token_type": ([*types[0][:-n], *[3] * n], *types[1:]),
        "tokenizer.ggml.eos_token_id": (len(tokens[0]) - 1, Kind.UINT32, None),
    }
    return write_model(path, "llama", chat_template=template, more=more)


@pytest.mark.parametrize(
    ("template", "end", "system"),
    [
        (CHATML, "<|im_end|>", "You help."),
        (LLAMA_3, "<|eot_id|>", ""),
        (GEMMA, "<end_of_turn>", ""),
        (ZEPHYR, "</s>", ""),
    ],
    ids=["chatml", "llama-3", "gemma", "zephyr"],
)
def test_the_template_becomes_ollamas(template: str, end: str, system: str, tmp_path: Path) -> None:
    file = read_gguf(with_template(tmp_path / "m.gguf", template))
    form = derived_format(file)
    assert form is not None
    assert (form.end, form.default_system) == (end, system)
    written = write_modelfile(file.path)
    assert lint_modelfile(written).findings == ()
    said = read_modelfile(written).modelfile
    assert end in said.parameters.stop
    assert said.parameters.num_ctx == 96
    talks = [(QUESTION,), TURNS]
    if template != GEMMA:
        talks += [(SYSTEM, *talk) for talk in talks]
    with any_go_engine() as engine:
        if engine is None:
            pytest.skip("no Go compiler")
        for talk in talks:
            found = engine.render(said.template or "", talk, said.system or "")
            assert found == ChatTemplate(template, eos="</s>").text(talk)


@pytest.mark.parametrize("template", [LLAMA_2, "{{ x }}", "{{ messages[0]. }}"])
def test_what_ollama_cannot_be_told_needs_a_format(template: str, tmp_path: Path) -> None:
    path = with_template(tmp_path / "m.gguf", template)
    with pytest.raises(ConfigError, match="--format"):
        write_modelfile(path)


def test_a_long_context_is_not_asked_for(tmp_path: Path) -> None:
    shape = replace(SHAPES["llama"], context=1 << 17)
    path = write_model(tmp_path / "m.gguf", "llama", shape)
    assert read_modelfile(write_modelfile(path)).modelfile.parameters.num_ctx == 4096
