"""A prompt format as the two template languages that run it: Go's for Ollama, Jinja for GGUF."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmkit.modelfiles.prompt_format import PromptFormat

BETWEEN_MESSAGES = "\n\n"  # what Ollama joins messages of one role with

# Two braces begin an action. In a Modelfile three quotes end a value, and characters that do not
# print are dropped, but for these.
_PLAIN_IN_GO = "\n\t"
# The escapes that Jinja2 and llama.cpp's own Jinja both know. They also keep line ends from
# being normalized.
_JINJA_ESCAPES = str.maketrans({"\\": r"\\", "'": r"\'", "\n": r"\n", "\r": r"\r", "\t": r"\t"})


def go_template(form: PromptFormat) -> str:
    """An Ollama TEMPLATE that is executed once per turn.

    Ollama cuts the last turn after `.Response`, so what follows an answer stands behind it.
    """
    system, user, assistant = form.system, form.user, form.assistant
    return "".join(
        (
            "{{ if .System }}",
            f"{_go(system.before)}{{{{ .System }}}}{_go(system.after)}",
            "{{ end }}{{ if .Prompt }}",
            f"{_go(user.before)}{{{{ .Prompt }}}}{_go(user.after)}",
            "{{ end }}",
            f"{_go(assistant.before)}{{{{ .Response }}}}{_go(form.end + assistant.after)}",
        )
    )


def jinja_template(form: PromptFormat) -> str:
    """A chat template with what Ollama does to messages: joined by role, empty ones left out.

    It knows `messages` and `add_generation_prompt`. What follows the last answer's end token is
    left out, as in training.
    """
    system, user, assistant = form.system, form.user, form.assistant
    default = system.before + form.default_system + system.after
    default_block = f"""\
{{%- if not messages or messages[0].role != 'system' -%}}
{{{{- {_jinja(default)} -}}}}
{{%- endif -%}}
"""
    # Every tag strips the white space around it, so that the lines of the template leave none.
    return f"""\
{default_block if form.default_system else ""}\
{{%- set joined = namespace(text='') -%}}
{{%- for message in messages -%}}
{{%- set joined.text = joined.text + message.content -%}}
{{%- if not loop.last and messages[loop.index0 + 1].role == message.role -%}}
{{%- set joined.text = joined.text + {_jinja(BETWEEN_MESSAGES)} -%}}
{{%- else -%}}
{{%- if joined.text -%}}
{{%- if message.role == 'system' -%}}
{{{{- {_jinja(system.before)} + joined.text + {_jinja(system.after)} -}}}}
{{%- elif message.role == 'user' -%}}
{{{{- {_jinja(user.before)} + joined.text + {_jinja(user.after)} -}}}}
{{%- elif message.role == 'assistant' -%}}
{{{{- {_jinja(assistant.before)} + joined.text + {_jinja(form.end)} -}}}}
{{%- if not loop.last -%}}
{{{{- {_jinja(assistant.after)} -}}}}
{{%- endif -%}}
{{%- endif -%}}
{{%- endif -%}}
{{%- set joined.text = '' -%}}
{{%- endif -%}}
{{%- endfor -%}}
{{%- if add_generation_prompt -%}}
{{{{- {_jinja(assistant.before)} -}}}}
{{%- endif -%}}
"""


def _go(text: str) -> str:
    """`text` for outside of actions, characters that need it as Go string constants."""
    return "".join(map(_go_character, text))


def _go_character(character: str) -> str:
    if character == "{":
        return '{{ "{" }}'
    if character == '"':
        return r'{{ "\"" }}'
    if character.isprintable() or character in _PLAIN_IN_GO:
        return character
    return f'{{{{ "\\U{ord(character):08x}" }}}}'


def _jinja(text: str) -> str:
    """`text` as a Jinja string."""
    return f"'{text.translate(_JINJA_ESCAPES)}'"
