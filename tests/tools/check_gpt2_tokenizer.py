"""GPT-2's tokenizer in llmkit, `tokenizers` and llama.cpp: ids of random and real text.

    python tests/tools/check_gpt2_tokenizer.py FOLDER [N] [TEXT...]

FOLDER has encoder.json and vocab.bpe. N random Unicode strings (100,000), and the lines of files.
"""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer

from llmkit.architectures.gpt2 import GPT, GPTConfig
from llmkit.checkpoint.config import CheckpointConfig, save_config
from llmkit.checkpoint.tensors import save_tensors
from llmkit.export.convert import export
from llmkit.export.llamacpp.runtime import LlamaCpp
from llmkit.export.quantization.config import QuantConfig
from llmkit.modelfiles.prompt_format import COMPLETION
from llmkit.tokenizer_files import load_tokenizer

RANGES = (
    *((0x20, 0x7F), (0xA0, 0x250), (0x370, 0x600), (0x900, 0xA00), (0x3040, 0x30FF)),
    *((0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0x2000, 0x2070), (0x1F300, 0x1F700), (9, 14)),
)


def random_text(generator: random.Random) -> str:
    """Up to 40 characters, mostly from one or two ranges."""
    ranges = generator.sample(RANGES, 2)
    return "".join(
        chr(generator.randrange(*generator.choice(ranges)))
        for _ in range(generator.randrange(1, 40))
    )


def main(folder: Path, n: int, files: list[Path]) -> None:
    """Print how many texts differ."""
    generator = random.Random(0)
    texts = [random_text(generator) for _ in range(n)]
    texts += [line for path in files for line in path.read_text("utf-8").splitlines(True)]
    tokenizer = load_tokenizer(folder)
    plain = ByteLevelBPETokenizer.from_file(str(folder / "encoder.json"), str(folder / "vocab.bpe"))
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size, context_length=8, n_layer=1, n_head=1, n_embd=32
    )
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        own = Path(name) / "own"
        own.mkdir()
        tokenizer.save(own / "tokenizer.json")
        save_config(own, CheckpointConfig(config, COMPLETION))
        save_tensors(own / "model.safetensors", GPT(config).state_dict(), 0)
        file = export(own, Path(name) / "gguf", QuantConfig(["q8_0"]), prove=False).files[0].path
        with LlamaCpp(file, n_ctx=8) as llama:
            ours = tokenizer.encode_batch(texts)
            theirs = [found.ids for found in plain.encode_batch(texts)]
            in_llama = [llama.tokenize(text) for text in texts]
    others = sum(a != b for a, b in zip(ours, theirs, strict=True))
    differs = sum(a != b for a, b in zip(ours, in_llama, strict=True))
    print(f"{len(texts):,} texts: {others} differ from tokenizers, {differs} from llama.cpp")


if __name__ == "__main__":
    main(
        Path(sys.argv[1]),
        int(sys.argv[2]) if len(sys.argv) > 2 else 100_000,
        [Path(path) for path in sys.argv[3:]],
    )
