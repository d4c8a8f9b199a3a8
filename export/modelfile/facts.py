"""What a GGUF file of any architecture says that its Modelfile depends on."""

from __future__ import annotations

import gguf

from llmkit.export.gguf.reader import GGUFFile
from llmkit.export.llamacpp.chat_template import ChatTemplate


def context_length(file: GGUFFile) -> int | None:
    """How many tokens the model sees, whatever its architecture."""
    architecture = file.metadata.get(gguf.Keys.General.ARCHITECTURE)
    found = file.metadata.get(gguf.Keys.LLM.CONTEXT_LENGTH.format(arch=architecture))
    return found if isinstance(found, int) else None


def end_token(file: GGUFFile) -> str | None:
    """The text of the token that ends a generation."""
    tokens = file.metadata.get(gguf.Keys.Tokenizer.LIST)
    end_id = file.metadata.get(gguf.Keys.Tokenizer.EOS_ID)
    if not isinstance(tokens, list) or not isinstance(end_id, int):
        return None
    return str(tokens[end_id]) if 0 <= end_id < len(tokens) else None


def chat_template_of(file: GGUFFile) -> ChatTemplate | None:
    """The file's Jinja template, in which `bos_token` is empty: Ollama adds that token itself."""
    source = file.metadata.get(gguf.Keys.Tokenizer.CHAT_TEMPLATE)
    return None if source is None else ChatTemplate(str(source), eos=end_token(file) or "")
