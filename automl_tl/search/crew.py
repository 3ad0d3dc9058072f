"""The crew of a search: its slots, and a child in each that gets ready while the host still imports and loads.

Importing this module imports neither torch nor optuna, so that a command can start its children before it does so
itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module

from automl_tl.engine.child import warm_torch
from automl_tl.engine.importing import importing
from automl_tl.engine.slot import Children
from automl_tl.engine.slots import Slot, parse_slots, usable_cores
from automl_tl.engine.spread import Crew


def warm_child(slot: Slot) -> None:
    """Before a child's first call: torch, kept to the slot's threads, and all that a trial imports."""
    with importing():
        warm_torch(slot)
        import_module("automl_tl.search.trial")


def warm_logistic() -> None:
    """What the first logistic regression would import."""
    with importing():
        import_module("scipy.optimize")


def warm_descent() -> None:
    """What torch would import when an optimizer is made first."""
    with importing(), suppress(ImportError):
        import_module("torch._dynamo")


def warm_rungs() -> None:
    """What the first trial that tells of its epochs would import."""
    with importing():
        import_module("automl_tl.search.rungs")


IMPORTS = (warm_logistic, warm_descent, warm_rungs)
"""What trials import, in small parts: a caller who comes in between waits for one of them."""


@contextmanager
def open_crew(slots: str) -> Iterator[Crew]:
    """The slots that `slots` names, with children that are getting ready, and that end with the context.

    As many at a time as leave one core to the caller, who is likely to import torch next: the first model waits for the
    caller and one child, not for all of them. While the caller has nothing for them to do yet, they import what the
    first trials will need.

    Raises
    ------
    ConfigError
        See `parse_slots`.
    """
    named = parse_slots(slots)
    with Children(named, warm=warm_child) as children:
        children.warm_up(at_once=max(1, usable_cores() - 1), while_idle=IMPORTS)
        yield Crew(slots=named, children=children)
