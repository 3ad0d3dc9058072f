"""Imports of much at once, as a process's first step."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Put garbage collection off while modules are imported.

    They make very many objects, all of which stay: to look through them for garbage, again and again, finds none.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
