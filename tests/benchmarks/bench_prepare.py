"""`llmkit data prepare` beside the batch encoding of `tokenizers`: CPU seconds, time and memory.

    python tests/benchmarks/bench_prepare.py TEXT... [--megabytes 1000] [--pairs 4]

Makes text of that size from the documents of TEXT (files): shuffled, and one word in twenty
replaced by one of two million rare ones, because a gigabyte has about as many. All of it is
prepared once, tokenizer training included, for the memory. Then both encode pieces of a twentieth
in turn with that tokenizer, so that other work on the machine slows both. Each run is a process of
its own, and its start counts.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

RARE_WORDS = 2_000_000
SYLLABLES = [a + b for a in "bdfgklmnprstvwz" for b in "aeiou"]
LINES = 40  # of a document
LLMKIT = "from llmkit.cli import run; run()"
ENCODE = """
import sys
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file(sys.argv[1])
tokenizer.encode_special_tokens = True
documents = open(sys.argv[2], encoding="utf-8").read().split("<|endoftext|>")
for first in range(0, len(documents), 1000):
    tokenizer.encode_batch(documents[first : first + 1000], add_special_tokens=False)
"""


@dataclass(frozen=True)
class Run:
    """What a process and its children took."""

    wall_s: float
    cpu_s: float
    peak_bytes: int


def main() -> None:
    """Print memory and ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("text", nargs="+", type=Path)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--pairs", type=int, default=4)
    options = parser.parse_args()
    size = options.megabytes * 1_000_000
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        text, piece = folder / "text.txt", folder / "piece.txt"
        made = documents(options.text)
        write_text(text, made, size)
        run = measured("-c", LLMKIT, "data", "prepare", text, "--out", folder / "all")
        print(
            f"prepare {size / 1e6:.0f} MB, with training: {run.wall_s:.0f} s, {run.cpu_s:.0f} CPU "
            f"seconds, {run.peak_bytes / 1e6:.0f} MB of memory at most",
            flush=True,
        )
        text.unlink()
        tokenizer = folder / "all" / "tokenizer.json"
        pairs = []
        for number in range(options.pairs):
            write_text(piece, made, size // 20)
            prepare = ("-c", LLMKIT, "data", "prepare", piece, "--tokenizer", tokenizer, "--out")
            calls = [(*prepare, folder / str(number)), ("-c", ENCODE, tokenizer, piece)]
            order = 1 if number % 2 == 0 else -1
            ours, theirs = [measured(*call) for call in calls[::order]][::order]
            pairs.append((theirs.wall_s / ours.wall_s, theirs.cpu_s / ours.cpu_s))
            print(
                f"{size / 2e7:.0f} MB: prepare {ours.wall_s:.1f} s, {ours.cpu_s:.1f} CPU seconds, "
                f"{ours.peak_bytes / 1e6:.0f} MB; tokenizers {theirs.wall_s:.1f} s, "
                f"{theirs.cpu_s:.1f} CPU seconds, {theirs.peak_bytes / 1e6:.0f} MB",
                flush=True,
            )
        by_time, by_cpu = (statistics.median(ratios) for ratios in zip(*pairs, strict=True))
        print(f"throughput of tokenizers' encode_batch: {by_time:.2f} by time, {by_cpu:.2f} by CPU")


def measured(*words: object) -> Run:
    """Run Python in a process of its own. Memory is looked at every 50 ms."""
    started, cpu_s, peak = time.monotonic(), 0.0, 0
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = psutil.Popen([sys.executable, *map(str, words)], **quiet)
    while process.poll() is None:
        try:
            tree = [process, *process.children(recursive=True)]
            peak = max(peak, sum(one.memory_info().rss for one in tree))
            cpu_s = max(cpu_s, sum(sum(one.cpu_times()[:2]) for one in tree))
        except psutil.NoSuchProcess:
            continue
        time.sleep(0.05)
    assert process.returncode == 0, words
    return Run(time.monotonic() - started, cpu_s, peak)


def documents(sources: list[Path]) -> Iterator[str]:
    """Documents without end."""
    lines = [line for path in sources for line in path.read_text(encoding="utf-8").splitlines()]
    texts = ["\n".join(lines[n : n + LINES]).split(" ") for n in range(0, len(lines), LINES)]
    chance = random.Random(0)
    while True:
        chance.shuffle(texts)
        for words in map(list, texts):
            for place in range(chance.randrange(20), len(words), 20):
                words[place] = rare_word(int(RARE_WORDS * chance.random() ** 3))
            yield " ".join(words)


def rare_word(number: int) -> str:
    """A word of four syllables for each number."""
    base = len(SYLLABLES)
    return "".join(SYLLABLES[number // base**place % base] for place in range(4))


def write_text(path: Path, made: Iterator[str], size: int) -> None:
    """A file of about that many bytes."""
    with path.open("wb") as file:
        while file.tell() < size:
            file.write((next(made) + "<|endoftext|>").encode())


if __name__ == "__main__":
    main()
