"""Runs functions in the slots' own child processes: one long-lived child a slot, started at its first call.

A child that dies costs the call it was running and nothing else. Children are loky processes, fresh interpreters that
never import the caller's `__main__`: a script needs no `if __name__ == "__main__"` guard, and stdin and notebooks work;
functions defined there are sent by value. Loky's *executor* is not used: it ends its workers through `pgrep` or psutil,
leaves them running where neither is installed, and with psutil replaces any worker that has grown by 100 MB.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.resource_tracker
import os
import signal
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import TypeVar, TypeVarTuple

from joblib.externals.loky.backend import get_context, resource_tracker
from joblib.externals.loky.backend.reduction import dumps, loads

from automl_tl.engine.child import serve
from automl_tl.engine.slots import Slot
from automl_tl.errors import AutomlTlError

Result = TypeVar("Result")
Args = TypeVarTuple("Args")

_POLL_SECONDS = 1.0
_REAP_SECONDS = 5.0


class ChildDied(AutomlTlError):
    """A slot's child process ended before it answered; the slot's next call gets a fresh one."""


class Interrupted(AutomlTlError):
    """The children were stopped on purpose while a call was running, or before it began."""


class ChildTraceback(Exception):
    """The cause of an exception that came from a child: where it was raised there."""

    def __str__(self) -> str:
        return f"in the slot's child process:\n\n{self.args[0]}"


@dataclass(frozen=True, slots=True)
class _Child:
    process: BaseProcess
    connection: Connection


class Children:
    """The children of some slots; a context manager that leaves no process behind.

    `warm` is called with the slot before the first call of each fresh child, to import what is slow and to set threads;
    when it raises, the call raises that. Different slots may be used from different threads.
    """

    def __init__(self, slots: Iterable[Slot], *, warm: Callable[[Slot], None] | None = None) -> None:
        self._warm = warm
        self._turns = {slot: threading.Lock() for slot in slots}  # one call at a time on each slot
        self._used = set[Slot]()  # those that were asked for anything
        self._children: dict[Slot, _Child] = {}
        self._warmed_inline = False
        self._stopped = False
        self._lock = threading.Lock()  # guards _children and _stopped

    def __enter__(self) -> Children:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def warm_up(self, at_once: int, *, while_idle: Sequence[Callable[[], None]] = ()) -> None:
        """Start all children and let them import what they need, `at_once` at a time, while the caller goes on.

        Once all are ready, each runs the functions in `while_idle` for as long as nobody has used its slot.
        """
        slots = [slot for slot in self._turns if not slot.inline]
        turns, ready = threading.Semaphore(at_once), threading.Barrier(max(1, len(slots)))
        for slot in slots:
            warming = threading.Thread(target=self._warm_one, args=(slot, turns, ready, while_idle), daemon=True)
            warming.name = f"warm {slot.name}"
            warming.start()

    def _warm_one(
        self, slot: Slot, turns: threading.Semaphore, ready: threading.Barrier, while_idle: Sequence[Callable[[], None]]
    ) -> None:
        with turns, self._turns[slot], contextlib.suppress(Exception):  # the first call that matters meets the same
            self._call(slot, _nothing)
        ready.wait()
        for function in while_idle:
            with turns, self._turns[slot], contextlib.suppress(Exception):
                if slot not in self._used:
                    self._call(slot, function)

    def run(self, slot: Slot, function: Callable[[*Args], Result], *args: *Args) -> Result:
        """Call `function(*args)` on `slot` and return its result; an exception of the function is raised as it is.

        Raises ChildDied when the child ends before it answers (a signal, a crash, no memory left, sys.exit), and
        Interrupted after `stop`.
        """
        self._used.add(slot)
        with self._turns[slot]:
            return self._call(slot, function, *args)

    def _call(self, slot: Slot, function: Callable[[*Args], Result], *args: *Args) -> Result:
        """`run`, by whoever has the slot's turn."""
        if slot.inline:
            return self._run_inline(slot, function, *args)
        child = self._hand_over(slot, function, dumps((function, args)))
        try:
            answer = _receive(child)
        except (EOFError, OSError):
            raise self._bury(slot, child, function) from None
        succeeded, value = loads(answer)
        if succeeded:
            result: Result = value
            return result
        error, text = value
        raise error from ChildTraceback(text)

    def _hand_over(self, slot: Slot, function: Callable[..., object], call: bytes | memoryview) -> _Child:
        """Give a call to the slot's child; one that dies before it says so never began, and a fresh one takes over."""
        for attempt in ("first", "last"):
            child = self._child(slot)
            try:
                child.connection.send_bytes(call)
                _receive(child)  # BEGUN
                break
            except (EOFError, OSError):
                death = self._bury(slot, child, function)
                if attempt == "last" or isinstance(death, Interrupted):
                    raise death from None
        return child

    def stop(self) -> None:
        """Kill all children at once; calls that are running raise Interrupted, and so do later ones."""
        with self._lock:
            self._stopped = True
            children = [child for child in self._children.values() if child.process.exitcode is None]
            self._children.clear()
        for child in children:
            _kill(child)
        for child in children:
            child.process.join(_REAP_SECONDS)

    def _run_inline(self, slot: Slot, function: Callable[[*Args], Result], *args: *Args) -> Result:
        if self._stopped:
            raise Interrupted(f"slot {slot.name!r} was stopped before its call began")
        if self._warm is not None and not self._warmed_inline:
            self._warm(slot)
        self._warmed_inline = True
        return function(*args)

    def _child(self, slot: Slot) -> _Child:
        with self._lock:
            if self._stopped:
                raise Interrupted(f"slot {slot.name!r} was stopped before its call began")
            if slot not in self._children or self._children[slot].process.exitcode is not None:
                self._children[slot] = _start(slot, dumps(self._warm))
            return self._children[slot]

    def _bury(self, slot: Slot, child: _Child, function: Callable[..., object]) -> AutomlTlError:
        with self._lock:
            if self._stopped:
                return Interrupted(f"slot {slot.name!r} was stopped while it ran {_name(function)}")
            self._children.pop(slot, None)
        child.process.join(_REAP_SECONDS)  # the pipe breaks a moment before the exit code can be read
        code = child.process.exitcode
        _kill(child)  # also whatever it had started itself
        child.process.join(_REAP_SECONDS)
        child.connection.close()
        return ChildDied(f"the process of slot {slot.name!r} {_ending(code)} while it ran {_name(function)}")


