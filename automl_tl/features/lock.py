"""Turns among processes and threads: a lock on a file that its holder may delete, and that dies with its holder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

POLL_S = 0.2


def try_lock(path: Path) -> IO[bytes] | None:
    """Lock the file `path` and return it, open; closing it ends the turn. None while another holds it.

    Raises
    ------
    FileNotFoundError
        When the directory of `path` is not there.
    """
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The last holder may have deleted the file while it was opened here: then others lock another one.
        if os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:
        file.close()
        raise
    file.close()
    return None


@contextlib.contextmanager
def waiting_lock(
    path: Path, *, on_wait: Callable[[], None] = lambda: None, deadline: float | None = None
) -> Iterator[bool]:
    """Hold the lock on `path`, whose directory is made; False when `deadline` (POSIX time) came before the turn did.

    `on_wait` is called once, if another holds the lock.
    """
    file, told = _lock_anew(path), False
    while file is None and (deadline is None or time.time() < deadline):
        if not told:
            on_wait()
            told = True
        time.sleep(POLL_S)
        file = _lock_anew(path)
    try:
        yield file is not None
    finally:
        if file is not None:
            file.close()


def _lock_anew(path: Path) -> IO[bytes] | None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return try_lock(path)
    except FileNotFoundError:  # the directory was evicted in between
        return None
    except FileExistsError:  # so it was when `mkdir` looked whether what is there is a directory
        if path.parent.exists():
            raise
        return None
