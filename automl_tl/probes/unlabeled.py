"""Linear heads that learn from unlabeled samples, too: by pseudo-labels, or by labels that spread along neighbors.

    pseudo-labels   a ridge and a logistic teacher name the unlabeled samples; of what both name alike, the surest of
                    each class are learnt from (Lee 2013; by class as in FlexMatch, Zhang et al., NeurIPS 2021), first
                    by a second pair of teachers, then, more of them, by the head
    propagation     labels spread over the graph of nearest neighbors (see `propagation`), and the head learns what each
                    sample was reached by, the more the plainer that is (Iscen et al., CVPR 2019): a graph cannot be
                    deployed, a head can

One label a sample only. All is judged by folds: teachers, graph and head of the fit that judges a sample know nothing
of its label. The axes in which all of them work are those of all samples, which takes no labels.

Notation: N labeled and M unlabeled samples, d features, r axes, K classes, L strengths.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from automl_tl.data.folds import fold_numbers
from automl_tl.errors import TrialError
from automl_tl.metrics.scores import Kind, log_loss, validation_score
from automl_tl.probes.calibration import calibrate, probabilities
from automl_tl.probes.decomposition import Decomposition, decompose
from automl_tl.probes.fit import PathPoint, ProbeFit, choose
from automl_tl.probes.logistic import STRENGTHS, fit_logistic, minimize_loss, pose
from automl_tl.probes.propagation import Neighborhood, find_neighbors, spread_labels
from automl_tl.probes.ridge import LAMBDAS, fit_ridge, system
from automl_tl.probes.targets import indicators, sample_weights

if TYPE_CHECKING:
    from automl_tl.model.spec import ClassWeight

Method = Literal["pseudo_labels", "propagation"]
Head = Literal["ridge", "logistic"]
Line = tuple[np.ndarray, np.ndarray]  # weight (r, K) and bias (K,)

FOLDS = 5
MOST_AXES = 256  # the widest of all samples; twice as many gave nearly the same and took twice as long
WEIGHT = 0.5  # of an unlabeled sample beside a labeled one
SHARES = (0.5, 0.8)  # of the samples that are named as one class, the surest ones: in the first and the second round
MOST_OF_A_CLASS = 2.0  # times the mean over classes


@dataclass(frozen=True, slots=True)
class UnlabeledFit:
    """A head, and how many unlabeled samples it learnt from."""

    fit: ProbeFit
    learnt_from: int


@dataclass(frozen=True, slots=True)
class Lesson:
    """What some unlabeled samples are taken for."""

    rows: np.ndarray  # (m,) indices
    classes: np.ndarray  # (m,)
    weights: np.ndarray  # (m,)


@dataclass(frozen=True, slots=True)
class Known:
    """Labeled samples along their axes, to learn from."""

    features: np.ndarray  # (N, r)
    labels: np.ndarray  # (N,)
    weights: np.ndarray  # (N,) of mean 1 over all classes
    groups: np.ndarray | None  # (N,)
    n_outputs: int
    kind: Kind
    metric: str
    class_weight: ClassWeight

    def take(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Features, labels and groups of these."""
        return self.features[rows], self.labels[rows], None if self.groups is None else self.groups[rows]


def fit_with_unlabeled(
    features: np.ndarray,
    labels: np.ndarray,
    unlabeled: np.ndarray,
    kind: Kind,
    n_outputs: int,
    *,
    method: Method,
    head: Head = "ridge",
    metric: str = "f1_macro",
    class_weight: ClassWeight = "none",
    groups: np.ndarray | None = None,
) -> UnlabeledFit:
    """The linear head of the strength that predicts left-out labeled samples best, taught by unlabeled ones as well.

    `benchmarks/unlabeled.py` measures what it gains: most where a class has 3 or 5 labeled samples and classes cluster
    in the features, nothing where it has 50. A logistic head made less of spread labels than a ridge head.

    Args:
        features: (N, d) floats.
        labels: (N,) int64 classes.
        unlabeled: (M, d) features of other samples, at least one.
        kind: `binary` or `multiclass`.
        n_outputs: K.
        method: how unlabeled samples come to teach.
        head: what learns from all of them.
        metric: decides between strengths; see `metrics.scores.f1`.
        class_weight: of the labeled samples, see `fit_ridge`.
        groups: (N,) integers; samples of one group are left out together, but for a single group of all.

    Raises:
        DataError: fewer than two samples, or features that are not finite.
        TrialError: several labels a sample.
    """
    if kind == "multilabel":
        raise TrialError(
            "unlabeled samples teach classes of which a sample has one, but here it may have several; "
            "let `unlabeled` be none"
        )
    neighborhood = find_neighbors(features, unlabeled) if method == "propagation" else None
    axes = decompose(np.concatenate([features, unlabeled]))
    along = axes.coordinates(slice(0, len(labels) + len(unlabeled)), MOST_AXES).astype(np.float32)
    targets = indicators(labels, kind, n_outputs)
    known = Known(
        features=along[: len(labels)],
        labels=labels,
        weights=sample_weights(targets, kind, class_weight),
        groups=groups,
        n_outputs=n_outputs,
        kind=kind,
        metric=metric,
        class_weight=class_weight,
    )
    others = along[len(labels) :]
    strengths = LAMBDAS if head == "ridge" else STRENGTHS
    folds = fold_numbers(labels, FOLDS, seed=0, groups=groups)
    scores = np.empty((len(strengths), len(labels), n_outputs))
    for fold in range(folds.max() + 1):
        learn, judge = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        lesson = _lesson(known, learn, others, neighborhood)
        for place, (weight, bias) in enumerate(_heads(known, learn, others, lesson, head, strengths)):
            scores[place, judge] = known.features[judge] @ weight + bias
    path: list[PathPoint] = []
    found = []
    for strength, left_out in zip(strengths, scores, strict=True):
        calibration = calibrate(left_out, targets, kind, class_weight=class_weight)
        said = probabilities(calibration.logits(left_out), kind)
        path.append(PathPoint(strength, validation_score(labels, said, kind, metric), log_loss(labels, said)))
        found.append((calibration, said))
    best = choose(path)
    calibration, said = found[best]
    every = np.arange(len(labels))
    lesson = _lesson(known, every, others, neighborhood)
    (line,) = _heads(known, every, others, lesson, head, (path[best].strength,))
    weight, bias = _of_raw(axes, line)
    return UnlabeledFit(
        fit=ProbeFit(
            weight=(calibration.slope * weight).astype(np.float32),
            bias=calibration.logits(bias).astype(np.float32),
            strength=path[best].strength,
            out_of_fold=said,
            score=path[best].score,
            log_loss=path[best].log_loss,
            path=tuple(path),
        ),
        learnt_from=len(lesson.rows),
    )


