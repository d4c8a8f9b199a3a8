"""A scaling study: bits per byte against FLOPs, by depth, on tiny Shakespeare and on Wikipedia.

    python tests/benchmarks/bench_scaling.py FOLDER [--texts SHAKESPEARE WIKIPEDIA]
        [--device cuda] [--jobs 8] [--minutes 3] [--picture docs/scaling.png]

Prepares the texts in FOLDER where they are not yet, trains the models of the plan, the most
important first, writes FOLDER/results.json after each and draws the picture. A second call trains
only what is missing.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

VOCAB_SIZES = (512, 1024, 2048, 4096)
TEXTS = ("shakespeare", "wikipedia")
EVALUATIONS = 3


@dataclass(frozen=True)
class Run:
    """What a model is trained on, how large it is, and how."""

    text: str = "shakespeare"
    depth: int = 4
    flops: float = 8e12
    vocab_size: int = 2048
    context_length: int = 256
    batch_tokens: int = 4096
    learning_rate: float = 6e-3
    min_ratio: float = 0.1
    schedule: str = "cosine"
    decay_share: float = 0.2
    embedding_rate: float = 1.0  # learning rate of AdamW, in those of Muon
    weight_decay: float = 0.1
    dropout: float = 0.0
    momentum: float = 0.95
    beta2: float = 0.99
    warmup_steps: int = 10
    seed: int = 1337
    positions: str = "normal"

    @property
    def width(self) -> int:
        return 256 * math.ceil(self.depth / 4)


def plan() -> list[Run]:
    """All runs, the most important first."""
    runs: list[Run] = []

    def vary(run: Run, **choices: tuple[Any, ...]) -> None:
        """Each choice alone."""
        runs.extend(replace(run, **{name: v}) for name, values in choices.items() for v in values)

    # A minute of two cores.
    one = Run(depth=1, context_length=128, batch_tokens=2048, positions="sinusoids")
    for context in (64, 128, 256):
        vary(replace(one, context_length=context), positions=("normal", "sinusoids"))
    vary(one, learning_rate=(3e-3, 1.2e-2), batch_tokens=(1024,), vocab_size=(1024, 4096))
    vary(replace(one, depth=2), context_length=(64, 128), vocab_size=(4096,))
    # Five minutes of two cores.
    five = replace(one, flops=4.5e13, batch_tokens=4096)
    for context in (64, 128, 256):
        vary(replace(five, depth=2, context_length=context), dropout=(0.1, 0.0))
    for depth in (1, 3, 4):
        vary(replace(five, depth=depth), dropout=(0.1, 0.0))
    # Depths and budgets; the learning rate falls with the root of the width.
    for flops in (1e13, 1e14, 3e13, 3e12):
        for text in TEXTS:
            for depth in (1, 2, 4, 6, 8):
                run = Run(text, depth, flops, positions="sinusoids", context_length=128)
                rate = 6e-3 * (256 / run.width) ** 0.5
                run = replace(run, batch_tokens=2048 if flops < 5e13 else 4096, learning_rate=rate)
                runs.append(run)
    vary(
        replace(five, depth=2, dropout=0.1),
        vocab_size=(1024, 4096),
        weight_decay=(0.3, 1.0),
        learning_rate=(3e-3,),
        positions=("normal",),
        batch_tokens=(2048,),
    )
    # Learning rates of other widths.
    for depth in (5, 9):
        wide = Run("wikipedia", depth, 3e13, context_length=128, positions="sinusoids")
        vary(wide, learning_rate=(2e-3, 4e-3, 8e-3))
    return list(dict.fromkeys(runs))


def train(run: Run, folder: Path, device_name: str, deadline: float) -> dict[str, Any] | None:
    """One run; None where the deadline came first."""
    import torch

    from llmkit.architectures.registry import model_config, new_model
    from llmkit.data.prepared import open_prepared
    from llmkit.data.sampler import window_starts
    from llmkit.data.tokens import windows
    from llmkit.device import has_fast_bfloat16
    from llmkit.training.config import TrainingConfig
    from llmkit.training.cross_entropy import head_cross_entropy
    from llmkit.training.evaluate import validation_loss
    from llmkit.training.flops import flops_per_token
    from llmkit.training.optimizer import make_optimizers

    if time.time() > deadline:
        return None
    started = time.time()
    device = torch.device(device_name)
    prepared = open_prepared(folder / f"{run.text}-{run.vocab_size}")
    shards = prepared.tokens("train")
    length = run.context_length
    tokens = torch.from_numpy(shards.read(0, len(shards))).to(device)
    validation = prepared.tokens("validation")
    held_out = windows(validation.read(0, len(validation)), length, len(validation))
    total = prepared.total("validation")
    sizes = model_config(
        "nano",
        prepared.vocab_size,
        n_layer=run.depth,
        n_embd=run.width,
        n_head=run.width // 64,
        context_length=length,
        dropout=run.dropout,
    )
    torch.manual_seed(run.seed)
    model = new_model(sizes).to(device).train()
    if run.positions == "sinusoids":
        angles = torch.arange(length)[:, None] / 1000 ** torch.linspace(0, 1, run.width // 2)
        rows = 0.02 * 2**0.5 * torch.cat([angles.sin(), angles.cos()], 1)
        model.load_state_dict({"wpe.weight": rows}, strict=False)
    flops = flops_per_token(model.n_parameters(), sizes) * run.batch_tokens
    steps = max(round(run.flops / flops), 2)
    config = TrainingConfig(
        steps=steps,
        learning_rate=run.learning_rate,
        min_learning_rate=run.min_ratio * run.learning_rate,
        warmup_steps=run.warmup_steps,
        schedule=run.schedule,  # type: ignore[arg-type]
        decay_share=run.decay_share,
        weight_decay=run.weight_decay,
        optimizer="muon",
        momentum=run.momentum,
        beta2=run.beta2,
    )
    adamw, muon = make_optimizers(model, config)
    n = run.batch_tokens // length
    starts = torch.from_numpy(window_starts(len(tokens), length, run.seed, 0, n * steps)).to(device)
    offsets = torch.arange(length + 1, device=device)
    bfloat16 = has_fast_bfloat16(device)
    evaluated = {round(steps * (i + 1) / EVALUATIONS) for i in range(EVALUATIONS)}
    curve = []
    for step in range(steps):
        rate = config.learning_rate_at(step)
        for optimizer, share in ((adamw, run.embedding_rate), (muon, 1.0)):
            for group in optimizer.param_groups:
                group["lr"] = share * rate
        batch = tokens[starts[step * n : (step + 1) * n, None] + offsets]  # (n, length + 1)
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            hidden = model.hidden_states(batch[:, :-1])
            loss = head_cross_entropy(hidden, model.head_weight, batch[:, 1:]) / run.batch_tokens
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in (adamw, muon):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if step + 1 in evaluated:
            nats = validation_loss(model.eval(), held_out, 64)
            model.train()
            bits = nats / math.log(2) * total.tokens / total.bytes
            curve.append((step + 1, round(float(loss.detach()), 4), round(bits, 4)))
            if time.time() > deadline:
                return None
    return {
        **asdict(run),
        "width": run.width,
        "n_parameters": model.n_parameters(),
        "steps": steps,
        "total_flops": steps * flops,
        "bits_per_byte": curve[-1][2],
        "best_bits_per_byte": min(bits for _, _, bits in curve),
        "curve": curve,  # step, training loss of its batch, bits per byte of all held-out text
        "seconds": round(time.time() - started, 2),
    }


def prepare(folder: Path, texts: list[Path]) -> None:
    """Token files of both texts with each size of vocabulary."""
    from llmkit.data.prepared import prepare_data

    for name, text in zip(TEXTS, texts, strict=True):
        for size in VOCAB_SIZES:
            prepare_data(text, folder / f"{name}-{size}", vocab_size=size)


def train_all(folder: Path, device: str, jobs: int, minutes: float, runs: list[Run]) -> None:
    """Train what results.json lacks, `jobs` at a time; begin none after so many minutes."""
    file = folder / "results.json"
    results = json.loads(file.read_text()) if file.exists() else []
    names = Run.__dataclass_fields__
    done = {Run(**{name: result[name] for name in names}) for result in results}
    os.environ.setdefault("OMP_NUM_THREADS", "1" if device == "cuda" or jobs > 1 else "2")
    started = time.time()
    deadline = started + 60 * minutes
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn) as pool:
        futures = [
            pool.submit(train, run, folder, device, deadline) for run in runs if run not in done
        ]
        for future in as_completed(futures):
            if (error := future.exception()) is not None:
                print(f"failed: {error!r}", flush=True)
            elif (result := future.result()) is not None:
                results.append(result)
                file.write_text(json.dumps(results, indent=0))
                print(
                    f"{time.time() - started:.0f} s: {result['text']} depth {result['depth']} "
                    f"{result['total_flops']:.2g} FLOP {result['steps']} steps "
                    f"rate {result['learning_rate']:.2g}: {result['bits_per_byte']} bits per byte "
                    f"in {result['seconds']} s",
                    flush=True,
                )
    print(f"{len(results)} of {len(runs)} runs", flush=True)


def draw(results: list[dict[str, Any]], picture: Path) -> None:
    """A panel for each text, a curve for each depth: the best result at each number of FLOPs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    panels = figure.subplots(1, len(TEXTS))
    for panel, text in zip(panels, TEXTS, strict=True):
        for depth in sorted({result["depth"] for result in results}):
            best: dict[float, float] = {}
            for result in results:
                if (result["text"], result["depth"]) == (text, depth):
                    bits = best.get(result["flops"], math.inf)
                    best[result["flops"]] = min(bits, result["best_bits_per_byte"])
            if best:
                panel.plot(*zip(*sorted(best.items()), strict=True), "o-", label=f"depth {depth}")
        panel.set(title=text, xlabel="training FLOPs", xscale="log")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("bits per byte, held-out text")
    panels[0].legend()
    figure.savefig(picture, dpi=110)


def main() -> None:
    """Parse the command line; prepare, train and draw."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--texts", type=Path, nargs=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--only", help="JSON of a run; trains this one alone")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    if options.texts:
        prepare(options.folder, options.texts)
    runs = [Run(**json.loads(options.only))] if options.only else plan()
    train_all(options.folder, options.device, options.jobs, options.minutes, runs)
    if options.picture:
        draw(json.loads((options.folder / "results.json").read_text()), options.picture)


if __name__ == "__main__":
    main()
