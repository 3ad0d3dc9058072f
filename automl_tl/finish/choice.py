"""Which candidate is deployed, from scores of the same left-out samples: floor rule, cheapest of equals, racing.

The rules (M candidates, N samples, paired standard errors by the stratified bootstrap):

- A candidate is as good as the best if it is within one standard error of it in the metric and in log loss. The
  cheapest of those is taken.
- A candidate that is no floor replaces the best floor only if it scores higher, and by more than one standard error in
  the metric or in log loss.

Log loss is there because F1 of a few hundred samples sees so little: by F1 alone, gains of 0.02 at 200 samples are
mostly within one standard error and thrown away. Each candidate's log loss is taken at its own best temperature.
Scores are not shrunk towards a prior mean: candidates measured on the same samples keep their order under it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from automl_tl.finish.adjust import calibrated, log_losses
from automl_tl.metrics.intervals import metric_draws
from automl_tl.metrics.scores import Kind, decide, validation_score

DRAWS = 500  # of a standard error, which then is right within 3 %
RACE_LEVEL = 0.1  # four folds of four won are 0.0625, three of three 0.125
FEWEST_FOLDS = 3
SLIGHT = 0.01  # of a log loss: less than that is no difference, however sure


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A trial, or an ensemble of some, and its probabilities of samples left out of its own fit."""

    name: str
    probabilities: np.ndarray  # (N, K)
    cost: float  # larger is dearer: seconds a prediction, or parameters
    floor: bool = False  # a closed-form probe on frozen features


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The chosen candidate beside the one it was chosen over; differences are chosen - other."""

    index: int
    other: int  # the best by the metric; or for a floor rule, the best floor
    difference: float  # of the metric
    standard_error: float
    log_loss_difference: float  # below 0: the chosen is the better one
    log_loss_standard_error: float
    reason: str


def cheapest_within_one_se(
    labels: np.ndarray,
    candidates: Sequence[Candidate],
    kind: Kind,
    *,
    metric: str = "f1_macro",
    seed: int = 0,
) -> Choice:
    """The cheapest candidate that is within one standard error of the best, in the metric and in log loss.

    Args:
        labels: (N,) classes, or (N, K) indicators.
        candidates: at least one, with probabilities of the same N samples.
        kind: one label a sample or several.
        metric: one of `metrics.scores.f1`.
        seed: of the bootstrap.
    """
    measured = _measure(labels, candidates, kind, metric, seed)
    return _cheapest(measured, candidates, range(len(candidates)))


def choose(
    labels: np.ndarray,
    candidates: Sequence[Candidate],
    kind: Kind,
    *,
    metric: str = "f1_macro",
    seed: int = 0,
) -> Choice:
    """The best floor, or the cheapest of the others that are as good as the best of them, where that beats the floor.

    Arguments as in `cheapest_within_one_se`. Without a floor, or with nothing else, that rule alone decides.
    """
    measured = _measure(labels, candidates, kind, metric, seed)
    floors = [index for index, candidate in enumerate(candidates) if candidate.floor]
    others = [index for index, candidate in enumerate(candidates) if not candidate.floor]
    if not floors or not others:
        return _cheapest(measured, candidates, floors or others)
    floor, rival = measured.best(floors), measured.best(others)
    gain, error = measured.difference(rival, floor)
    less, error_of_less = measured.log_loss_difference(rival, floor)
    if gain > 0 and (gain > error or -less > error_of_less):
        above = [index for index in others if measured.scores[index] > measured.scores[floor]]
        cheapest = _cheapest(measured, candidates, above)
        by = "the metric" if gain > error else "log loss"
        why = f"{candidates[rival].name} is above the floor by more than one SE of {by}; {cheapest.reason}"
        return measured.choice(cheapest.index, floor, why)
    return measured.choice(floor, rival, "no candidate is above the floor by more than one SE")


def race(scores: Sequence[Sequence[float]], *, level: float = RACE_LEVEL) -> tuple[int, ...]:
    """Indices of the candidates that stay: those not worse than the leader by a one-sided Wilcoxon signed-rank test.

    The leader has the highest mean on the folds that all have. Pairs are of the folds that both have; the test is
    exact, with ties. Nobody is dropped on fewer than three folds; at the default level it takes four of four.

    Args:
        scores: of each candidate on each fold so far, in the same order of folds.
        level: largest p-value that drops.
    """
    if not scores:
        return ()
    common = min(len(each) for each in scores)
    leader = int(np.argmax([sum(each[:common]) for each in scores]))
    stay = []
    for index, each in enumerate(scores):
        paired = min(len(each), len(scores[leader]))
        ahead = np.array(scores[leader][:paired]) - np.array(each[:paired])
        if index == leader or paired < FEWEST_FOLDS or signed_rank(ahead) > level:
            stay.append(index)
    return tuple(stay)


def signed_rank(differences: np.ndarray) -> float:
    """P-value of Wilcoxon's signed-rank test that differences are above 0: exact, zeros left out, ties share ranks."""
    from scipy.stats import rankdata

    kept = differences[differences != 0]
    if len(kept) == 0:
        return 1.0
    twice = (2 * rankdata(np.abs(kept))).astype(np.int64)  # whole numbers, also of shared ranks
    ways = np.zeros(twice.sum() + 1)
    ways[0] = 1.0
    for rank in twice:  # each sign is as likely as the other
        ways[rank:] += ways[: len(ways) - rank].copy()
    return float(ways[twice[kept > 0].sum() :].sum() / 2.0 ** len(kept))


