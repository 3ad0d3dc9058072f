"""Logistic regression over a path of strengths, strong to weak, all folds and the fit of all samples at once.

Minimizes the mean log loss + strength / 2 * |W|^2 for centered features of mean squared norm 1; the intercept is free.
The F folds' fits and that of all samples are one smooth problem of F + 1 blocks: they bend nearly alike, so L-BFGS (Liu
and Nocedal 1989) takes hardly more steps for all than for one, and every step is one large matrix product. Coordinates
are the features' own axes, which is exact as W lies in their span, each scaled by the root of its curvature, which is
what makes the steps few.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from automl_tl.data.folds import fold_numbers
from automl_tl.metrics.scores import Kind, log_loss, validation_score
from automl_tl.probes.calibration import Calibration, calibrate, probabilities, sigmoid
from automl_tl.probes.centering import CHUNK, Features, chunks
from automl_tl.probes.decomposition import Decomposition, decompose
from automl_tl.probes.fit import PathPoint, ProbeFit, choose
from automl_tl.probes.targets import indicators, loss_weights, sample_weights

if TYPE_CHECKING:
    from automl_tl.model.spec import ClassWeight

STRENGTHS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
"""Strong to weak, of the mean loss a sample, in multiples of the mean squared norm of the centered features."""

PATIENCE = 2  # weaker strengths in a row without gain that end the path
FOLDS = 5
MANY_SAMPLES = 5000  # of more, a fold less changes little and costs much
FEW_FOLDS = 3
STEPS = 100
MEMORY = 6  # past steps that L-BFGS remembers
GRADIENT = 1e-3  # largest slope along a scaled coordinate at which a fit has converged; held-out scores see no finer
LEAST_CURVATURE = 1e-4
EXACT_SIZE = 1 << 16  # numbers in the coordinates up to which products are in double precision


def fit_logistic(
    features: Features,
    labels: np.ndarray,
    kind: Kind,
    n_outputs: int,
    *,
    metric: str = "f1_macro",
    class_weight: ClassWeight = "none",
    groups: np.ndarray | None = None,
    start: ProbeFit | None = None,
) -> ProbeFit:
    """The logistic regression of the strength that predicts held-out folds best.

    Args:
        features: (N, d) floats.
        labels: (N,) int64 classes, or (N, K) 0/1 for several labels a sample.
        kind: one label a sample or several.
        n_outputs: K.
        metric: decides between strengths; see `metrics.scores.f1`.
        class_weight: `balanced` weighs a class by N / (K n_k), or the positives of a label by negatives / positives.
        groups: (N,) integers; samples of one group share a fold, but for a single group of all.
        start: a ridge fit, where the fit of all samples starts. Folds start from 0: it has seen what they hold out.

    Raises:
        DataError: fewer than two samples, or features that are not finite.
    """
    targets = indicators(labels, kind, n_outputs)
    axes = decompose(features, sample_weights(targets, kind, class_weight))
    n_folds = FOLDS if len(targets) <= MANY_SAMPLES else FEW_FOLDS
    folds = fold_numbers(labels, n_folds, seed=0, groups=groups, multilabel=kind == "multilabel")
    problem = pose(axes, targets, loss_weights(targets, kind, class_weight), kind, folds)
    coefficients = _start(problem, start)
    path: list[PathPoint] = []
    best: tuple[Calibration, np.ndarray, np.ndarray, bool] | None = None
    for strength in STRENGTHS:
        coefficients, converged = minimize_loss(problem, strength, coefficients)
        scores = left_out_scores(problem, coefficients, folds)
        calibration = calibrate(scores, targets, kind, class_weight=class_weight)
        said = probabilities(calibration.logits(scores), kind)
        path.append(PathPoint(strength, validation_score(labels, said, kind, metric), log_loss(labels, said)))
        if choose(path) == len(path) - 1:
            best = calibration, said, coefficients[-1], converged
        elif len(path) - 1 - choose(path) == PATIENCE:
            break
    assert best is not None
    calibration, said, of_all, converged = best
    chosen = path[choose(path)]
    weight = axes.from_axes(of_all[:, 1:].T) / axes.centered.scale
    bias = of_all[:, 0] - axes.centered.mean @ weight
    return ProbeFit(
        weight=(calibration.slope * weight).astype(np.float32),
        bias=calibration.logits(bias).astype(np.float32),
        strength=chosen.strength,
        out_of_fold=said,
        score=chosen.score,
        log_loss=chosen.log_loss,
        path=tuple(path),
        converged=converged,
    )


@dataclass(frozen=True, slots=True)
class Problem:
    """F + 1 weighted fits of the same samples. Coefficients are (F + 1, K, 1 + r), the intercept first."""

    axes: Decomposition
    stored: np.ndarray | None  # (N, r) coordinates, where they are small enough to keep
    targets: np.ndarray  # (K, N)
    weights: np.ndarray  # (F + 1, 1 or K, N), 0 where a sample is left out of a fit; those of a fit have mean 1 / N
    kind: Kind

    def parts(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Samples with their coordinates (n, r), or with their centered features (n, d)."""
        centered = self.axes.centered
        if self.stored is not None:
            yield slice(0, len(self.stored)), self.stored
            return
        for part in chunks(*centered.shape):
            yield part, centered.rows(part) / centered.root[part, None].astype(centered.dtype)

    def logits(self, coefficients: np.ndarray) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """Samples, what `parts` gives of them, and their logits in all fits: (F + 1, K, n)."""
        flat = coefficients.reshape(-1, coefficients.shape[2])
        slopes = flat[:, 1:] if self.stored is not None else flat[:, 1:] @ self.axes.directions.T
        for part, rows in self.parts():
            logits = slopes.astype(rows.dtype) @ rows.T + flat[:, :1].astype(rows.dtype)
            yield part, rows, logits.reshape(*coefficients.shape[:2], -1)


