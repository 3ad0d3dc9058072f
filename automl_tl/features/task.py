"""A task made ready for children: prepared samples and labels on disk, and the plain facts that training needs.

The test split is not among them; it stays sealed until the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from automl_tl.data import ImageSamples, Split, TableEncoder, TableSamples, Task
from automl_tl.features.rows import Rows
from automl_tl.features.samples import (
    InputFormat,
    check_unchanged,
    image_size_for,
    open_samples,
    prepare_samples,
    write_labels,
)
from automl_tl.model.assemble import Interface
from automl_tl.plugin import Backbone, ImageInput

Progress = Callable[[str, int, int], None]
"""(what is prepared, samples done, samples in all)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitFiles:
    """Where a split lies for one backbone; plain data that crosses into children."""

    samples: Path
    labels: Path

    def open(self, backbone: Backbone) -> tuple[Rows, np.ndarray]:
        """The rows, mapped, and their labels."""
        return open_samples(self.samples, backbone), np.load(self.labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedTask:
    """A task as the search sees it."""

    directory: Path
    task: Task
    formats: Mapping[str, InputFormat]  # by backbone name

    def interface(self, backbone: Backbone) -> Interface:
        """What a model of this backbone takes and puts out."""
        shape = self.formats[backbone.name].input_shape(backbone)
        return Interface(input_shape=shape, n_outputs=self.task.n_outputs)

    def files(self, backbone: Backbone, split: str) -> SplitFiles:
        """Files of the `train`, `validation` or `test` split in this backbone's format."""
        key = self.formats[backbone.name].key(backbone)
        return SplitFiles(samples=self.directory / key / split, labels=self.directory / f"{split}-labels.npy")

    def prepare(self, backbone: Backbone, name: str, split: Split, progress: Progress) -> SplitFiles:
        """Write one split in this backbone's format, if it is not there yet."""
        files = self.files(backbone, name)
        prepare_samples(
            split.samples,
            backbone,
            self.formats[backbone.name],
            files.samples,
            tick=lambda done: progress(f"preparing {name} samples", done, len(split.samples)),
        )
        write_labels(split.labels, files.labels)
        return files


def lay_out_task(
    task: Task,
    backbones: tuple[Backbone, ...],
    directory: Path,
    *,
    image_size: int | None = None,
    encoder: TableEncoder | None = None,
) -> PreparedTask:
    """Decide how each backbone is to see the task; nothing is written.

    `encoder` is a source task's: its layers expect inputs on the source's scale.
    """
    formats = {backbone.name: _format(task, backbone, image_size, encoder) for backbone in backbones}
    return PreparedTask(directory=directory, task=task, formats=formats)


def prepare_task(prepared: PreparedTask, backbones: tuple[Backbone, ...], progress: Progress) -> None:
    """Decode, tokenize or encode the training and validation samples for these backbones.

    Raises RunError when the directory was prepared from other samples or labels.
    """
    task = prepared.task
    prepared.directory.mkdir(parents=True, exist_ok=True)
    check_unchanged(prepared.directory, *((split.samples, split.labels) for split in (task.train, task.validation)))
    for backbone in backbones:
        prepared.prepare(backbone, "train", task.train, progress)
        prepared.prepare(backbone, "validation", task.validation, progress)


def _format(task: Task, backbone: Backbone, image_size: int | None, encoder: TableEncoder | None) -> InputFormat:
    samples = task.train.samples
    if isinstance(samples, ImageSamples) and isinstance(backbone.input, ImageInput):
        return InputFormat(size=image_size_for(backbone, samples.median_side(), image_size))
    if isinstance(samples, TableSamples):
        return InputFormat(encoder=encoder or TableEncoder.fit(samples.frame, task.schema.categorical_columns))
    return InputFormat()
