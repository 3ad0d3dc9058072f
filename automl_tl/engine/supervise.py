"""Keeps every slot busy: one supervisor thread a slot asks for ticket after ticket until there is no more work.

What a ticket does, usually a call on the slot's child, is the caller's business. The calling thread stays free to draw
the live display and to hear Ctrl-C while tickets run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from joblib import Parallel, delayed

from automl_tl.engine.slots import Slot


def supervise(
    slots: Sequence[Slot],
    ticket: Callable[[Slot], bool],
    *,
    stop: threading.Event,
    tick: Callable[[], None] | None = None,
    interval: float = 0.25,
    on_interrupt: Callable[[], None] | None = None,
) -> None:
    """Call `ticket(slot)` on each slot again and again until it returns False or `stop` is set, and wait for all.

    `tick` is called on the calling thread about every `interval` seconds. When a ticket raises, `stop` is set, the
    other slots finish the ticket they are at, and the first exception is raised. When the calling thread is interrupted
    (Ctrl-C, or an exception of `tick`), `stop` is set and `on_interrupt` is called, which should make running tickets
    end, such as `Children.stop`; the interrupt is raised again when they have ended.

    A lone inline slot has its tickets called on the calling thread itself, with a tick after each, so any exception of
    theirs counts as an interrupt.
    """
    failures: list[BaseException] = []

    def keep_busy(slot: Slot) -> None:
        try:
            while not stop.is_set() and ticket(slot):
                pass
        except BaseException as error:
            failures.append(error)
            stop.set()

    finished = threading.Event()

    def keep_all_busy() -> None:
        try:
            parallel = Parallel(
                n_jobs=len(slots),
                backend="threading",
                return_as="generator_unordered",
                batch_size=1,
                pre_dispatch="n_jobs",
            )
            for _ in parallel(delayed(keep_busy)(slot) for slot in slots):
                pass
        except BaseException as error:
            failures.append(error)
        finally:
            finished.set()

    # Parallel blocks whoever consumes it, so that happens on a thread of its own. A daemon: a second Ctrl-C leaves.
    supervisors = threading.Thread(target=keep_all_busy, name="supervisors", daemon=True)
    try:
        if len(slots) == 1 and slots[0].inline:
            while not stop.is_set() and ticket(slots[0]):
                if tick is not None:
                    tick()
            return
        supervisors.start()
        while not finished.wait(interval):
            if tick is not None:
                tick()
    except BaseException:
        stop.set()
        if on_interrupt is not None:
            on_interrupt()
        if supervisors.is_alive():
            supervisors.join()
        raise
    supervisors.join()
    if failures:
        raise failures[0]
