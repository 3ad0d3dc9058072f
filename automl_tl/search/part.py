"""What there is time to learn from: all samples, or a part of them where passing all would take most of the time.

A model of a part within the time is worth more than one of all of them long after it.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from automl_tl.data import Split, Task
from automl_tl.data.folds import holdout
from automl_tl.engine.spread import Crew
from automl_tl.features.task import PreparedTask, SplitFiles
from automl_tl.host import PluginHost
from automl_tl.plugin import Backbone
from automl_tl.search.inputs import Stored
from automl_tl.search.passes import Progress, pass_backbone

SHARE = 0.5  # of the time limit, after which no backbone should still have samples to pass
SLOW = 0.02  # seconds of a slot; where samples that pass as slowly would be in time, nothing is timed
TIMED = 256  # samples by which the time of all is foreseen
LEAST = 500  # samples to learn from, however short the time
FORESEEN = "foreseen"  # the split of those that are timed


def surely_in_time(task: Task, slots: int, limit: float | None) -> bool:
    """Whether all samples will have passed a network early enough, without a look at how long one takes."""
    n = len(task.train) + len(task.validation)
    return limit is None or n <= LEAST or n * SLOW / slots <= SHARE * limit


def seconds_to_prepare_and_pass(
    host: PluginHost,
    backbone: Backbone,
    stored: Stored,
    prepared: PreparedTask,
    crew: Crew,
    progress: Progress,
    *,
    sitting: float,
) -> float:
    """Seconds that preparing all samples and passing them will take, foreseen by a few as in `seconds_to_pass`."""
    development = prepared.task.development
    chosen = _few(len(development))
    few = Split(development.samples.take(chosen), development.labels[chosen])
    prepared.note(FORESEEN, few)
    began = time.perf_counter()
    files = prepared.prepare(backbone, FORESEEN, few, progress)
    preparing = time.perf_counter() - began
    passing = seconds_to_pass(host, backbone, stored, files, crew, progress, sitting=sitting)
    return (preparing + passing) * len(development) / len(few)


def seconds_to_pass(
    host: PluginHost,
    backbone: Backbone,
    stored: Stored,
    files: SplitFiles,
    crew: Crew,
    progress: Progress,
    *,
    sitting: float,
) -> float:
    """Seconds that passing all samples of a split will take, foreseen by a few of them that are drawn at random.

    What is stored already takes none. These few are stored then, so their time is not lost.
    """
    n = len(files.labels())
    chosen = _few(n)
    passed = pass_backbone(host, backbone, stored, [files.only(chosen)], crew, progress, sitting=sitting)
    return passed.rows / len(chosen) * n * passed.network.seconds_per_row / len(crew.slots)


def _few(n: int) -> np.ndarray:
    return np.random.default_rng(0).permutation(n)[:TIMED]


def share_in_time(task: Task, seconds: float, left: float) -> float:
    """The share of the samples that pass in the seconds that are left, if all take so many; 1: all of them."""
    n = len(task.train) + len(task.validation)
    return 1.0 if seconds <= left else min(1.0, max(left / seconds, LEAST / n))


def part_of(task: Task, share: float, *, seed: int) -> Task:
    """A task with a random share of its training and validation samples, of every class; the test split stays whole."""

    def some(split: Split) -> Split:
        multilabel = task.kind == "multilabel"
        kept, _ = holdout(split.labels, fraction=1 - share, seed=seed, groups=split.groups, multilabel=multilabel)
        groups = None if split.groups is None else split.groups[kept]
        return Split(split.samples.take(kept), split.labels[kept], groups)

    part = replace(task, train=some(task.train), validation=some(task.validation))
    left_out = len(task.train) + len(task.validation) - len(part.train) - len(part.validation)
    return replace(part, left_out=left_out)
