"""Target and source tasks: readers, splits, the sealed test split, and inputs for prediction.

`load_task` and `task_from_python` return a `Task`; `read_inputs` and `inputs_from_python` read unlabelled samples the
same way later. Nothing here knows a model, and importing this package loads neither torch nor scikit-learn. Readers,
and pandas with them, are imported when they are first used: a child process never does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from automl_tl.data.encoder import TableEncoder
from automl_tl.data.samples import ImageSamples, Samples, TableSamples, TextSamples
from automl_tl.data.splits import split_indices

if TYPE_CHECKING:
    from automl_tl.data.task import (
        InputSchema,
        SealedTest,
        Split,
        Task,
        inputs_from_python,
        load_task,
        read_inputs,
        task_from_python,
    )

__all__ = [
    "ImageSamples",
    "InputSchema",
    "Samples",
    "SealedTest",
    "Split",
    "TableEncoder",
    "TableSamples",
    "Task",
    "TextSamples",
    "inputs_from_python",
    "load_task",
    "read_inputs",
    "split_indices",
    "task_from_python",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("automl_tl.data.task"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
