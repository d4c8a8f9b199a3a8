"""Training runs in several processes, started as torchrun starts them."""

from __future__ import annotations

import json
import os
import signal
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

from training_runs import run

Job = tuple[Path, Path, dict[str, Any]]  # text, folder to write, options of `run`
MINUTE = 60


def run_jobs(jobs: list[Job]) -> None:
    """Do every job; beside its folder note the losses and what it raised in each rank.

    Options for the test alone: `signal_at` (rank, step, signal), which the process of that rank
    sends itself, `stop_at`, a step at which every rank raises an error, and `bfloat16`.
    """
    from llmkit.training import loop, optimizer

    rank, original = int(os.environ.get("RANK", "0")), loop.TrainingLoop.step
    for data, out, options in jobs:
        stop_at = options.pop("stop_at", None)
        # In bfloat16 the gradient of half a batch is rounded, where one process rounds the whole.
        bfloat16 = options.pop("bfloat16", False)
        loop.has_fast_bfloat16 = lambda device, fast=bfloat16: fast  # type: ignore[misc]
        optimizer.has_fast_bfloat16 = loop.has_fast_bfloat16
        signal_rank, signal_step, number = options.pop("signal_at", (None, None, None))

        def step(self: loop.TrainingLoop, step: int, at: Any = (stop_at, out)) -> Any:
            if step == at[0]:
                raise ValueError
            if (rank, step) == (signal_rank, signal_step):  # noqa: B023
                os.kill(os.getpid(), number)  # noqa: B023
            loss = original(self, step)
            if rank == 0:
                with losses_file(at[1]).open("a") as file:
                    file.write(json.dumps([step, float(loss)]) + "\n")
            return loss

        loop.TrainingLoop.step = step  # type: ignore[method-assign]
        with suppress(Exception):
            raised = "nothing"
            try:
                run(data, out, **options)
            except BaseException as error:
                raised = type(error).__name__
            beside(out, f"{rank}.raised").write_text(raised)


def beside(out: Path, name: str) -> Path:
    return out.with_name(f"{out.name}.{name}")


def losses_file(out: Path) -> Path:
    return beside(out, "losses")


def losses(out: Path) -> list[float]:
    """The loss of each step, as computed last."""
    by_step = dict(json.loads(line) for line in losses_file(out).read_text().splitlines())
    return [by_step[step] for step in sorted(by_step)]


def raised(out: Path) -> list[str]:
    """What each rank raised last, in any order."""
    return sorted(file.read_text() for file in out.parent.glob(f"{out.name}.*.raised"))


def as_rank(rank: int, world: int, port: int, jobs: list[Job]) -> None:
    """What a process does: the jobs in the environment that torchrun makes."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port}
    os.environ.update({name: str(number) for name, number in numbers.items()})
    os.environ.update(TORCHELASTIC_RUN_ID="test", MASTER_ADDR="127.0.0.1")
    run_jobs(jobs)


def together(context: Any, jobs: list[Job], world: int = 2) -> list[int | None]:
    """Do the jobs in processes that train together; returns their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [
        context.Process(target=as_rank, args=(rank, world, port, jobs)) for rank in range(world)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(3 * MINUTE)
    codes = [process.exitcode for process in ranks]
    for process in ranks:
        process.kill()  # one that has not ended
    return codes


KILLED = -signal.SIGKILL
