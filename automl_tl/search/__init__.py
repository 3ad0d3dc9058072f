"""The search: which specs to try, in what order, and when to stop. Optuna decides, the engine runs, training trains.

`automl_tl.search(...)` is also the public function, and Python gives that name to this package as soon as one of its
modules is imported. So calling the package calls the function.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any


class _CallableModule(ModuleType):
    @property
    def __call__(self) -> Callable[..., Any]:
        function: Callable[..., Any] = import_module("automl_tl.api").search
        return function


sys.modules[__name__].__class__ = _CallableModule
