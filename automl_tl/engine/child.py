"""What runs inside a slot's child process: settle in, then answer one call after the other until the host goes away.

The host's side of the pipe is in `slot`. Both send bytes: a call is `(function, args)`; it is answered at
once by `BEGUN`, and in the end by `(succeeded, value)`, where a failure's value is the exception and its formatted
traceback.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from joblib.externals.loky.backend.reduction import dumps, loads

from automl_tl.engine.slots import Slot

BEGUN = b"begun"  # a call that was received will run, or its child will die of it
SPOILT = ("CUDA error", "cuDNN error", "CUBLAS_STATUS", "HIP error")
"""What errors say after which a GPU takes no more work of this process: the next call needs a new one."""

_WATCH_SECONDS = 0.5
_OOM_SCORE = 700  # of 1000: when memory runs out, the kernel takes the trial and leaves the host alone


def warm_torch(slot: Slot) -> None:
    """Import torch and keep it to the slot's threads; meant as the `warm` of `Children`."""
    import torch

    torch.set_num_threads(slot.threads)
    with contextlib.suppress(RuntimeError):  # can be set only once a process, before any parallel work
        torch.set_num_interop_threads(1)


def serve(connection: Connection, host: int, slot: Slot, warm: bytes) -> None:
    """Answer calls until the host closes the connection. `warm` is a pickled function of the slot, or of None."""
    settle(host)
    warmed = False
    while True:
        try:
            call = connection.recv_bytes()
            connection.send_bytes(BEGUN)
        except (EOFError, BrokenPipeError):
            return
        try:
            if not warmed:
                prepare: Callable[[Slot], None] | None = loads(warm)
                if prepare is not None:
                    prepare(slot)
                warmed = True
            function, args = loads(call)
            answer = dumps((True, function(*args)))
            spoilt = False
        except Exception as error:
            answer, spoilt = _failure(error), any(word in str(error) for word in SPOILT)
        with contextlib.suppress(BrokenPipeError):  # the host was killed meanwhile; nobody wants a traceback of that
            connection.send_bytes(answer)
        if spoilt:
            return


def settle(host: int) -> None:
    """Make this process one that dies with the host, before the host, and not of the host's Ctrl-C."""
    os.setpgid(0, 0)  # its own group: whoever ends it can end all that it started
    # Not prctl(PR_SET_PDEATHSIG): that fires when the host's *thread* that started this process ends.
    threading.Thread(target=_die_with, args=(host,), name="watch-host", daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError):  # Linux only
        Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE))
    faulthandler.enable()  # a segmentation fault leaves a traceback on stderr


def _die_with(host: int) -> None:
    while os.getppid() == host:
        time.sleep(_WATCH_SECONDS)
    os.killpg(os.getpid(), signal.SIGKILL)


def _failure(error: Exception) -> memoryview:
    text = "".join(traceback.format_exception(error))
    try:
        answer: memoryview = dumps((False, (error, text)))
        loads(answer)  # exceptions with an __init__ of their own often pickle, and fail only on the way back
    except Exception:
        answer = dumps((False, (RuntimeError(f"{type(error).__name__}: {error}"), text)))
    return answer
