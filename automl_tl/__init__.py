"""Finds, for your data, what to transfer from a pretrained model and how.

`search` runs a configuration, `TransferSearch` is a scikit-learn classifier, `load_run` opens what a search left
behind. Names are imported when they are first used, so that importing the package does not load torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from automl_tl.api import FinishedRun, TransferSearch, load_run, score, search
    from automl_tl.model.spec import Optimization, Regularization, TrialSpec
    from automl_tl.search.space import SpaceContext, default_space

__version__ = "0.1.0"

_HOMES = {
    "FinishedRun": "automl_tl.api",
    "TransferSearch": "automl_tl.estimator",
    "load_run": "automl_tl.api",
    "score": "automl_tl.api",
    "search": "automl_tl.api",
    "Optimization": "automl_tl.model.spec",
    "Regularization": "automl_tl.model.spec",
    "TrialSpec": "automl_tl.model.spec",
    "SpaceContext": "automl_tl.search.space",
    "default_space": "automl_tl.search.space",
}

__all__ = [
    "FinishedRun",
    "Optimization",
    "Regularization",
    "SpaceContext",
    "TransferSearch",
    "TrialSpec",
    "default_space",
    "load_run",
    "score",
    "search",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
