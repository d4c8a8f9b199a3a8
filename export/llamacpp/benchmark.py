"""How fast llama.cpp runs a GGUF file and how much memory it takes, in a process of its own.

Run as `python -m llmkit.export.llamacpp.benchmark FILE N_PROMPT N_GENERATE [gpu]`; prints one
JSON object. Nothing but llama.cpp is loaded there, so that the peak is the file's, not PyTorch's.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from llmkit.errors import GGUFError
from llmkit.export.llamacpp.runtime import LlamaCpp
from llmkit.memory import peak_rss_bytes
from llmkit.threads import users_environment

ROUNDS = 5  # the fastest counts: on a shared machine the others measure its neighbours


@dataclass(frozen=True)
class Speed:
    """Tokens per second and the process's peak resident memory."""

    prompt_tokens_per_s: float
    generate_tokens_per_s: float
    peak_rss_bytes: int


def measure_speed(path: Path, n_prompt: int, n_generate: int, *, gpu: bool = False) -> Speed:
    """Run a file with llama.cpp's defaults in a new process. Raises GGUFError where it fails."""
    # -P: a folder named llmkit where the user stands must not hide the installed package.
    arguments = [str(path), str(n_prompt), str(n_generate), *(["gpu"] if gpu else [])]
    command = [sys.executable, "-P", "-m", __name__, *arguments]
    run = subprocess.run(
        command, capture_output=True, text=True, check=False, env=users_environment()
    )
    if run.returncode != 0:
        last_line = (run.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise GGUFError(f"cannot measure the speed of {path}: {last_line}")
    return Speed(**json.loads(run.stdout))


def _run(path: Path, n_prompt: int, n_generate: int, *, gpu: bool) -> Speed:
    with LlamaCpp(path, exact=False, gpu=gpu) as llama:
        prompt = [token_id % llama.vocab_size for token_id in range(n_prompt)]
        llama.evaluate(prompt, all_positions=False)  # the first run maps the file's pages
        rounds = [_round(llama, prompt, n_generate) for _ in range(ROUNDS)]
    return Speed(
        prompt_tokens_per_s=n_prompt / min(seconds for seconds, _ in rounds),
        generate_tokens_per_s=n_generate / min(seconds for _, seconds in rounds),
        peak_rss_bytes=peak_rss_bytes(),
    )


def _round(llama: LlamaCpp, prompt: list[int], n_generate: int) -> tuple[float, float]:
    """Seconds for the prompt and for the tokens after it."""
    llama.reset()
    started = time.perf_counter()
    llama.evaluate(prompt, all_positions=False)
    prompted = time.perf_counter()
    for token_id in prompt[:n_generate]:
        llama.evaluate([token_id], all_positions=False)
    return prompted - started, time.perf_counter() - prompted


if __name__ == "__main__":
    file, n_prompt, n_generate, *backend = sys.argv[1:]
    speed = _run(Path(file), int(n_prompt), int(n_generate), gpu=backend == ["gpu"])
    print(json.dumps(asdict(speed)))
