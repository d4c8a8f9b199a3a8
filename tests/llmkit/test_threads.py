from __future__ import annotations

import signal
import threading
import time

import pytest

from llmkit.threads import interruptible


def test_result_and_error_of_the_call_are_passed_on() -> None:
    assert interruptible(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        interruptible(lambda: 1 // 0)


def test_ctrl_c_ends_the_wait_for_a_long_call() -> None:
    end = threading.Event()
    threading.Timer(0.1, lambda: signal.raise_signal(signal.SIGINT)).start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        interruptible(lambda: end.wait(10))
    assert time.monotonic() - started < 1
    end.set()
