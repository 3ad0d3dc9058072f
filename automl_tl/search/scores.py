"""The score of one tap, in a child: how well a linear head reads it, by training samples left out of its fit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from automl_tl.data.splits import split_indices
from automl_tl.features.frozen import pooled_rows
from automl_tl.features.network import Network
from automl_tl.features.task import SplitFiles
from automl_tl.host import PluginSources
from automl_tl.metrics.scores import Kind, validation_score
from automl_tl.model.pooling import Pooling
from automl_tl.probes.knn import knn_loo
from automl_tl.probes.ranking import interval
from automl_tl.probes.ridge import fit_ridge
from automl_tl.search.plugins import host_in_child

MOST_ROWS = 2000  # training samples that a score is made from
POOLING: Pooling = "mean_std"  # how taps are read that are compared


@dataclass(frozen=True, slots=True, kw_only=True)
class TapScore:
    """How well a linear head would do on one tap, by training samples that are left out of its fit."""

    tap: int  # groups kept, from 1
    group: str
    f1: float  # ridge, the metric that is searched for
    interval: tuple[float, float]  # 90 % of it
    knn: float
    log_loss: float
    diagnostics: dict[str, float]  # logme, h_score and gbc, where they are asked for; nothing is decided by them


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreOrder:
    """What crosses into the child that scores one tap."""

    sources: PluginSources
    sitting: float
    backbone: str
    network: Network
    files: SplitFiles
    tap: int
    kind: Kind
    n_outputs: int
    metric: str
    seed: int
    diagnose: bool


def score_tap(order: ScoreOrder) -> TapScore:
    """In a child: leave-one-out scores of one tap's pooled features."""
    backbone = host_in_child(order.sources, order.sitting).backbone(order.backbone)
    split = order.files.open(backbone)
    rows = pooled_rows(order.network, split.samples, [order.tap], POOLING)
    assert rows is not None
    chosen = subset(split.labels, MOST_ROWS, order.seed, multilabel=order.kind == "multilabel")
    features, labels = rows.batch(chosen, "cpu").numpy(), split.labels[chosen]
    groups = None if split.groups is None else split.groups[chosen]
    fit = fit_ridge(features, labels, order.kind, order.n_outputs, metric=order.metric, groups=groups)
    near = knn_loo(features, labels, order.kind, order.n_outputs, groups=groups)
    return TapScore(
        tap=order.tap,
        group=backbone.layer_groups[order.tap - 1],
        f1=fit.score,
        interval=interval(labels, fit.out_of_fold, order.kind, order.n_outputs),
        knn=validation_score(labels, near, order.kind, order.metric),
        log_loss=fit.log_loss,
        diagnostics=_diagnostics(features, labels, order.n_outputs) if order.diagnose else {},
    )


def subset(labels: np.ndarray, most: int, seed: int, *, multilabel: bool) -> np.ndarray:
    """Indices of at most so many samples, the classes in proportion."""
    if len(labels) <= most:
        return np.arange(len(labels))
    return split_indices(labels, fraction=most / len(labels), seed=seed, multilabel=multilabel)[1]


def _diagnostics(features: np.ndarray, labels: np.ndarray, n_outputs: int) -> dict[str, float]:
    from automl_tl.probes.diagnostics import gbc, h_score, logme

    found = {"logme": logme(features, labels, n_outputs)}
    if labels.ndim == 1:  # the others are of classes that exclude each other
        found |= {"h_score": h_score(features, labels, n_outputs), "gbc": gbc(features, labels, n_outputs)}
    return found