def pose(axes: Decomposition, targets: np.ndarray, weights: np.ndarray, kind: Kind, folds: np.ndarray) -> Problem:
    """The fits that leave out one fold each, and that of all samples, which comes last."""
    taking_part = np.concatenate([folds != np.arange(folds.max() + 1)[:, None], np.ones((1, len(folds)))])  # (F + 1, N)
    shared = taking_part[:, None, :] * weights.T
    sizes = taking_part.sum(1) if kind == "multilabel" else shared.sum((1, 2))
    n, d = axes.centered.shape
    stored = None
    if n <= d or n * d <= CHUNK:
        dtype = np.float64 if n * min(n, d) <= EXACT_SIZE else np.float32
        stored = (axes.coordinates(slice(0, n)) / axes.centered.root[:, None]).astype(dtype)
    return Problem(axes, stored, targets.T, shared / sizes[:, None, None], kind)


def loss_and_gradient(problem: Problem, strength: float, coefficients: np.ndarray) -> tuple[float, np.ndarray]:
    """Sum of the penalized losses of all fits, and its gradient, (F + 1, K, 1 + r)."""
    slopes = coefficients[:, :, 1:]
    loss = strength / 2 * float(np.square(slopes).sum())
    gradient = np.concatenate([np.zeros((*slopes.shape[:2], 1)), strength * slopes], 2)
    for part, rows, logits in problem.logits(coefficients):
        losses, errors = _losses(logits, problem.targets[:, part].astype(rows.dtype), problem.kind)
        weights = problem.weights[:, :, part].astype(rows.dtype)
        loss += float(np.sum(weights * losses, dtype=np.float64))
        errors *= weights
        gradient[:, :, 0] += errors.sum(2, dtype=np.float64)
        towards = errors.reshape(-1, len(rows)) @ rows
        if problem.stored is None:
            towards = towards @ problem.axes.directions
        gradient[:, :, 1:] += towards.reshape(slopes.shape)
    return loss, gradient


def _losses(logits: np.ndarray, targets: np.ndarray, kind: Kind) -> tuple[np.ndarray, np.ndarray]:
    """Log losses (M, 1 or K, n) of logits (M, K, n), and their derivatives by the logits (M, K, n)."""
    if kind == "multilabel":
        return np.logaddexp(0, logits) - targets * logits, sigmoid(logits) - targets
    logits = logits - logits.max(1, keepdims=True)
    likely = np.exp(logits)
    total = likely.sum(1, keepdims=True)
    likely /= total
    return np.log(total) - (targets * logits).sum(1, keepdims=True), likely - targets


def minimize_loss(
    problem: Problem, strength: float, coefficients: np.ndarray, *, gradient: float = GRADIENT
) -> tuple[np.ndarray, bool]:
    """The best coefficients, searched from the given ones, and whether no slope is beyond `gradient`."""
    variances = problem.axes.values / problem.targets.shape[1]
    bend = curvature(problem, coefficients)
    scales = 1 / np.sqrt(np.concatenate([[bend], bend * variances + strength]))

    def scaled(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        loss, slope = loss_and_gradient(problem, strength, parameters.reshape(coefficients.shape) * scales)
        return loss, (slope * scales).ravel()

    options = {"maxiter": STEPS, "maxcor": MEMORY, "gtol": gradient, "ftol": 0.0}
    from scipy.optimize import minimize  # slow to import, and only this probe needs it

    found = minimize(scaled, (coefficients / scales).ravel(), jac=True, method="L-BFGS-B", options=options)
    return found.x.reshape(coefficients.shape) * scales, bool(np.abs(found.jac).max() <= gradient)


def curvature(problem: Problem, coefficients: np.ndarray) -> float:
    """Mean second derivative of the log losses by the logits, of all fits."""
    total, n_samples = 0.0, len(problem.targets.T)
    for _, _, logits in problem.logits(coefficients):
        likely = probabilities(logits, problem.kind)
        total += float((likely * (1 - likely)).mean((0, 1)).sum())
    return max(total / n_samples, LEAST_CURVATURE)


def left_out_scores(problem: Problem, coefficients: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Logits of each sample by the fit that left it out: (N, K)."""
    return np.concatenate(
        [
            logits[folds[part], :, np.arange(logits.shape[2])].astype(np.float64)
            for part, _, logits in problem.logits(coefficients)
        ]
    )


def _start(problem: Problem, start: ProbeFit | None) -> np.ndarray:
    """Zeros, or for the fit of all samples the logits of `start`."""
    n_fits, n_axes = len(problem.weights), len(problem.axes.values)
    coefficients = np.zeros((n_fits, len(problem.targets), 1 + n_axes))
    if start is not None:
        centered = problem.axes.centered
        weight = start.weight.astype(np.float64)
        coefficients[-1, :, 0] = start.bias + centered.mean @ weight
        coefficients[-1, :, 1:] = problem.axes.to_axes(weight * centered.scale).T
    return coefficients
