"""Training on the CPU, in pairs: against plain products, against a plain loop, by settings.

    python tests/benchmarks/bench_training.py step
    python tests/benchmarks/bench_training.py quality TEXT [SECONDS...]
    python tests/benchmarks/bench_training.py nanogpt TEXT [STEPS]
    python tests/benchmarks/bench_training.py settings [ROUNDS]

`step`: FLOPs per second of training steps, as a share of what matrix products of the same shapes
reach in the same run, in float32 and in bfloat16. FLOPs are 6 N + 12 L C T per token, without
padding. With OMP_NUM_THREADS=1 CPU seconds count, so that other programs disturb less. With
`ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2` it runs as on a CPU
that has AVX2 only. `quality`: held-out bits per byte after SECONDS of wall clock from raw text,
tokenizer and start of the program included, of `llmkit train --minutes` and of a plain PyTorch
loop with nanoGPT's settings for a CPU, whose learning rate ends with the time. `nanogpt`: that
loop for 2000 steps; nanoGPT's README states a held-out loss of 1.88 nats for them. `settings`:
milliseconds of a step of depth 2 with AdamW and Muon, float32 and bfloat16 products, without and
with dropout, threads that wait asleep, spin briefly before, or spin, each in a process of its own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from llmkit.architectures.base import LanguageModel

LLMKIT = [sys.executable, "-P", "-c", "from llmkit.cli import run; run()"]
STEPS = 6
HELD_OUT = 0.1
# nanoGPT's README, "I only have a macbook": character tokens, dropout 0.
PLAIN = {"block_size": 64, "batch_size": 12, "n_layer": 4, "n_head": 4, "n_embd": 128}


def main() -> None:
    """Parse the command line and run one of the four."""
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("step")
    quality = commands.add_parser("quality")
    quality.add_argument("text", type=Path)
    quality.add_argument("seconds", type=int, nargs="*", default=[60, 300])
    nanogpt = commands.add_parser("nanogpt")
    nanogpt.add_argument("text", type=Path)
    nanogpt.add_argument("steps", type=int, nargs="?", default=2000)
    settings = commands.add_parser("settings")
    settings.add_argument("rounds", type=int, nargs="?", default=3)
    for inner in ("one-setting", "plain"):  # in a process of their own
        commands.add_parser(inner).add_argument("values", nargs="+")
    options = parser.parse_args()
    if options.command == "step":
        step_shares()
    elif options.command == "quality":
        for seconds in options.seconds:
            print_quality(options.text, seconds)
    elif options.command == "nanogpt":
        print(plain_loop(options.text, steps=options.steps))
    elif options.command == "settings":
        print_settings(options.rounds)
    elif options.command == "one-setting":
        print(step_milliseconds(*options.values))
    else:
        print(plain_loop(Path(options.values[0]), seconds=float(options.values[1])))


# --- step ---------------------------------------------------------------------------------------


def step_shares() -> None:
    """A line for each kind of step."""
    import torch

    from llmkit.memory import keep_freed_memory

    keep_freed_memory()  # as the training loop does
    torch.manual_seed(0)
    print(f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    print("step | GFLOP/s | plain products, GFLOP/s | share")
    for dtype, kind in itertools.product((torch.float32, torch.bfloat16), (_pretraining, _records)):
        name, step, n_flops, n_rows = kind(dtype)
        step()
        pairs = [(_seconds(step), _product_rate(n_rows, 256, 1024, dtype)) for _ in range(STEPS)]
        rate = n_flops / statistics.median(seconds for seconds, _ in pairs)
        products = statistics.median(rate for _, rate in pairs)
        kind_of = str(dtype).removeprefix("torch.")
        print(
            f"{name}, {kind_of} | {rate / 1e9:.0f} | {products / 1e9:.0f} | {rate / products:.0%}",
            flush=True,
        )


Step = tuple[str, Callable[[], None], float, int]  # name, work, its FLOPs, rows of a product


def _pretraining(dtype: torch.dtype) -> Step:
    """`nano` on windows of its context."""
    import torch

    from llmkit.training.cross_entropy import head_cross_entropy

    model, update = _model(dtype)
    tokens = torch.randint(model.config.vocab_size, (16, 257))

    def loss() -> Tensor:
        hidden = model.hidden_states(tokens[:, :-1])
        return head_cross_entropy(hidden, model.token_embedding.weight, tokens[:, 1:])

    return "nano, pretraining", lambda: update(loss), _n_flops(model, [256] * 16), 16 * 256


def _records(dtype: torch.dtype) -> Step:
    """Four batches of records of 20 to 200 tokens, as `finetune instruct` draws them."""
    import numpy as np

    from llmkit.finetuning.examples import Batches, Example
    from llmkit.finetuning.instruct import summed_loss

    lengths = np.random.default_rng(0).integers(20, 200, 520).tolist()
    examples = [Example((1,) * n, (True,) * n, "") for n in lengths]
    batches = [Batches(lengths, 16, seed=1).indices(step) for step in range(4)]
    model, update = _model(dtype)

    def loss(batch: list[Example]) -> Tensor:
        total, n = summed_loss(model, batch, answers_only=True)
        return total / n

    def epoch() -> None:
        for indices in batches:
            update(partial(loss, [examples[i] for i in indices]))

    drawn = [lengths[i] - 1 for indices in batches for i in indices]
    return "nano, records", epoch, _n_flops(model, drawn), sum(drawn) // 4


def _model(dtype: torch.dtype):  # type: ignore[no-untyped-def]
    """`nano` and the update that the training loop makes."""
    import torch

    from llmkit.architectures.gpt2 import GPT
    from llmkit.architectures.registry import model_config
    from llmkit.training.config import TrainingConfig
    from llmkit.training.optimizer import make_optimizers

    model = GPT(model_config("nano", 2048))
    optimizers = make_optimizers(model, TrainingConfig())

    def update(loss: Callable[[], Tensor]) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return model, update


def _n_flops(model: LanguageModel, lengths: list[int]) -> float:
    """Of forward and backward pass over sequences of these lengths."""
    from dataclasses import replace

    from llmkit.training.flops import flops_per_token

    n = model.n_parameters()
    return sum(t * flops_per_token(n, replace(model.config, context_length=t)) for t in lengths)


def _seconds(work: Callable[[], object]) -> float:
    clock = time.process_time if os.environ.get("OMP_NUM_THREADS") == "1" else time.perf_counter
    started = clock()
    work()
    return clock() - started


def _product_rate(n: int, n_in: int, n_out: int, dtype: object) -> float:
    """FLOPs per second of the feed-forward product and its two products backward."""
    import torch

    x, w, dy = (torch.randn(*size).to(dtype) for size in ((n, n_in), (n_out, n_in), (n, n_out)))

    def products() -> None:
        for _ in range(10):
            x @ w.T, dy @ w, dy.T @ x

    products()
    return 10 * 6 * n * n_in * n_out / _seconds(products)


# --- quality ------------------------------------------------------------------------------------


def print_quality(text: Path, seconds: int) -> None:
    """Bits per byte of both after the same wall clock."""
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "run"
        command = [*LLMKIT, "train", "--data", str(text), "--out", str(out)]
        command += ["--minutes", str(seconds / 60)]
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        took = time.perf_counter() - started
        metrics = (out / "training" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        last = json.loads(metrics[-1])
    command = [sys.executable, "-P", __file__, "plain", str(text), str(seconds)]
    plain = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    print(
        f"{seconds} s: llmkit {last['val_bits_per_byte']:.3f} bits per byte, "
        f"{last['step']} steps in {took:.0f} s; "
        f"plain loop {plain}",
        flush=True,
    )


def plain_loop(path: Path, seconds: float = math.inf, steps: int | None = None) -> str:
    """A loop as nanoGPT's with its settings for a CPU; what it reaches on the last tenth.

    It makes `steps`, or as many as fit into the seconds, without the evaluation.
    """
    started = time.perf_counter()
    import torch
    import torch.nn.functional as F
    from torch import nn

    text = path.read_text(encoding="utf-8")
    ids = {character: place for place, character in enumerate(sorted(set(text)))}
    tokens = torch.tensor([ids[character] for character in text])
    split = int(len(tokens) * (1 - HELD_OUT))
    length, width = PLAIN["block_size"], PLAIN["n_embd"]

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norms = nn.ModuleList(nn.LayerNorm(width, bias=False) for _ in range(2))
            self.qkv, self.out = (nn.Linear(width, n * width, bias=False) for n in (3, 1))
            self.up = nn.Linear(width, 4 * width, bias=False)
            self.down = nn.Linear(4 * width, width, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            B, T, C = x.shape
            heads = (B, T, PLAIN["n_head"], C // PLAIN["n_head"])
            q, k, v = (
                part.view(heads).transpose(1, 2) for part in self.qkv(self.norms[0](x)).split(C, 2)
            )
            seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(seen.transpose(1, 2).reshape(B, T, C))
            return x + self.down(F.gelu(self.up(self.norms[1](x))))  # type: ignore[no-any-return]

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.places = nn.Embedding(len(ids), width), nn.Embedding(length, width)
            self.blocks = nn.Sequential(*(Block() for _ in range(PLAIN["n_layer"])))
            self.norm = nn.LayerNorm(width, bias=False)
            for name, parameter in self.named_parameters():
                ends_branch = name.endswith(("out.weight", "down.weight"))
                std = 0.02 / math.sqrt(2 * PLAIN["n_layer"]) if ends_branch else 0.02
                if parameter.dim() == 2:
                    nn.init.normal_(parameter, std=std)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.tokens(x) + self.places.weight[: x.shape[1]]
            return self.norm(self.blocks(hidden)) @ self.tokens.weight.T  # type: ignore[no-any-return]

    torch.manual_seed(1337)
    model = Plain()
    groups = [
        {"params": [p for p in model.parameters() if p.dim() == 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99))
    step, begun = 0, time.perf_counter() - started
    while (used := time.perf_counter() - started) < seconds and step != steps:
        # Warm-up over 100 steps, then a cosine to a tenth that ends with the steps or the time.
        share = step / steps if steps else (used - begun) / (seconds - begun)
        rate = 1e-3 * min((step + 1) / 100, 0.55 + 0.45 * math.cos(math.pi * min(share, 1)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        starts = torch.randint(split - length - 1, (PLAIN["batch_size"], 1))
        rows = tokens[starts + torch.arange(length + 1)]
        loss = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
    held_out = tokens[split:]
    n_rows = (len(held_out) - 1) // length
    inputs, targets = (held_out[i : i + n_rows * length].view(n_rows, length) for i in (0, 1))
    with torch.no_grad():
        nats = sum(
            float(F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum"))
            for x, y in zip(inputs.split(256), targets.split(256), strict=True)
        )
    n_bytes = len(text[split + 1 : split + 1 + n_rows * length].encode())
    bits = nats / math.log(2) / n_bytes
    per_token = nats / targets.numel()
    return f"{bits:.3f} bits per byte ({per_token:.3f} nats), {step} steps in {used:.0f} s"


# --- settings -----------------------------------------------------------------------------------


def step_milliseconds(products: str, optimizer: str, dropout: str) -> float:
    """Median over a few steps of depth 2."""
    import torch

    from llmkit.architectures.gpt2 import GPT
    from llmkit.architectures.registry import model_config
    from llmkit.training.config import training_config
    from llmkit.training.cross_entropy import head_cross_entropy
    from llmkit.training.optimizer import make_optimizers

    model = GPT(model_config(2, 2048, dropout=float(dropout)))
    config = training_config(2, optimizer=optimizer)
    optimizers = make_optimizers(model, config)
    tokens = torch.randint(2048, (config.batch_size, model.config.context_length + 1))
    times = []
    for _ in range(2 * STEPS + 1):
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=products == "bfloat16"):
            hidden = model.hidden_states(tokens[:, :-1])
            loss = head_cross_entropy(hidden, model.token_embedding.weight, tokens[:, 1:])
        loss.backward()
        for each in optimizers:
            each.step()
            each.zero_grad(set_to_none=True)
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times[1:])


WAITING: dict[str, dict[str, str]] = {
    "sleeping": {"OMP_WAIT_POLICY": "PASSIVE"},
    "briefly spinning": {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"},  # llmkit's
    "spinning": {},
}


def print_settings(rounds: int) -> None:
    """Print the median of each combination."""
    choices = (("float32", "bfloat16"), ("adamw", "muon"), ("0", "0.1"), WAITING)
    found: dict[tuple[str, ...], list[float]] = {}
    for _ in range(rounds):
        for combination in itertools.product(*choices):
            *setting, waiting = combination
            command = [sys.executable, "-P", __file__, "one-setting", *setting]
            run = subprocess.run(
                command,
                capture_output=True,
                text=True,
                check=True,
                env=os.environ | WAITING[waiting],
            )
            found.setdefault(combination, []).append(float(run.stdout))
    for (products, optimizer, dropout, waiting), times in found.items():
        print(
            f"{products}, {optimizer}, dropout {dropout}, {waiting} threads: "
            f"{statistics.median(times):.0f} ms a step"
        )


if __name__ == "__main__":
    main()
