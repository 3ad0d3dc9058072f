"""What a reader hands over: samples with the names of their labels, and what is wrong with single samples.

Numbers for classes, splits and the sealed test come later, in `partition`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd

from automl_tl.data.samples import Indices, Samples
from automl_tl.data.schema import InputSchema

Part = Literal["train", "validation", "test"]
LabelNames = tuple[str, ...]  # of one sample: exactly one name, or any number of them for a multi-label task


@dataclass(frozen=True)
class Origin:
    """Where samples come from, to name them in messages."""

    name: str  # a path, or "x" for Python objects
    short: str  # begins the ids of the samples
    what: str = "sample"  # "row" in a table
    first: int = 0  # number of the first sample: people count the rows of a table from 1

    def sample(self, index: int) -> str:
        """Return how to call one sample in a message."""
        return f"{self.what} {index + self.first} of {self.name}"

    def ids(self, count: int) -> tuple[str, ...]:
        """Return the ids of `count` samples."""
        return tuple(f"{self.short}:{index + self.first}" for index in range(count))


@dataclass(frozen=True, eq=False)
class Labelled:
    """One part of a task."""

    origin: Origin
    samples: Samples
    labels: tuple[LabelNames, ...]
    groups: np.ndarray | None = None  # (N,) strings
    flaws: Mapping[int, str] = field(default_factory=dict)  # sample index -> a sentence that says what is wrong

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Indices) -> Labelled:
        """Return the flawless samples at `indices`, in that order."""
        return Labelled(
            origin=self.origin,
            samples=self.samples.take(indices),
            labels=tuple(self.labels[int(index)] for index in indices),
            groups=None if self.groups is None else self.groups[np.asarray(indices, dtype=int)],
        )


@dataclass(frozen=True, eq=False)
class Dataset:
    """All parts of a task as read; "train" is always there."""

    parts: Mapping[Part, Labelled]
    schema: InputSchema
    multilabel: bool = False
    classes: tuple[str, ...] | None = None  # known beforehand, as the columns of a multi-hot matrix are
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Labels:
    """Parsed labels of one part."""

    names: tuple[LabelNames, ...]
    multilabel: bool
    flaws: Mapping[int, str]
    classes: tuple[str, ...] | None = None


def parse_labels(values: Any, origin: Origin, *, separator: str | None = None, column: str = "y") -> Labels:
    """Return the label names of each sample.

    `values` holds one label a sample; or a list of labels a sample; or, as a 2-D array or frame, a multi-hot matrix;
    or, with a separator, strings that join several labels.
    """
    if isinstance(values, pd.DataFrame):
        return _multi_hot(values.to_numpy(), tuple(map(label_name, values.columns)), origin)
    if not isinstance(values, (list, tuple)):
        values = np.asarray(values)
        if values.ndim == 2 and values.shape[1] > 1:
            return _multi_hot(values, tuple(str(index) for index in range(values.shape[1])), origin)
        values = list(values.reshape(-1))
    multilabel = separator is not None or any(_is_collection(value) for value in values)
    names: list[LabelNames] = []
    flaws: dict[int, str] = {}
    for index, value in enumerate(values):
        if _is_missing(value):
            flaws[index] = f"{origin.sample(index)} has no label in {column!r}"
            names.append(())
        elif _is_collection(value):
            names.append(tuple(dict.fromkeys(map(label_name, value))))
        elif separator is not None:
            pieces = (piece.strip() for piece in label_name(value).split(separator))
            names.append(tuple(dict.fromkeys(piece for piece in pieces if piece)))
        else:
            names.append((label_name(value),))
    return Labels(names=tuple(names), multilabel=multilabel, flaws=flaws)


def label_name(value: object) -> str:
    """Return the class name of one label; whole floats print as integers."""
    if isinstance(value, bytes):
        value = value.decode()
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        value = int(value)
    return str(value).strip()


def natural_order(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names sorted: by value when all are numbers, else alphabetically with numbers inside by value."""
    alphabetical = sorted(set(names))
    try:
        return tuple(sorted(alphabetical, key=float))
    except ValueError:
        return tuple(sorted(alphabetical, key=_text_and_numbers))


def multi_hot(labels: Sequence[LabelNames], classes: Sequence[str]) -> np.ndarray:
    """Return float32 (N, K), 1 where a sample has the class."""
    position = {name: index for index, name in enumerate(classes)}
    matrix = np.zeros((len(labels), len(classes)), dtype=np.float32)
    for row, names in enumerate(labels):
        for name in names:
            matrix[row, position[name]] = 1.0
    return matrix


def _multi_hot(matrix: np.ndarray, classes: tuple[str, ...], origin: Origin) -> Labels:
    """Read a matrix of zeros and ones (N, K)."""
    try:
        values = np.asarray(matrix, dtype=np.float64)
    except (TypeError, ValueError):
        values = np.full(matrix.shape, np.nan)
    valid = np.isin(values, (0.0, 1.0)).all(axis=1)
    return Labels(
        names=tuple(tuple(classes[index] for index in np.flatnonzero(row == 1.0)) for row in values),
        multilabel=True,
        flaws={
            int(row): f"{origin.sample(int(row))} has labels other than 0 and 1 in its multi-hot row"
            for row in np.flatnonzero(~valid)
        },
        classes=classes,
    )


def _is_collection(value: object) -> bool:
    return isinstance(value, (list, tuple, set, frozenset)) or (isinstance(value, np.ndarray) and value.ndim == 1)


def _is_missing(value: object) -> bool:
    if _is_collection(value):
        return False
    return bool(pd.isna(value)) or not str(value).strip()  # type: ignore[call-overload]


def _text_and_numbers(name: str) -> list[str | int]:
    pieces = re.split(r"([0-9]+)", name)  # text and digits alternate, so equal positions have equal types
    return [int(piece) if position % 2 else piece for position, piece in enumerate(pieces)]
