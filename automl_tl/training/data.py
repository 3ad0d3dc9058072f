"""What a training learns from, what it is judged by, and what its head starts from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import nn

from automl_tl.features.rows import Rows
from automl_tl.metrics.scores import Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """Rows with their labels: int64 classes (N,) or indicators (N, K)."""

    rows: Rows
    labels: np.ndarray
    start: int = 0  # layer groups that the rows have passed already; never more than the model's cut


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceTask:
    """The source task, trained alongside with its own head."""

    data: Labelled
    kind: Kind
    head: nn.Module


@dataclass(frozen=True, slots=True)
class LinearStart:
    """A linear model of the features as the head's input has them before they are scaled: x @ weight + bias."""

    weight: np.ndarray  # (D, K) float32
    bias: np.ndarray  # (K,)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingData:
    """What a trial learns from and what it is judged by."""

    train: Labelled
    validation: Labelled | None  # None: nothing judges it, there is no score
    kind: Kind
    metric: str
    n_outputs: int
    source: SourceTask | None = None
    stopping: Labelled | None = None  # rows that early stopping looks at, see `stopping_rows`; None: it never stops
    head_start: LinearStart | None = None  # what the head starts from; None: from what was drawn