def _nothing() -> None:
    """A call for the sake of what comes before a first one."""


def _start(slot: Slot, warm: bytes | memoryview) -> _Child:
    ours, theirs = multiprocessing.Pipe()
    context = get_context("loky")
    process: BaseProcess = context.Process(
        target=serve, args=(theirs, os.getpid(), slot, bytes(warm)), env=dict(slot.environment), name=slot.name
    )
    # Signals stay blocked in a new process: a Ctrl-C while the child starts would otherwise print its traceback. The
    # helper processes of multiprocessing and loky come first, because starting them unblocks SIGINT.
    multiprocessing.resource_tracker.ensure_running()
    resource_tracker.ensure_running()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        theirs.close()
    return _Child(process, ours)


def _receive(child: _Child) -> bytes:
    # A dead child's pipe breaks at once, unless a process that it forked still holds the other end.
    while not child.connection.poll(_POLL_SECONDS):
        if child.process.exitcode is not None and not child.connection.poll():
            raise EOFError
    return child.connection.recv_bytes()


def _kill(child: _Child) -> None:
    pid = child.process.pid
    if pid is None:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    if child.process.exitcode is None:  # a child that has just started is not yet the leader of its own group
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _ending(code: int | None) -> str:
    if code is None:
        return "died"
    if code == -signal.SIGKILL:
        return "was killed (SIGKILL; if nobody did it, memory ran out: use fewer slots or smaller batches)"
    if code < 0:
        return f"crashed ({signal.Signals(-code).name}; see its traceback on stderr)"
    return f"exited with code {code}"


def _name(function: Callable[..., object]) -> str:
    return getattr(function, "__qualname__", repr(function))
