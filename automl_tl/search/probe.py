"""A head found in closed form: a trial like any other, that takes no epochs and leaves a model like any other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from automl_tl.errors import TrialError
from automl_tl.features.rows import StoredRows, ViewRows
from automl_tl.features.task import OpenedSplit
from automl_tl.metrics.scores import Kind, validation_score
from automl_tl.model.assemble import TransferModel
from automl_tl.model.spec import TrialSpec
from automl_tl.probes.centering import Features
from automl_tl.probes.fit import ProbeFit
from automl_tl.probes.join import fit_joined, join_taps
from automl_tl.probes.logistic import fit_logistic
from automl_tl.probes.prototypes import fit_prototypes
from automl_tl.probes.ridge import fit_ridge
from automl_tl.probes.unlabeled import fit_with_unlabeled
from automl_tl.search.inputs import Inputs, Reader
from automl_tl.search.scores import subset
from automl_tl.training.batches import evaluation_batches
from automl_tl.training.train import Labelled, LinearStart, Outcome, predict_probabilities

BATCH = 256
START_ROWS = 2000  # training samples that a head's start is solved from
LARGE = 1 << 25  # numbers: 128 MiB


def fit_in_closed_form(
    model: TransferModel,
    inputs: Inputs,
    widths: Sequence[int],
    groups: np.ndarray | None,
    kind: Kind,
    metric: str,
    device: str,
) -> tuple[Outcome, dict[str, Any]]:
    """Solve for the head on the training rows, put it into `model`, and judge it.

    The strength of the regularization is chosen by training samples that are left out of the fit, those of one of
    `groups` together. They judge the fit as well where there are no validation rows. `widths`: features of each tap
    that is read.

    Returns how it does, and facts for the trial's record.
    """
    spec, head = model.spec, model.head
    assert isinstance(head, nn.Linear)
    features, labels, groups = _all_views(model, inputs.train, groups, device)
    weighing, n_outputs = spec.regularization.class_weight, head.out_features
    taught: dict[str, Any] = {}
    if inputs.unlabeled is not None and spec.unlabeled != "none":
        others = features_of(model, inputs.unlabeled, device)
        fit, taught = _taught(spec, features, labels, others, widths, kind, n_outputs, metric, groups)
    elif spec.fit == "prototypes":
        fit = fit_prototypes(features, labels, kind, n_outputs, metric=metric, class_weight=weighing, groups=groups)
    elif spec.joined:
        fit = fit_joined(
            _blocks(features, widths),
            labels,
            kind,
            n_outputs,
            method="logistic" if spec.fit == "logistic" else "ridge",
            metric=metric,
            class_weight=weighing,
            groups=groups,
        )
    else:
        fit = fit_ridge(features, labels, kind, n_outputs, metric=metric, class_weight=weighing, groups=groups)
        if spec.fit == "logistic":
            fit = fit_logistic(
                features, labels, kind, n_outputs, metric=metric, class_weight=weighing, groups=groups, start=fit
            )
    _set(head, fit)
    facts = {"left_out_score": fit.score, "strength": fit.strength, **taught}
    judged = inputs.validation
    if judged is not None:
        said = predict_probabilities(model, judged, kind, device)
        return Outcome(score=validation_score(judged.labels, said, kind, metric), validation=said), facts
    said = fit.out_of_fold[: len(inputs.train.labels)]  # of changed views of them there may be more
    return Outcome(score=validation_score(inputs.train.labels, said, kind, metric), validation=said), facts


def _taught(
    spec: TrialSpec,
    features: Features,
    labels: np.ndarray,
    unlabeled: Features,
    widths: Sequence[int],
    kind: Kind,
    n_outputs: int,
    metric: str,
    groups: np.ndarray | None,
) -> tuple[ProbeFit, dict[str, Any]]:
    """A head that unlabeled samples teach as well, and how many of them there were and did."""
    assert spec.unlabeled != "none"
    factors = join_taps(_blocks(features, widths)) if spec.joined else np.ones(features.shape[1])
    found = fit_with_unlabeled(
        (np.asarray(features[:]) * factors).astype(np.float32),
        labels,
        (np.asarray(unlabeled[:]) * factors).astype(np.float32),
        kind,
        n_outputs,
        method=spec.unlabeled,
        head="logistic" if spec.fit == "logistic" else "ridge",
        metric=metric,
        class_weight=spec.regularization.class_weight,
        groups=groups,
    )
    facts: dict[str, Any] = {"unlabeled_samples": unlabeled.shape[0], "unlabeled_learnt_from": found.learnt_from}
    return replace(found.fit, weight=(found.fit.weight * factors[:, None]).astype(np.float32)), facts


def linear_start(reader: Reader, split: OpenedSplit, kind: Kind, n_outputs: int, metric: str) -> LinearStart | None:
    """Where a linear head may start from: a probe of the stored features of its taps; None: none are stored.

    What trains below the head then starts with a head that fits, and is not first torn down by one that does not
    (LP-FT; Kumar et al., ICLR 2022). It is a ridge regression; of texts, whose epochs take so long that it does not
    matter, also a logistic one, and whichever has the lower log loss on samples that are left out.
    """
    rows = reader.clean_features(split)
    if rows is None:
        return None
    chosen = subset(split.labels, START_ROWS, 0, multilabel=kind == "multilabel")
    features, groups = rows.batch(chosen, "cpu").float().numpy(), None if split.groups is None else split.groups[chosen]
    labels = split.labels[chosen]
    fit = fit_ridge(features, labels, kind, n_outputs, metric=metric, groups=groups)
    if split.rows.lengths is not None:
        logistic = fit_logistic(features, labels, kind, n_outputs, metric=metric, groups=groups, start=fit)
        fit = min(fit, logistic, key=lambda each: each.log_loss)
    return LinearStart(weight=fit.weight, bias=fit.bias)


@dataclass(frozen=True)
class Mapped:
    """Stored features as a matrix (N, D) whose rows are read when they are asked for: too many to be held at once."""

    rows: StoredRows

    @property
    def shape(self) -> tuple[int, ...]:
        """N and D."""
        return len(self.rows), self.rows.native(np.array([0])).shape[1]

    def __getitem__(self, chosen: Any) -> np.ndarray:
        return self.rows.native(np.arange(len(self.rows))[chosen]).float().numpy()


def _all_views(
    model: TransferModel, data: Labelled, groups: np.ndarray | None, device: str
) -> tuple[Features, np.ndarray, np.ndarray | None]:
    """Features, labels and groups of all training rows; of stored views all at once, a sample's left out together."""
    if not isinstance(data.rows, ViewRows):
        return features_of(model, data, device), data.labels, groups
    views = [np.asarray(features_of(model, replace(data, rows=rows), device)[:]) for rows in data.rows.views]
    together = np.arange(len(data.labels)) if groups is None else groups
    return np.concatenate(views), np.concatenate([data.labels] * len(views)), np.tile(together, len(views))