def surest(said: Sequence[np.ndarray], share: float) -> Lesson:
    """Of the samples that all teachers name alike, a share of each class: those they are surest of, and not too many.

    Args:
        said: probabilities (M, K) of each teacher.
        share: of the samples named as one class.
    """
    mean = np.mean(said, axis=0)
    named, sure = mean.argmax(1), mean.max(1)
    alike = np.logical_and.reduce([each.argmax(1) == named for each in said])
    counts = np.bincount(named, minlength=mean.shape[1])
    most = int(np.ceil(MOST_OF_A_CLASS * len(mean) / np.count_nonzero(counts)))
    rows = []
    for label in np.flatnonzero(counts):
        own = np.flatnonzero((named == label) & alike)
        own = own[np.argsort(-sure[own], kind="stable")]
        rows.append(own[: min(most, int(np.ceil(share * counts[label])))])
    chosen = np.sort(np.concatenate(rows))
    return Lesson(chosen, named[chosen], np.full(len(chosen), WEIGHT))


def reached(spread: np.ndarray) -> Lesson:
    """The samples that labels spread to, (M, K) from 0; each weighs by how far it is from even among the classes."""
    rows = np.flatnonzero(spread.sum(1) > 0)
    shares = spread[rows] / spread[rows].sum(1, keepdims=True)
    entropy = -np.sum(shares * np.log(np.maximum(shares, np.finfo(float).tiny)), axis=1)
    certainty = 1 - entropy / np.log(spread.shape[1])
    return Lesson(rows, shares.argmax(1), WEIGHT * certainty.clip(min=1e-6))


def _lesson(known: Known, learn: np.ndarray, unlabeled: np.ndarray, neighborhood: Neighborhood | None) -> Lesson:
    """What unlabeled samples (M, r) are taken for by these labeled ones alone."""
    if neighborhood is not None:
        targets = indicators(known.labels[learn], known.kind, known.n_outputs)
        return reached(spread_labels(neighborhood.graph(learn), targets))
    features, labels, groups = known.take(learn)
    task = features, labels, known.kind, known.n_outputs
    ridge = fit_ridge(*task, metric=known.metric, class_weight=known.class_weight, groups=groups)
    logistic = fit_logistic(*task, metric=known.metric, class_weight=known.class_weight, groups=groups, start=ridge)
    first = surest(
        [probabilities(unlabeled @ fit.weight + fit.bias, known.kind) for fit in (ridge, logistic)], SHARES[0]
    )
    said = []
    teachers: tuple[tuple[Head, ProbeFit], ...] = (("ridge", ridge), ("logistic", logistic))
    for head, fit in teachers:
        ((weight, bias),) = _heads(known, learn, unlabeled, first, head, (fit.strength,))
        seen = np.concatenate([features, unlabeled[first.rows]]) @ weight + bias
        calibration = calibrate(seen, np.eye(known.n_outputs)[np.concatenate([labels, first.classes])], known.kind)
        said.append(probabilities(calibration.logits(unlabeled @ weight + bias), known.kind))
    return surest(said, SHARES[1])


def _heads(
    known: Known, learn: np.ndarray, unlabeled: np.ndarray, lesson: Lesson, head: Head, strengths: Sequence[float]
) -> Iterator[Line]:
    """A head of each strength that learns from these labeled samples and a lesson; scores, not yet calibrated."""
    features = np.concatenate([known.features[learn], unlabeled[lesson.rows]])
    targets = np.eye(known.n_outputs)[np.concatenate([known.labels[learn], lesson.classes])]
    weights = np.concatenate([known.weights[learn], lesson.weights])
    axes = decompose(features, weights)
    if head == "ridge":
        problem = system(axes, targets)
        for strength in strengths:
            yield problem.solution(strength)
        return
    in_no_fold = np.full(len(targets), -1)
    problem_of_all = pose(axes, targets, weights[:, None], known.kind, in_no_fold)
    coefficients = np.zeros((1, known.n_outputs, 1 + len(axes.values)))
    for strength in strengths:
        coefficients, _ = minimize_loss(problem_of_all, strength, coefficients)
        weight = axes.from_axes(coefficients[0, :, 1:].T) / axes.centered.scale
        yield weight, coefficients[0, :, 0] - axes.centered.mean @ weight


def _of_raw(axes: Decomposition, line: Line) -> Line:
    """A map of the widest axes as one of raw features: weight (d, K), bias (K,)."""
    weight, bias = line
    narrow = np.zeros((len(axes.values) - len(weight), weight.shape[1]))
    raw = axes.from_axes(np.concatenate([narrow, weight])) / axes.centered.scale
    return raw, bias - axes.centered.mean @ raw
