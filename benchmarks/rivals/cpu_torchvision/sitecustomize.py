"""On PYTHONPATH, lets the torchvision of PyPI, built for CUDA, be imported beside a torch without it.

Its C library does not load there, and its import then fails because it describes operators that are not declared. So
they are declared first, when torchvision is looked for. Models and transforms work; the operators themselves do not.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

OPERATORS = ("nms", "qnms")  # those that it describes
ARGUMENTS = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
KEPT: list[Any] = []  # a torch library forgets its operators with its last reference


class BeforeTorchvision(MetaPathFinder):
    """Finds nothing, but is asked for torchvision before everybody else."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name == "torchvision":
            sys.meta_path.remove(self)
            declare_operators()
        return None


def declare_operators() -> None:
    import torch

    if torch.version.cuda is None:
        library: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for name in OPERATORS:
            library.define(name + ARGUMENTS)
        KEPT.append(library)


sys.meta_path.insert(0, BeforeTorchvision())
