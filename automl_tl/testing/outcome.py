"""How a check says that an item does not conform, or that it cannot tell."""

from __future__ import annotations


class Nonconformance(AssertionError):
    """An item breaks the rule that a check stands for."""


class CheckSkipped(Exception):
    """A check cannot be made here; the message says what is missing."""


def require(condition: bool, otherwise: str) -> None:
    """Raise `Nonconformance` with the sentence unless the condition holds. Unlike `assert`, also under `python -O`."""
    if not condition:
        raise Nonconformance(otherwise)
