"""Tokenizers that a GGUF of tokenizer model `gpt2` reproduces id for id.

All are byte-level BPE on the `tokenizers` library: every byte is in the vocabulary, so no text can
be lost. `bpe` and `char` split text as GPT-2 does; the only merges of `char` build the multi-byte
characters of the training text. `word` splits as Llama 3 does, because there llama.cpp looks each
word up whole before it merges (`ignore_merges`); it has no merges, so other words become bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as HFTokenizer

from llmkit.errors import CheckpointError, ConfigError, DataError
from llmkit.files import write_text
from llmkit.threads import interruptible

END_OF_TEXT = "<|endoftext|>"
N_BYTES = 256
# llama.cpp's names of the two splits, for `tokenizer.ggml.pre`; of the second also its pattern, to
# the letter (llama-vocab.cpp).
GPT2_SPLIT, LLAMA3_SPLIT = "gpt-2", "llama-bpe"
_LLAMA3_PATTERN = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Tokenizer:
    """Text to ids and back, and the vocabulary as a GGUF stores it."""

    hf: HFTokenizer

    def __post_init__(self) -> None:
        # Special tokens are put in by the program, never parsed out of a user's text.
        self.hf.encode_special_tokens = True
        # A tokenizer.json may bring settings that cut or fill up every text.
        self.hf.no_truncation()
        self.hf.no_padding()

    @property
    def vocab_size(self) -> int:
        """Number of tokens, special ones included."""
        return int(self.hf.get_vocab_size(with_added_tokens=True))

    @property
    def looks_up_words(self) -> bool:
        """Whether a word that is a token is that token, whatever the merges are."""
        return bool(self.hf.model.ignore_merges)

    @property
    def pre(self) -> str:
        """The split of text into words, by llama.cpp's name."""
        return LLAMA3_SPLIT if self.looks_up_words else GPT2_SPLIT

    @cached_property
    def end_of_text_id(self) -> int:
        """Id of the token between documents, which is also the end of a generation."""
        token_id = self.hf.token_to_id(END_OF_TEXT)
        if token_id is None or token_id not in self.special_ids:
            raise CheckpointError(
                f"the tokenizer has no special token {END_OF_TEXT}, which ends documents"
            )
        return token_id

    def special_id(self, token: str) -> int:
        """Id of a special token. Raises ConfigError where there is none."""
        token_id = self.hf.token_to_id(token)
        if token_id is None or token_id not in self.special_ids:
            raise ConfigError(f"the tokenizer has no special token {token}")
        return int(token_id)

    def word_id(self, word: str) -> int | None:
        """Id of the token that is just this word, whether or not text is ever cut so."""
        alphabet = byte_alphabet()
        token_id = self.hf.token_to_id("".join(alphabet[byte] for byte in word.encode()))
        return None if token_id in self.special_ids else token_id

    def with_tokens(self, *, special: Sequence[str] = (), words: Sequence[str] = ()) -> Tokenizer:
        """A tokenizer with more tokens after the last id: first words, then special tokens.

        No merge leads to a new word, so text is cut as before; only the model can say it. A
        tokenizer that looks words up finds it in text too.
        Raises ConfigError for a token that is there already.
        """
        content = json.loads(self.hf.to_str())
        alphabet = byte_alphabet()
        # All of them: a special token that the model's vocabulary lacks gets the id behind it.
        vocab = self.hf.get_vocab(with_added_tokens=True)
        for token in (*("".join(alphabet[b] for b in word.encode()) for word in words), *special):
            if token in vocab:
                raise ConfigError(
                    f"the tokenizer already has the token {token!r}; choose another name"
                )
            vocab[token] = len(vocab)
        content["model"]["vocab"] = vocab
        hf = HFTokenizer.from_str(json.dumps(content))
        hf.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
        return Tokenizer(hf)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`. The text of a special token is text like any other.

        Raises DataError for text that UTF-8 cannot encode.
        """
        utf8(text)
        return list(self.hf.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, on all cores."""
        encodings = interruptible(
            lambda: self.hf.encode_batch_fast(list(texts), add_special_tokens=False)
        )
        return [encoding.ids for encoding in encodings]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that the ids stand for; special tokens stand for none."""
        return b"".join(self._token_bytes[token_id] for token_id in ids)

    def decode(self, ids: Iterable[int]) -> str:
        """The text that the ids stand for; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    @cached_property
    def tokens(self) -> list[str]:
        """Each id's token in GPT-2's byte alphabet (where a space is written Ġ)."""
        by_id = {token_id: token for token, token_id in self.hf.get_vocab().items()}
        return [by_id[token_id] for token_id in range(self.vocab_size)]

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of tokens that are not text."""
        added = self.hf.get_added_tokens_decoder()
        return frozenset(token_id for token_id, token in added.items() if token.special)

    @cached_property
    def merges(self) -> list[tuple[str, str]]:
        """BPE merges in order of rank."""
        model = json.loads(self.hf.to_str())["model"]
        return [(left, right) for left, right in model["merges"]]

    @cached_property
    def _token_bytes(self) -> list[bytes]:
        byte_of = {symbol: byte for byte, symbol in enumerate(byte_alphabet())}
        return [
            b"" if token_id in self.special_ids else bytes(byte_of[symbol] for symbol in token)
            for token_id, token in enumerate(self.tokens)
        ]

    def save(self, path: Path) -> None:
        """Write a Hugging Face tokenizer.json."""
        write_text(path, self.hf.to_str(pretty=True))


def utf8(text: str) -> bytes:
    """The bytes of a text. Raises DataError where UTF-8 cannot encode it."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"the text is not valid UTF-8: character {error.start + 1} is an unpaired surrogate"
        ) from error


def byte_alphabet() -> list[str]:
    """GPT-2's printable character for each byte 0..255 (bytes_to_unicode in OpenAI's encoder.py).

    Printable Latin-1 bytes stand for themselves, the others for the characters from U+0100 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(N_BYTES)]


# --- pieces of long text --------------------------------------------------------------------

# Where a word begins in both splits, and no word looks back: a space at either end of white space,
# or a line end after a letter or digit (Llama 3's split gives it to the signs before it). Python
# counts a few more characters as white space, so it cuts less, not wrongly.
_SAFE_CUT = re.compile(r"(?<=\S) | (?=\S)|(?<=[^\W_])[\r\n]")


def safe_pieces(text: str, size: int = 1 << 16) -> Iterator[str]:
    """Cut a long text into pieces of about `size` characters (1 or more).

    Tokenizers cut there too: the tokens of the pieces are those of the text.
    """
    start = 0
    while cut := safe_cut(text, start + size):
        yield text[start:cut]
        start = cut
    yield text[start:]


def safe_cut(text: str, begin: int) -> int:
    """The first place from `begin` on where tokenizers cut too; 0 where there is none."""
    found = _SAFE_CUT.search(text, begin)
    return found.start() if found else 0


def byte_level(model: models.Model) -> HFTokenizer:
    """A tokenizer of the bytes of text, split as GPT-2 or, to look words up, Llama 3 splits it."""
    hf = HFTokenizer(model)
    looks_up = getattr(model, "ignore_merges", False)
    levels = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not looks_up)
    split = pre_tokenizers.Split(Regex(_LLAMA3_PATTERN), behavior="isolated")
    hf.pre_tokenizer = pre_tokenizers.Sequence([split, levels]) if looks_up else levels
    hf.decoder = decoders.ByteLevel()
    return hf


def with_end_of_text(hf: HFTokenizer) -> Tokenizer:
    """The tokenizer with the token that ends a document."""
    hf.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return Tokenizer(hf)
