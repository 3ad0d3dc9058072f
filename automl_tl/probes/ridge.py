"""Ridge regression onto the classes, with exact leave-one-out predictions for a whole path of strengths.

Features are centered and divided by one scale; the indicators Y (N, K) are centered, too. With A the weighted features
and S their squared singular values (see `decomposition`), leaving sample n out changes its residual to r_n / (1 - h_n),
where h_n is its leverage (Allen 1974); leaving a group g out changes the residuals to (I - H_gg)^-1 r_g. The intercept
is part of H. So N refits cost as much as one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from automl_tl.metrics.scores import Kind, log_loss, validation_score
from automl_tl.probes.calibration import Calibration, calibrate, probabilities
from automl_tl.probes.centering import Features
from automl_tl.probes.decomposition import Decomposition, decompose
from automl_tl.probes.fit import PathPoint, ProbeFit, choose
from automl_tl.probes.targets import indicators, members, sample_weights, several_groups

if TYPE_CHECKING:
    from automl_tl.model.spec import ClassWeight

LAMBDAS = tuple(float(strength) for strength in np.logspace(4, -3, 15))
"""Strengths, strong to weak, in multiples of the mean squared norm of the centered features."""

LEAST_FREEDOM = 1e-6  # 1 - h_n: a sample that the fit hangs on alone has none
BLOCK = 1 << 24  # scores that are kept at once, of all samples, classes and some strengths: 128 MiB


def fit_ridge(
    features: Features,
    labels: np.ndarray,
    kind: Kind,
    n_outputs: int,
    *,
    metric: str = "f1_macro",
    class_weight: ClassWeight = "none",
    groups: np.ndarray | None = None,
) -> ProbeFit:
    """The ridge classifier of the strength that predicts left-out samples best.

    Class weights stay as they are when a sample is left out. For several labels a sample they move the thresholds only:
    a weight on the positives of one class would ask for a decomposition a class, and hardly turns the direction.

    Args:
        features: (N, d) floats.
        labels: (N,) int64 classes, or (N, K) 0/1 for several labels a sample.
        kind: one label a sample or several.
        n_outputs: K.
        metric: decides between strengths; see `metrics.scores.f1`.
        class_weight: `balanced` weighs a class by N / (K n_k).
        groups: (N,) integers; samples of one group are left out together, but for a single group of all.

    Raises:
        DataError: fewer than two samples, or features that are not finite.
    """
    targets = indicators(labels, kind, n_outputs)
    axes = decompose(features, sample_weights(targets, kind, class_weight))
    together = several_groups(groups)
    left_out = None if together is None else members(together)
    problem = system(axes, targets)
    path: list[PathPoint] = []
    best: tuple[Calibration, np.ndarray] | None = None
    at_once = max(1, BLOCK // targets.size)
    for first in range(0, len(LAMBDAS), at_once):
        strengths = np.array(LAMBDAS[first : first + at_once])
        for strength, scores in zip(strengths, problem.left_out_scores(strengths, left_out), strict=True):
            calibration = calibrate(scores, targets, kind, class_weight=class_weight)
            said = probabilities(calibration.logits(scores), kind)
            path.append(
                PathPoint(float(strength), validation_score(labels, said, kind, metric), log_loss(labels, said))
            )
            if choose(path) == len(path) - 1:
                best = calibration, said
    assert best is not None
    calibration, said = best
    chosen = path[choose(path)]
    weight, bias = problem.solution(chosen.strength)
    return ProbeFit(
        weight=(calibration.slope * weight).astype(np.float32),
        bias=calibration.logits(bias).astype(np.float32),
        strength=chosen.strength,
        out_of_fold=said,
        score=chosen.score,
        log_loss=chosen.log_loss,
        path=tuple(path),
    )


@dataclass(frozen=True, slots=True)
class System:
    """Decomposed features against the centered indicators. Shapes: r axes, L strengths, K classes."""

    axes: Decomposition
    targets: np.ndarray  # (N, K)
    center: np.ndarray  # (K,), their weighted mean
    weighted: np.ndarray  # (N, K), centered and times the roots of the weights
    projected: np.ndarray  # (r, K)

    def solution(self, strength: float) -> tuple[np.ndarray, np.ndarray]:
        """Weight (d, K) and bias (K,) that map raw features to scores."""
        centered = self.axes.centered
        weight = self.axes.expand(self.projected / (self.axes.values + strength)[:, None]) / centered.scale
        return weight, self.center - centered.mean @ weight

    def left_out_scores(self, strengths: np.ndarray, groups: list[np.ndarray] | None = None) -> np.ndarray:
        """Scores of each sample by the fit without it, or without its group: (L, N, K)."""
        inverse = 1 / (self.axes.values[:, None] + strengths)  # (r, L)
        several = [
            rows for rows in groups or () if len(rows) > 1
        ]  # one alone is left out as it would be without groups
        if self.axes.left is not None:
            errors = _errors_by_samples(self, self.axes.left, inverse, several)
        else:
            errors = _errors_by_features(self, inverse)
            for rows in several:
                errors_of = _errors_of_small_group if len(rows) <= len(inverse) else _errors_of_large_group
                errors[rows] = errors_of(self, rows, inverse)
        errors /= self.axes.centered.root[:, None, None]
        np.subtract(self.targets[:, None, :], errors, out=errors)
        return errors.transpose(1, 0, 2)


def system(axes: Decomposition, targets: np.ndarray) -> System:
    """The ridge problem of predicting the targets (N, K) along these axes."""
    root = axes.centered.root
    center = np.average(targets, axis=0, weights=root**2)
    weighted = root[:, None] * (targets - center)
    return System(axes, targets, center, weighted, axes.project(weighted))


def _errors_by_samples(problem: System, left: np.ndarray, inverse: np.ndarray, groups: list[np.ndarray]) -> np.ndarray:
    """Errors (N, L, K) of weighted rows for N <= d.

    There I - H = strength * P with P = U (S + strength)^-1 U^T, and the residuals are strength * P Y: the strength
    cancels, and nothing is lost by subtraction however weak it is.
    """
    dual = left @ _solved(problem, inverse).astype(left.dtype)
    errors: np.ndarray = dual.astype(np.float64).reshape(len(left), inverse.shape[1], -1)
    together = []
    for rows in groups:
        own = left[rows].astype(np.float64)
        blocks = np.stack([(own * column) @ own.T for column in inverse.T])  # (L, m, m)
        together.append(np.linalg.solve(blocks, errors[rows].transpose(1, 0, 2)).transpose(1, 0, 2))
    errors /= (left**2 @ inverse.astype(left.dtype))[:, :, None]
    for rows, found in zip(groups, together, strict=True):
        errors[rows] = found
    return errors


def _errors_by_features(problem: System, inverse: np.ndarray) -> np.ndarray:
    """Errors (N, L, K) of weighted rows for N > d."""
    centered = problem.axes.centered
    n_strengths, n_classes = inverse.shape[1], problem.targets.shape[1]
    solved, short = _solved(problem, inverse).astype(centered.dtype), inverse.astype(centered.dtype)
    errors = np.empty((len(problem.targets), n_strengths, n_classes))
    for part in centered.parts():
        along = problem.axes.coordinates(part)
        freedom = 1 - centered.intercept[part, None] ** 2 - along**2 @ short  # (rows, L)
        fitted = (along @ solved).reshape(-1, n_strengths, n_classes)
        errors[part] = problem.weighted[part, None, :] - fitted
        errors[part] /= freedom.clip(min=LEAST_FREEDOM)[:, :, None]
    return errors


def _errors_of_small_group(problem: System, rows: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """Errors (m, L, K) of the weighted rows of a group of m <= r samples: a system of m equations a strength."""
    design = _design(problem.axes, rows)
    shares = np.concatenate([np.ones((1, inverse.shape[1])), inverse])  # the constant column is not penalized
    hats = np.stack([(design * column) @ design.T for column in shares.T])
    fitted = (design[:, 1:] @ _solved(problem, inverse)).reshape(len(rows), inverse.shape[1], -1)
    residuals = (problem.weighted[rows, None, :] - fitted).transpose(1, 0, 2)  # (L, m, K)
    errors: np.ndarray = np.linalg.solve(np.eye(len(rows)) - hats, residuals)
    return errors.transpose(1, 0, 2)


def _errors_of_large_group(problem: System, rows: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """Errors (m, L, K) of the weighted rows of a group of m > r samples: the fit of all others, r + 1 equations."""
    axes, size, n_classes = problem.axes, len(inverse) + 1, problem.targets.shape[1]
    gram, moment = np.zeros((size, size)), np.zeros((size, n_classes))
    parts = list(axes.centered.parts(rows))
    for part in parts:
        design = _design(axes, part)
        gram += design.T @ design
        moment += design.T @ problem.weighted[part]
    wanted = np.concatenate([np.zeros((1, n_classes)), problem.projected]) - moment
    whole = np.concatenate([np.ones((1, inverse.shape[1])), 1 / inverse])  # the diagonal of the full system, (r + 1, L)
    solutions = np.stack([np.linalg.solve(np.diag(column) - gram, wanted) for column in whole.T], 1)
    fitted = np.concatenate([_design(axes, part) @ solutions.reshape(size, -1) for part in parts])
    return np.asarray(problem.weighted[rows, None, :] - fitted.reshape(len(rows), inverse.shape[1], n_classes))


def _design(axes: Decomposition, rows: slice | np.ndarray) -> np.ndarray:
    """The constant column and the features along their axes: (m, r + 1)."""
    return np.column_stack([axes.centered.intercept[rows], axes.coordinates(rows)])


def _solved(problem: System, inverse: np.ndarray) -> np.ndarray:
    """Solutions along the axes, of all strengths side by side: (r, L K)."""
    return np.asarray((inverse[:, :, None] * problem.projected[:, None, :]).reshape(len(inverse), -1))
