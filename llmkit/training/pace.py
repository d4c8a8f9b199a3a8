"""How fast a run is, and how many steps fit into its minutes."""

from __future__ import annotations

import time
from bisect import bisect_right

from llmkit.training.config import TrainingConfig

# A run of minutes keeps back what the start of Python and the end of the command take (1.5 s on
# two cores, more on busy ones), and a share of the time, as machines do not run at one speed.
START_AND_END_S, KEPT_BACK = 4.0, 0.02


class Interval:
    """Steps per second since the last evaluation."""

    def __init__(self, step: int) -> None:
        self.first, self.started = step, time.monotonic()

    def rate(self, step: int) -> float:
        """Steps per second, evaluations included."""
        return (step - self.first) / max(time.monotonic() - self.started, 1e-9)


class Pace:
    """What steps and evaluations take, without the first step, which is slow."""

    def __init__(self, first: int) -> None:
        self.first, self.started = first, time.monotonic()
        self.evaluations_s: list[float] = []  # with their saves

    def step_s(self, step: int) -> float:
        """Mean seconds of a step."""
        taken = time.monotonic() - self.started - sum(self.evaluations_s)
        return max(taken, 1e-9) / (step - self.first)

    def steps_in(
        self, seconds: float, config: TrainingConfig, done: int, tokens_per_step: float
    ) -> int:
        """How many steps after `done` fit with their evaluations; at least one."""
        step_s = self.step_s(done)
        if self.evaluations_s:
            evaluation_s = sum(self.evaluations_s) / len(self.evaluations_s)
        else:
            evaluation_s = evaluation_seconds(config, step_s, tokens_per_step)
        return max(planned_steps(config, step_s, evaluation_s, seconds, done), 1)


def usable_seconds(minutes: float) -> float:
    """Of the minutes that a command may take, what training may use."""
    return (1 - KEPT_BACK) * 60 * minutes - START_AND_END_S


def evaluation_seconds(config: TrainingConfig, step_s: float, tokens_per_step: float) -> float:
    """About what an evaluation takes: half of a step with as many tokens is backward."""
    return step_s * config.eval_tokens / tokens_per_step / 2


def planned_steps(
    config: TrainingConfig, step_s: float, evaluation_s: float, seconds: float, done: int = 0
) -> int:
    """How many steps after `done` fit into so many seconds with their evaluations."""

    def needed(more: int) -> float:
        last, interval = done + more, config.eval_interval
        n_evaluations = last // interval - done // interval + (last % interval > 0)
        return more * step_s + n_evaluations * evaluation_s

    return max(bisect_right(range(int(seconds / step_s) + 1), seconds, key=needed) - 1, 0)
