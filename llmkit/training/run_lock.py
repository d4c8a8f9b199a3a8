"""One process at a time trains in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from filelock import FileLock, Timeout

from llmkit.errors import CheckpointError
from llmkit.files import cannot_write, no_empty_folders
from llmkit.training.run_folder import RunFolder

LOCK_SECONDS = 0.5  # `is_locked` of another process takes the lock for a moment


@contextmanager
def locked(run: RunFolder) -> Iterator[None]:
    """Keep other processes out of the run. Raises CheckpointError where one is in it."""
    lock = FileLock(run.lock_file)
    with no_empty_folders(run.training):
        try:
            run.training.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=LOCK_SECONDS)
        except Timeout as error:
            raise CheckpointError(
                f"another process trains in {run.folder}; wait for it or choose another --out"
            ) from error
        except OSError as error:
            raise cannot_write(run.lock_file, error) from error
        try:
            yield
        finally:
            lock.release()
            if not run.state_file.exists():  # nothing was begun
                with suppress(OSError):
                    run.lock_file.unlink()


def is_locked(run: RunFolder) -> bool:
    """Whether a process trains in the folder."""
    lock = FileLock(run.lock_file)
    try:
        if run.lock_file.exists():
            with lock.acquire(blocking=False):
                pass
    except Timeout:
        return True
    except OSError:  # such as a folder that cannot be written
        return False
    return False
