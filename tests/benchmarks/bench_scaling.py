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

TEXTS = ("shakespeare", "wikipedia")
VOCAB_SIZES = (1024, 2048, 4096)
EVALUATIONS = 3


@dataclass(frozen=True)
class Run:
    """What a model is trained on and how. None: what `--depth` sets."""

    text: str
    depth: int
    flops: float
    vocab_size: int = 2048
    context_length: int | None = None
    batch_tokens: int | None = None
    learning_rate: float | None = None
    dropout: float | None = None


def plan() -> list[Run]:
    """All runs, the most important first."""
    runs = [Run(text, depth, 1e14) for text in TEXTS for depth in (2, 4, 6, 8)]

    def vary(run: Run, **choices: tuple[Any, ...]) -> None:
        """Each choice alone."""
        runs.extend(replace(run, **{name: v}) for name, values in choices.items() for v in values)

    for depth, flops in ((5, 3e14), (9, 1e15)):  # 512 and 768 wide
        vary(Run("wikipedia", depth, flops), learning_rate=(2e-3, 4e-3, 8e-3))
    runs += [
        Run(text, depth, flops)
        for flops, depths in (
            (1e13, (1, 2, 4)),
            (3e14, (4, 6, 8)),
            (3e12, (1, 2, 4)),
            (3e13, (1, 2, 4)),
            (1e12, (1, 2)),
        )
        for text in TEXTS
        for depth in depths
    ]
    # What a minute and five minutes of two cores learn.
    for depth, flops in ((1, 8e12), (2, 4.5e13)):
        vary(
            Run("shakespeare", depth, flops),
            depth=(1, 2, 3, 4),
            context_length=(64, 128, 256),
            batch_tokens=(1024, 4096),
            learning_rate=(3e-3, 1.2e-2),
            dropout=(0.0, 0.1, 0.2),
            vocab_size=(1024, 4096),
        )
    return list(dict.fromkeys(runs))


def train(run: Run, folder: Path, device_name: str, deadline: float) -> dict[str, Any] | None:
    """One run; None where the deadline came first."""
    import torch

    from llmkit.architectures.registry import model_config, new_model, sizes_of
    from llmkit.data.prepared import open_prepared
    from llmkit.data.sampler import window_starts
    from llmkit.data.tokens import windows
    from llmkit.device import has_fast_bfloat16
    from llmkit.training.config import training_config
    from llmkit.training.cross_entropy import head_cross_entropy
    from llmkit.training.depth import DROPOUT, reads_often
    from llmkit.training.evaluate import validation_loss
    from llmkit.training.flops import flops_per_token
    from llmkit.training.optimizer import make_optimizers

    if time.time() > deadline:
        return None
    started = time.time()
    device = torch.device(device_name)
    prepared = open_prepared(folder / f"{run.text}-{run.vocab_size}")
    shards = prepared.tokens("train")
    tokens = torch.from_numpy(shards.read(0, len(shards))).to(device)
    changes = {} if run.context_length is None else {"context_length": run.context_length}
    sizes = model_config(run.depth, prepared.vocab_size, **changes)
    dropout = run.dropout
    if dropout is None:
        dropout = DROPOUT if reads_often(run.flops, sizes, len(tokens)) else 0.0
    sizes = replace(sizes, dropout=dropout)  # type: ignore[call-arg]
    length = sizes.context_length
    known = training_config(run.depth, learning_rate=run.learning_rate)
    batch_tokens = run.batch_tokens or known.batch_size * sizes_of(run.depth)["context_length"]
    n = batch_tokens // length
    validation = prepared.tokens("validation")
    held_out = windows(validation.read(0, len(validation)), length, known.eval_tokens)
    total = prepared.total("validation")
    torch.manual_seed(known.seed)
    model = new_model(sizes).to(device).train()
    flops = flops_per_token(model.n_parameters(), sizes) * n * length
    steps = max(round(run.flops / flops), 2)
    config = replace(known, steps=steps)
    optimizers = make_optimizers(model, config)
    starts = window_starts(len(tokens), length, config.seed, 0, n * steps)
    places = torch.from_numpy(starts[:, None]).to(device) + torch.arange(length + 1, device=device)
    bfloat16 = has_fast_bfloat16(device)
    evaluated = {round(steps * (i + 1) / EVALUATIONS) for i in range(EVALUATIONS)}
    curve = []
    for step in range(steps):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate_at(step)
        batch = tokens[places[step * n : (step + 1) * n]]  # (n, length + 1)
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            hidden = model.hidden_states(batch[:, :-1])
            loss = head_cross_entropy(hidden, model.head_weight, batch[:, 1:]) / (n * length)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        for optimizer in optimizers:
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
        "sizes": asdict(sizes),  # type: ignore[call-overload]
        "n_parameters": model.n_parameters(),
        "steps": steps,
        "total_flops": steps * flops,
        "epochs": round(n * length * steps / len(tokens), 2),
        "bits_per_byte": min(bits for _, _, bits in curve),
        "curve": curve,  # step, training loss of its batch, held-out bits per byte
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
                    f"({result['epochs']} epochs): {result['bits_per_byte']} bits per byte "
                    f"in {result['seconds']} s",
                    flush=True,
                )
    print(f"{len(results)} of {len(runs)} runs", flush=True)


def draw(results: list[dict[str, Any]], picture: Path) -> None:
    """A panel for each text, a curve for each depth with the settings that it sets."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    panels = figure.subplots(1, len(TEXTS), sharey=True)
    depths = sorted({result["depth"] for result in results})
    for panel, text in zip(panels, TEXTS, strict=True):
        for i, depth in enumerate(depths):
            points = sorted(
                (result["total_flops"], result["bits_per_byte"])
                for result in results
                if all(
                    result[name] == v
                    for name, v in asdict(Run(text, depth, 0)).items()
                    if name != "flops"
                )
            )
            if points:
                panel.plot(*zip(*points, strict=True), "o-", color=f"C{i}", label=f"depth {depth}")
        panel.set(title=text, xlabel="training FLOPs", xscale="log")
        panel.xaxis.set_minor_formatter(NullFormatter())  # the labels would overlap
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("held-out bits per byte")
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