def _blocks(features: Features, widths: Sequence[int]) -> Sequence[Features]:
    """The features of each tap."""
    if isinstance(features, Mapped):
        return [Mapped(replace(features.rows, columns=(columns,))) for columns in features.rows.columns]
    return np.split(np.asarray(features), np.cumsum(widths)[:-1], axis=1)


@torch.no_grad()
def features_of(model: TransferModel, data: Labelled, device: str) -> Features:
    """What the head reads of all rows, (N, D) float32; mapped where it is large."""
    if isinstance(data.rows, StoredRows) and data.rows.columns:  # pooled, not whole outputs
        mapped = Mapped(data.rows)
        return mapped if mapped.shape[0] * mapped.shape[1] > LARGE else data.rows.features()
    model.eval()
    found: Tensor | None = None
    for indices in evaluation_batches(len(data.rows), BATCH, data.rows.lengths):
        features = model.features(data.rows.batch(indices, device), data.start).cpu()
        if found is None:
            found = features.new_empty(len(data.rows), features.shape[1])
        found[torch.from_numpy(indices)] = features
    if found is None:
        raise TrialError("a probe needs at least one training sample, got none")
    return found.numpy()


@torch.no_grad()
def _set(head: nn.Linear, fit: ProbeFit) -> None:
    head.weight.copy_(torch.from_numpy(np.ascontiguousarray(fit.weight.T)))
    head.bias.copy_(torch.from_numpy(fit.bias))
