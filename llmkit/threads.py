"""How threads that wait share the cores.

PyTorch and llama.cpp each have an OpenMP pool on the same cores. Threads that spin while they
wait take the cores from the other pool and from other programs: several times slower on a busy
machine.
"""

from __future__ import annotations

import os

_POLICY = "OMP_WAIT_POLICY"
_set_here = False


def wait_without_spinning() -> None:
    """Let waiting threads sleep, unless the user has said otherwise.

    It counts only when called before the first of the two libraries is imported.
    """
    global _set_here
    if _POLICY not in os.environ:
        os.environ[_POLICY] = "PASSIVE"
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
    return {name: value for name, value in os.environ.items() if name != _POLICY or not _set_here}