@dataclass(frozen=True, slots=True)
class _Measured:
    """Of each of M candidates: the metric, its draws, and the log loss of each sample."""

    scores: np.ndarray  # (M,)
    draws: np.ndarray  # (B, M)
    losses: np.ndarray  # (M, N)

    def best(self, among: Sequence[int]) -> int:
        """The highest metric; of equal ones the lower log loss."""
        return max(among, key=lambda index: (self.scores[index], -self.losses[index].mean()))

    def difference(self, one: int, other: int) -> tuple[float, float]:
        spread = (self.draws[:, one] - self.draws[:, other]).std(ddof=1)
        return float(self.scores[one] - self.scores[other]), float(spread)

    def log_loss_difference(self, one: int, other: int) -> tuple[float, float]:
        apart = self.losses[one] - self.losses[other]
        return float(apart.mean()), float(apart.std(ddof=1) / np.sqrt(len(apart))) if len(apart) > 1 else np.inf

    def choice(self, index: int, other: int, reason: str) -> Choice:
        difference, error = self.difference(index, other)
        loss, loss_error = self.log_loss_difference(index, other)
        return Choice(
            index=index,
            other=other,
            difference=difference,
            standard_error=error,
            log_loss_difference=loss,
            log_loss_standard_error=loss_error,
            reason=reason,
        )


def _measure(labels: np.ndarray, candidates: Sequence[Candidate], kind: Kind, metric: str, seed: int) -> _Measured:
    said = [decide(candidate.probabilities, kind) for candidate in candidates]
    n_classes = candidates[0].probabilities.shape[1]
    losses = [log_losses(labels, calibrated(labels, candidate.probabilities, kind)) for candidate in candidates]
    return _Measured(
        scores=np.array([validation_score(labels, each.probabilities, kind, metric) for each in candidates]),
        draws=metric_draws(labels, said, kind, n_classes, metric=metric, draws=DRAWS, seed=seed),
        losses=np.stack(losses),
    )


def _cheapest(measured: _Measured, candidates: Sequence[Candidate], among: Sequence[int]) -> Choice:
    best = measured.best(among)
    equals = [index for index in among if index == best or _as_good(measured, index, best)]
    chosen = min(equals, key=lambda index: (candidates[index].cost, -measured.scores[index]))
    if chosen == best:
        return measured.choice(best, best, "the best, and none as good is cheaper")
    return measured.choice(chosen, best, f"the cheapest within one SE of {candidates[best].name}")


def _as_good(measured: _Measured, index: int, best: int) -> bool:
    difference, error = measured.difference(index, best)
    loss, loss_error = measured.log_loss_difference(index, best)
    return -difference <= error and loss <= max(loss_error, SLIGHT * float(measured.losses[best].mean()))
