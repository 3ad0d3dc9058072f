"""The lock that keeps two processes out of one run directory; the kernel drops it when its owner dies in any way."""

from __future__ import annotations

import fcntl
import os
import platform
from pathlib import Path
from types import TracebackType
from typing import IO

from automl_tl.errors import RunError


class RunLock:
    """An exclusive advisory lock on the file `path`, as a context manager.

    Raises RunError when another process, or another RunLock of this one, holds it, or when the file cannot be locked.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None

    def __enter__(self) -> RunLock:
        try:
            file = self._path.open("a+", encoding="utf-8")
        except OSError as error:
            raise self._cannot_lock(error) from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}")
            file.flush()
        except BlockingIOError:
            file.seek(0)
            owner = file.read() or "another process"
            file.close()
            raise RunError(f"{self._path.parent} is in use by {owner}; wait until it ends, or stop it") from None
        except OSError as error:
            file.close()
            raise self._cannot_lock(error) from None
        self._file = file
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The file stays: removing it would let a third process lock a new one while a second waits on the old.
        if self._file is not None:
            self._file.close()
            self._file = None

    def _cannot_lock(self, error: OSError) -> RunError:
        reason = error.strerror or str(error)
        return RunError(f"cannot lock {self._path}: {reason}; the run directory must exist and be writable")
