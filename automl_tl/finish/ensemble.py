"""Greedy ensemble selection with replacement on out-of-fold probabilities (Caruana et al., ICML 2004), and its gain.

An ensemble is a weight for each model; its probabilities are the weighted mean of theirs. Notation: M models,
N samples, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from automl_tl.finish.adjust import calibrated, fold_rows, log_losses
from automl_tl.metrics.intervals import metric_draws
from automl_tl.metrics.scores import Counts, Kind, counts_of_indicators, decide, f1, validation_score

FOLDS = 5
DRAWS = 500
PATIENCE = 10  # additions in a row that improve nothing, after which a bag ends
SAME = 1e-12  # scores nearer than this are equal
SLIGHT = 0.01  # of a log loss: less than that is no difference


@dataclass(frozen=True, kw_only=True)
class Gain:
    """What one mixture of models scores above another, by samples that chose neither.

    Log loss is that at each one's own best temperature: label smoothing lets a network say less than it knows.
    """

    gain: float
    standard_error: float
    log_loss_gain: float  # above 0: the first one's log loss is the lower one
    log_loss_standard_error: float

    @property
    def pays(self) -> bool:
        """Better in the metric or in log loss, and in the other one worse by no more than a standard error.

        A mean of models that err differently is better more often than not (Caruana et al., ICML 2004), so few samples
        need not prove it; they have to show nothing against it.
        """
        better = self.gain > 0 or self.log_loss_gain > 0
        return better and self.gain >= -self.standard_error and self.log_loss_gain >= -self.log_loss_standard_error

    def above(self, standard_errors: float) -> bool:
        """Whether both measures are better by more than so many standard errors."""
        enough = self.gain > standard_errors * self.standard_error
        return enough and self.log_loss_gain > standard_errors * self.log_loss_standard_error

    def below(self, standard_errors: float) -> bool:
        """Whether both measures are worse by more than so many standard errors."""
        short = self.gain < -standard_errors * self.standard_error
        return short and self.log_loss_gain < -standard_errors * self.log_loss_standard_error


def select_ensemble(
    labels: np.ndarray,
    probabilities: np.ndarray,
    kind: Kind,
    *,
    metric: str = "f1_macro",
    rounds: int = 50,
    bags: int = 10,
    share: float = 0.5,
    most: int | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Weights (M,) of sum 1; few of them are above 0.

    Each bag starts from its best single model and adds, again and again, the model that raises the metric of the mean
    most; of equal ones the lower log loss decides. It keeps its best moment. Weights are the mean over bags. Then the
    lightest members leave for as long as the metric is no lower and log loss within one standard error without them.

    Args:
        labels: (N,) classes, or (N, K) indicators.
        probabilities: (M, N, K), each row from a fit without that sample.
        kind: one label a sample or several.
        metric: one of `metrics.scores.f1`.
        rounds: most additions in a bag.
        bags: how many; each sees its own random share of the models.
        share: of the models that a bag may use, at least two.
        most: members that the ensemble may have at most.
        seed: of the bags.
    """
    n_models = len(probabilities)
    scorer = _Scorer.of(labels, probabilities, kind, metric)
    size = min(n_models, max(2, int(np.ceil(share * n_models))))
    generator = np.random.default_rng(seed)
    weights = np.zeros(n_models)
    for _ in range(1 if size == n_models else bags):
        chosen = np.sort(generator.permutation(n_models)[:size])
        counts = _select(scorer, chosen, rounds)
        weights += counts / counts.sum()
    return _prune(scorer, weights / weights.sum(), most)


def ensemble_gain(
    labels: np.ndarray,
    probabilities: np.ndarray,
    kind: Kind,
    *,
    metric: str = "f1_macro",
    rounds: int = 50,
    bags: int = 10,
    share: float = 0.5,
    most: int | None = None,
    seed: int = 0,
) -> Gain:
    """The gain over the best single model, cross-fitted over the samples; arguments as in `select_ensemble`.

    Both are chosen on four fifths of the samples and asked for the last fifth; all fifths are scored together.
    """
    options = {"metric": metric, "rounds": rounds, "bags": bags, "share": share, "most": most, "seed": seed}

    def together(rest: np.ndarray) -> np.ndarray:
        return select_ensemble(labels[rest], probabilities[:, rest], kind, **options)  # type: ignore[arg-type]

    def single(rest: np.ndarray) -> np.ndarray:
        scorer = _Scorer.of(labels[rest], probabilities[:, rest], kind, metric)
        best = scorer.best_single(np.arange(len(probabilities)))
        return np.asarray(np.eye(len(probabilities))[best])

    return choosing_gain(labels, probabilities, together, single, kind, metric=metric, seed=seed)


Choosing = Callable[[np.ndarray], np.ndarray]
"""Weights (M,), from the indices of the samples that may be looked at."""


def choosing_gain(
    labels: np.ndarray,
    probabilities: np.ndarray,
    choose: Choosing,
    beside: Choosing,
    kind: Kind,
    *,
    metric: str = "f1_macro",
    seed: int = 0,
) -> Gain:
    """What one way to weigh the models (M, N, K) scores above another, cross-fitted as in `ensemble_gain`."""
    one, other = np.empty_like(probabilities[0]), np.empty_like(probabilities[0])
    for fold in fold_rows(labels, FOLDS, seed):
        rest = np.setdiff1d(np.arange(len(labels)), fold)
        for mixture, weights in ((one, choose(rest)), (other, beside(rest))):
            mixture[fold] = np.tensordot(weights, probabilities[:, fold], axes=1)
    return mixture_gain(labels, one, other, kind, metric=metric, seed=seed)


