"""How threads that wait share the cores, and how Ctrl-C reaches who waits for one.

PyTorch and llama.cpp each have an OpenMP pool on the same cores. Threads that spin while they
wait take the cores from the other pool and from other programs: several times slower on a busy
machine. Threads that sleep at once are woken for each operation: a training step of a small model
takes a quarter longer. So they spin for some microseconds, in GNU's OpenMP, and then sleep.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TypeVar

_WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"}
_set_here = False

T = TypeVar("T")


def let_waiting_threads_sleep() -> None:
    """Let waiting threads sleep soon, unless the user has said otherwise.

    It counts only when called before the first of the two libraries is imported.
    """
    global _set_here
    if not _WAITING.keys() & os.environ.keys():
        os.environ.update(_WAITING)
        _set_here = True


def n_cores() -> int:
    """How many cores this process may use: no more than OMP_NUM_THREADS, where it is set."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked) > 0:
        return min(int(asked), _n_there())
    return _n_there()


def _n_there() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def users_environment() -> dict[str, str]:
    """The environment as the user has it, for a process that runs one of the libraries alone."""
    return {
        name: value for name, value in os.environ.items() if not (_set_here and name in _WAITING)
    }


def interruptible(call: Callable[[], T]) -> T:
    """Run a call that may be long in native code, so that Ctrl-C ends the wait for it at once.

    Python handles signals in the main thread, and only between its own instructions. Raises what
    the call raises, and KeyboardInterrupt; the call itself then goes on in a thread that ends
    with the process.
    """
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(call())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.1)  # Windows does not wake a wait without a limit
    if failed:
        raise failed[0]
    return done[0]
