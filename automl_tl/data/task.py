"""A task, ready to be learnt: three splits, the last one sealed, and how they came about.

`load_task` is the way through this package: locate the paths, read them, partition, seal. Readers live one module a
format; nothing here touches a model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from automl_tl.config import DataConfig
from automl_tl.data.arrays import dataset_from_python
from automl_tl.data.bundled import PREFIX, bundled_arrays
from automl_tl.data.folder import dataset_from_folders
from automl_tl.data.inputs import inputs_from_python, read_inputs, unlabeled_samples
from automl_tl.data.labelled import Dataset, Labelled, Part, multi_hot
from automl_tl.data.locate import Location, locate
from automl_tl.data.npz import labelled_arrays
from automl_tl.data.partition import partition
from automl_tl.data.samples import Samples, together
from automl_tl.data.schema import InputSchema
from automl_tl.data.table import dataset_from_tables, table_file
from automl_tl.errors import DataError
from automl_tl.plugin import Modality

__all__ = [
    "InputSchema",
    "SealedTest",
    "Split",
    "Task",
    "inputs_from_python",
    "load_task",
    "read_inputs",
    "task_from_python",
]

TaskKind = Literal["binary", "multiclass", "multilabel"]


@dataclass(frozen=True, eq=False)
class Split:
    """N samples, their labels, int64 (N,) class numbers or float32 (N, K) multi-hot rows, and their groups, if any."""

    samples: Samples
    labels: np.ndarray
    groups: np.ndarray | None = None  # int64 (N,): samples of one group never stand on two sides of a split

    def __len__(self) -> int:
        return len(self.samples)


class SealedTest:
    """The test split, which can be opened once, so that no choice is ever made by looking at it."""

    __slots__ = ("_opened", "_size", "_split", "_task")

    def __init__(self, task: str, split: Split) -> None:
        self._task = task
        self._size = len(split)
        self._split: Split | None = split
        self._opened = False

    def __len__(self) -> int:
        return self._size

    def __repr__(self) -> str:
        return f"SealedTest({self._task!r}, {self._size} samples, {'opened' if self._opened else 'sealed'})"

    @property
    def opened(self) -> bool:
        """Whether the split has been handed out."""
        return self._opened

    def holds(self, samples: Samples, digest: Callable[[Samples], np.ndarray]) -> np.ndarray:
        """Whether the split has a sample equal to each of M others, bool (M,); no label is looked at.

        Args:
            samples: the others.
            digest: of samples (N, bytes), equal for equal ones.
        """
        if self._split is None or not self._size:
            return np.zeros(len(samples), bool)
        own = {row.tobytes() for row in digest(self._split.samples)}
        return np.array([row.tobytes() in own for row in digest(samples)], bool)

    def open(self) -> Split:
        """Hand out the split.

        Raises:
            DataError: it was handed out before.
        """
        if self._split is None:
            raise DataError(
                f"the test split of task {self._task!r} was already opened; a score is honest only the first time, "
                f"load the task anew for another run"
            )
        split, self._split, self._opened = self._split, None, True
        return split


@dataclass(frozen=True, eq=False)
class Task:
    """A labelled task."""

    name: str
    kind: TaskKind
    classes: tuple[str, ...]  # class i's name; of a binary task, class 1 is the positive one
    train: Split
    validation: Split
    test: SealedTest
    schema: InputSchema
    notes: tuple[str, ...]  # one sentence for each thing that was inferred or decided
    validation_given: bool = False  # not carved from the training samples
    validation_fraction: float = 0.2  # of what is not test, that judges what learns from the rest
    unlabeled: Samples | None = None  # further samples to learn from, in random order
    left_out: int = 0  # training and validation samples that there is no time to learn from

    @property
    def modality(self) -> Modality:
        """What the inputs are."""
        return self.schema.modality

    @property
    def development(self) -> Split:
        """All samples that are not test, those of training first; no group is in both."""
        train, validation = self.train, self.validation
        groups = None
        if train.groups is not None or validation.groups is not None:
            parts = [np.arange(len(part)) if part.groups is None else part.groups for part in (train, validation)]
            groups = np.concatenate([parts[0], parts[1] + parts[0].max(initial=-1) + 1])
        labels = np.concatenate([train.labels, validation.labels])
        return Split(together(train.samples, validation.samples), labels, groups)

    @property
    def judging(self) -> Split:
        """The samples of which a fit leaves out each once: the training ones, or all that are not test."""
        return self.train if self.validation_given else self.development

    @property
    def n_outputs(self) -> int:
        """K, the number of classes; 2 for a binary task, whose outputs are a softmax as well."""
        return len(self.classes)


def load_task(config: DataConfig, *, seed: int, base: Path | None = None) -> Task:
    """Read, check and split the task that the configuration describes.

    Args:
        config: paths and settings; relative paths start at the current directory, then at `base`.
        seed: decides the splits that are not given.
        base: the folder of the configuration file.

    Raises:
        DataError: the data cannot be used as it is; the message says what to do.
    """
    if config.path.startswith(PREFIX):
        if config.test is not None:
            raise DataError(f"{config.path} is split by data.test_fraction; remove data.test")
        if config.label is not None:
            raise DataError(f"{config.path} brings its labels; remove data.label, got {config.label!r}")
        dataset = dataset_from_python({"train": bundled_arrays(config.path)}, config, config.path)
        task = _task(dataset, config, config.path.removeprefix(PREFIX), seed=seed)
        return _with_unlabeled(task, config, seed=seed, base=base)
    location = locate(config, base)
    name = location.root.stem if location.root.is_file() else location.root.name
    return _with_unlabeled(_task(_read(location, config), config, name, seed=seed), config, seed=seed, base=base)


def task_from_python(
    x: Any,
    y: Any = None,
    *,
    config: DataConfig | None = None,
    seed: int,
    test: tuple[Any, Any] | None = None,
    hold_out_test: bool = True,
    unlabeled: Any = None,
) -> Task:
    """Make a task from arrays, lists, a frame or a torch-like dataset of (x, label) items.

    Args:
        x: numbers of shape (N, D), (N, H, W), (N, H, W, C) or (N, C, H, W); strings; images or their paths; a frame.
        y: N labels; N lists of labels, or an (N, K) multi-hot array, for a multi-label task; None: in x.
        config: settings as for `load_task`; its path only names the task.
        seed: decides the splits that are not given.
        test: x and y of the test split.
        hold_out_test: without it, and without `test`, the test split is empty.
        unlabeled: further samples of the same kind as x, without labels, to learn from.

    Raises:
        DataError: the data cannot be used as it is.
    """
    config = config or DataConfig(path="data")
    parts: dict[Part, tuple[Any, Any]] = {"train": (x, y)}
    if test is not None:
        parts["test"] = test
    dataset = dataset_from_python(parts, config)
    task = _task(dataset, config, Path(config.path).stem, seed=seed, hold_out_test=hold_out_test)
    return task if unlabeled is None else _learning_from(task, unlabeled, config, seed=seed)


def _with_unlabeled(task: Task, config: DataConfig, *, seed: int, base: Path | None) -> Task:
    if config.unlabeled is None:
        return task
    return _learning_from(task, Path(config.unlabeled), config, seed=seed, base=base)


def _learning_from(task: Task, source: Any, config: DataConfig, *, seed: int, base: Path | None = None) -> Task:
    """The task with unlabeled samples beside it."""
    if task.kind == "multilabel":
        raise DataError(
            f"unlabeled samples help tasks of one label a sample, but the samples of {task.name} may have several; "
            "remove data.unlabeled"
        )
    samples, note = unlabeled_samples(source, task.schema, seed=seed, base=base, on_bad_sample=config.on_bad_sample)
    return replace(task, unlabeled=samples, notes=(*task.notes, note))


def _read(location: Location, config: DataConfig) -> Dataset:
    if location.format == "folder":
        return dataset_from_folders(location.root, location.parts, config)
    if location.format == "table":
        return dataset_from_tables({part: table_file(path) for part, path in location.parts.items()}, config)
    arrays = {part: labelled_arrays(path) for part, path in location.parts.items()}
    if len(arrays) == 1:
        return dataset_from_python(arrays["train"], config, str(location.root))
    return dataset_from_python({part: inside["train"] for part, inside in arrays.items()}, config, str(location.root))


def _task(dataset: Dataset, config: DataConfig, name: str, *, seed: int, hold_out_test: bool = True) -> Task:
    parts = partition(dataset, config, seed=seed, hold_out_test=hold_out_test)
    kind: TaskKind = "multilabel" if dataset.multilabel else "binary" if len(parts.classes) == 2 else "multiclass"

    def split(part: Labelled) -> Split:
        groups = None if part.groups is None else np.unique(part.groups, return_inverse=True)[1]
        if dataset.multilabel:
            return Split(part.samples, multi_hot(part.labels, parts.classes), groups)
        number = {name: index for index, name in enumerate(parts.classes)}
        return Split(part.samples, np.array([number[names[0]] for names in part.labels], dtype=np.int64), groups)

    return Task(
        name=name,
        kind=kind,
        classes=parts.classes,
        train=split(parts.train),
        validation=split(parts.validation),
        test=SealedTest(name, split(parts.test)),
        schema=dataset.schema,
        notes=parts.notes,
        validation_given="validation" in dataset.parts,
        validation_fraction=config.validation_fraction,
    )
