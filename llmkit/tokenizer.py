"""Tokenizers that a GGUF of tokenizer model `gpt2` reproduces id for id.

All are byte-level BPE on the `tokenizers` library: every byte is in the vocabulary, so no text can
be lost. `bpe` and `char` split text as GPT-2 does; the only merges of `char` build the multi-byte
characters of the training text. `word` splits as Llama 3 does, because there llama.cpp looks each
word up whole before it merges (`ignore_merges`); it has no merges, so other words become bytes.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as HFTokenizer

from llmkit.errors import CheckpointError, ConfigError, DataError, LlmkitError
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


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer.json, or that of a folder, or its encoder.json and vocab.bpe (OpenAI's).

    Raises CheckpointError where it is missing, damaged or none that a GGUF's `gpt2` tokenizer
    model can reproduce.
    """
    file = path if path.is_file() else path / "tokenizer.json"
    try:
        if file.exists():
            return _accepted(HFTokenizer.from_file(str(file)), str(file))
        file = path / "vocab.bpe"
        if file.exists():
            return _from_openai(path)
    except LlmkitError:
        raise
    except Exception as error:  # the library raises bare Exception for every kind of bad file
        raise CheckpointError(f"{file} is not a tokenizer: {error}") from error
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; give a tokenizer.json or its folder")
    raise CheckpointError(
        f"{path} has no tokenizer; it needs tokenizer.json, or encoder.json and vocab.bpe"
    )


def download_gpt2() -> Tokenizer:
    """OpenAI's GPT-2 tokenizer from the Hugging Face hub (or its local cache).

    Raises CheckpointError where there is no network.
    """
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)  # one line of ours is enough
    try:
        hf = HFTokenizer.from_pretrained("openai-community/gpt2")
    except Exception as error:  # every network failure has its own type
        raise CheckpointError(
            "cannot download the gpt2 tokenizer; copy encoder.json and vocab.bpe into a folder "
            "and give it as --tokenizer"
        ) from error
    return _accepted(hf, "openai-community/gpt2")


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


def _from_openai(folder: Path) -> Tokenizer:
    vocab = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
    lines = (folder / "vocab.bpe").read_text(encoding="utf-8").split("\n")[1:]  # first: a version
    merges = [(left, right) for left, right in (line.split(" ") for line in lines if line)]
    for left, right in merges:
        if not {left, right, left + right} <= vocab.keys():
            raise CheckpointError(
                f"{folder}: vocab.bpe merges {left!r} and {right!r}, but encoder.json lacks one of "
                "the tokens; copy both files from the same tokenizer"
            )
    hf = with_end_of_text(byte_level(models.BPE(vocab=vocab, merges=merges))).hf
    return _accepted(hf, str(folder / "encoder.json"))


_TRAIN_ONE = "train a tokenizer with --tokenizer bpe"


def _accepted(hf: HFTokenizer, source: str) -> Tokenizer:
    """Accept a tokenizer that llama.cpp's `gpt2` model can reproduce, or raise CheckpointError."""
    found = json.loads(hf.to_str())
    wanted = _as_wanted(found)
    differs = [part for part in ("normalizer", "pre_tokenizer") if not _same(found, wanted, part)]
    switches = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
    differs += [switch for switch in switches if found["model"].get(switch)]
    if found["model"]["type"] != "BPE" or differs:
        raise CheckpointError(
            f"{source} is not byte-level BPE with GPT-2's pre-tokenizer, or Llama 3's and "
            f"ignore_merges, as GGUF's gpt2 tokenizer model requires; {_TRAIN_ONE}"
        )
    missing = [symbol for symbol in byte_alphabet() if hf.token_to_id(symbol) is None]
    if missing:
        raise CheckpointError(
            f"{source} lacks {len(missing)} of the {N_BYTES} byte tokens (the first is "
            f"{missing[0]!r}) and cannot encode every text; {_TRAIN_ONE}"
        )
    parsed = [token["content"] for token in found["added_tokens"] if not token["special"]]
    if parsed:
        raise CheckpointError(
            f"{source} splits the added token {parsed[0]!r} from text before BPE, which llama.cpp "
            f"does not do; {_TRAIN_ONE}"
        )
    ids = hf.get_vocab().values()
    if set(ids) != set(range(len(ids))):
        raise CheckpointError(
            f"{source}: token ids must be 0 to {len(ids) - 1} without gaps or duplicates"
        )
    tokenizer = Tokenizer(hf)
    tokenizer.end_of_text_id  # noqa: B018  raises where there is none
    return tokenizer


def is_of_words(content: dict[str, Any]) -> bool:
    """Whether the content of a tokenizer.json looks words up, with Llama 3's split."""
    looks_up = bool(content["model"].get("ignore_merges"))
    return looks_up and _same(content, _as_wanted(content), "pre_tokenizer")


def _as_wanted(found: dict[str, Any]) -> dict[str, Any]:
    looks_up = bool(found["model"].get("ignore_merges"))
    wanted: dict[str, Any] = json.loads(byte_level(models.BPE(ignore_merges=looks_up)).to_str())
    return wanted


def _same(found: dict[str, Any], wanted: dict[str, Any], part: str) -> bool:
    """Whether a part of tokenizer.json is the same but for trim_offsets, which moves no id."""
    a, b = (dict(description[part] or {}, trim_offsets=None) for description in (found, wanted))
    return a == b
