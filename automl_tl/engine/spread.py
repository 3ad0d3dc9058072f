"""Calls shared out over slots: each goes to whichever child is free, and the results come back in order."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from automl_tl.engine.slot import ChildDied, Children
from automl_tl.engine.slots import Slot
from automl_tl.engine.supervise import supervise

Order = TypeVar("Order")
Result = TypeVar("Result")

TRIES = 2  # of a call whose child died


@dataclass(frozen=True, slots=True, kw_only=True)
class Crew:
    """The slots and their children."""

    slots: tuple[Slot, ...]
    children: Children


def spread(
    crew: Crew,
    function: Callable[[Slot, Order], Result],
    orders: Sequence[Order],
    *,
    tick: Callable[[int], None] = lambda done: None,
) -> list[Result]:
    """Call `function(slot, order)`, which runs something on the slot's child, for every order.

    `tick(done)` is called a few times a second with how many are finished. An order whose child died is tried once
    more.

    Raises
    ------
    ChildDied
        When it died again.
    Exception
        Of a call, after those that were under way; the slots can be used again.
    KeyboardInterrupt
        After the children were stopped.
    """
    waiting = deque((index, order, 1) for index, order in enumerate(orders))
    results: dict[int, Result] = {}
    failures: list[Exception] = []
    turn = threading.Lock()
    ended = threading.Event()  # of its own: what ends these calls need not end the run

    def ticket(slot: Slot) -> bool:
        with turn:
            if not waiting:
                return False
            index, order, attempt = waiting.popleft()
        try:
            results[index] = function(slot, order)
        except Exception as error:
            if isinstance(error, ChildDied) and attempt < TRIES:
                with turn:
                    waiting.append((index, order, attempt + 1))
            else:
                failures.append(error)
                ended.set()
        return True

    supervise(
        crew.slots,
        ticket,
        stop=ended,
        tick=lambda: tick(len(results)),
        on_interrupt=crew.children.stop,
    )
    if failures:
        raise failures[0]
    return [results[index] for index in range(len(orders))]