def mixture_gain(
    labels: np.ndarray, one: np.ndarray, other: np.ndarray, kind: Kind, *, metric: str = "f1_macro", seed: int = 0
) -> Gain:
    """What probabilities (N, K) score above others of the same samples, which nothing of them was chosen by."""
    said = [decide(each, kind) for each in (one, other)]
    draws = metric_draws(labels, said, kind, one.shape[1], metric=metric, draws=DRAWS, seed=seed)
    scores = [validation_score(labels, each, kind, metric) for each in (one, other)]
    losses = [log_losses(labels, calibrated(labels, each, kind)) for each in (one, other)]
    less = losses[1] - losses[0]
    return Gain(
        gain=scores[0] - scores[1],
        standard_error=float((draws[:, 0] - draws[:, 1]).std(ddof=1)),
        log_loss_gain=float(less.mean()),
        log_loss_standard_error=float(less.std(ddof=1) / np.sqrt(len(less))),
    )


@dataclass(frozen=True, slots=True)
class _Scorer:
    """Scores many mixtures of the same models at once."""

    labels: np.ndarray
    probabilities: np.ndarray  # (M, N, K) float32
    likely: np.ndarray  # (M, N) probability of the true class, or (M, N, K) of each label as it is
    kind: Kind
    metric: str

    @classmethod
    def of(cls, labels: np.ndarray, probabilities: np.ndarray, kind: Kind, metric: str) -> _Scorer:
        small = probabilities.astype(np.float32)
        if kind == "multilabel":
            likely = np.where(labels.astype(bool), small, 1 - small)
        else:
            likely = small[:, np.arange(len(labels)), labels]
        return cls(labels, small, likely, kind, metric)

    def scores(self, mixtures: np.ndarray) -> np.ndarray:
        """The metric of each of (C, N, K): (C,)."""
        n_classes = mixtures.shape[2]
        if self.kind == "multilabel":
            each = [counts_of_indicators(self.labels, decide(mixture, self.kind)) for mixture in mixtures]
            return f1(Counts(*(np.stack([getattr(c, name) for c in each]) for name in ("tp", "fp", "fn"))), self.metric)
        said = mixtures.argmax(2)
        offset = np.arange(len(mixtures))[:, None] * n_classes
        flat, size = said + offset, len(mixtures) * n_classes
        all_said = np.bincount(flat.ravel(), minlength=size).reshape(-1, n_classes)
        right = np.bincount(flat[said == self.labels], minlength=size).reshape(-1, n_classes)
        held = np.bincount(self.labels, minlength=n_classes)
        return np.asarray(f1(Counts(right, all_said - right, held - right), self.metric))

    def losses(self, likely: np.ndarray) -> np.ndarray:
        """Log loss of each row (C, ...) of how likely the truth is found: of mixtures, or of samples."""
        return np.asarray(-np.log(np.maximum(likely, 1e-7)).reshape(len(likely), -1).mean(1))

    def best_single(self, among: np.ndarray) -> int:
        """The model of the highest metric, of equal ones that of the lower log loss."""
        return int(among[_best(self.scores(self.probabilities[among]), self.losses(self.likely[among]))])


def _best(scores: np.ndarray, losses: np.ndarray) -> int:
    tied = np.flatnonzero(scores >= scores.max() - SAME)
    return int(tied[losses[tied].argmin()])


def _select(scorer: _Scorer, chosen: np.ndarray, rounds: int) -> np.ndarray:
    """How often each model (M,) is in the best moment of one bag."""
    pool, likely = scorer.probabilities[chosen], scorer.likely[chosen]
    scores, losses = scorer.scores(pool), scorer.losses(likely)
    added = _best(scores, losses)
    counts = np.zeros(len(scorer.probabilities))
    counts[chosen[added]] = 1
    total, truth = pool[added].copy(), likely[added].copy()
    best, kept, since = (float(scores[added]), -float(losses[added])), counts.copy(), 0
    for size in range(2, rounds + 2):
        scores = scorer.scores((total + pool) / size if scorer.kind == "multilabel" else total + pool)
        tied = np.flatnonzero(scores >= scores.max() - SAME)
        losses = scorer.losses((truth + likely[tied]) / size)
        added = int(tied[losses.argmin()])
        counts[chosen[added]] += 1
        total += pool[added]
        truth += likely[added]
        now = (float(scores[added]), -float(losses.min()))
        if now[0] > best[0] + SAME or (now[0] >= best[0] - SAME and now[1] > best[1]):
            best, kept, since = now, counts.copy(), 0
        else:
            since += 1
            if since == PATIENCE:
                break
    return kept


def _prune(scorer: _Scorer, weights: np.ndarray, most: int | None) -> np.ndarray:
    """Without the lightest members: as many as leave the metric no lower, and log loss within one standard error."""

    def measure(some: np.ndarray) -> tuple[float, np.ndarray]:
        members = np.flatnonzero(some)
        parts = (scorer.probabilities[members], scorer.likely[members])
        mixture, likely = (np.tensordot(some[members].astype(np.float32), part, axes=1)[None] for part in parts)
        return float(scorer.scores(mixture)[0]), scorer.losses(likely[0])

    score, losses = measure(weights)
    while np.count_nonzero(weights) > 1:
        members = np.flatnonzero(weights)
        fewer = weights.copy()
        fewer[members[weights[members].argmin()]] = 0
        fewer /= fewer.sum()
        new_score, new_losses = measure(fewer)
        worse = new_losses - losses
        slight = max(worse.std() / np.sqrt(len(worse)), SLIGHT * losses.mean())
        equal = new_score >= score - SAME and worse.mean() <= slight
        if not equal and (most is None or len(members) <= most):
            break
        weights = fewer
    return weights
