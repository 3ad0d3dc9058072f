"""Which of the confirmed models make up the final one, and by which samples that is decided.

Of one kind, heads on frozen features or what was trained, several are taken where that pays by samples that did not
choose them. Of both kinds half and half is taken, unless what was trained is clearly worse than the heads. It has that
advantage because the samples see too little: what was trained is often judged by a fifth of them alone. What that is
worth beside rules that go by the samples is measured by `benchmarks/tuned_beside_floor.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from automl_tl.config import FinishModel
from automl_tl.finish.adjust import fit_adjustment
from automl_tl.finish.choice import Candidate, Choice, choose
from automl_tl.finish.confirm import Confirmed, as_searched, covered
from automl_tl.finish.ensemble import Gain, choosing_gain, ensemble_gain, mixture_gain, select_ensemble
from automl_tl.search.search import Search

HEADS = 5  # in the final model at most
TRAINED = 3
WORSE = 1.5  # standard errors by which what was trained has to be below the heads, to be left out; 1 and 2 do alike
SURELY = 2.0  # standard errors


@dataclass(frozen=True, kw_only=True)
class Members:
    """What the final model is to be made of."""

    confirmed: Sequence[Confirmed]  # M that were compared
    rows: np.ndarray  # of the samples that judged them
    choice: Choice  # the best one alone
    weights: np.ndarray  # (M,) of sum 1
    ensemble_gain: Gain | None = None  # of the samples' choice of several, over the best alone or over half and half
    trained_gain: Gain | None = None  # of what was trained over the heads

    @property
    def said(self) -> np.ndarray:
        """What each of them said of the samples that judged, (M, N, K)."""
        return np.stack([each.probabilities[self.rows] for each in self.confirmed])


def choose_members(search: Search, model: FinishModel, confirmed: Sequence[Confirmed]) -> Members:
    """Decide; `model` is "single" for one alone, "ensemble" for several wherever there are several."""
    heads = [each for each in confirmed if each.finalist.floor]
    trained = [each for each in confirmed if not each.finalist.floor]
    if not heads or not trained:
        return _of_one_kind(search, model, confirmed)
    # Beside what was trained they may have been judged by fewer samples than in the search.
    solved = _of_one_kind(search, model, [as_searched(search, each.finalist) for each in heads])
    rows = covered(confirmed)
    if model != "single":
        return _of_both_kinds(search, model, solved, heads, trained, rows)
    choice = _best_alone(search, confirmed, rows)
    if confirmed[choice.index].finalist.floor:
        return solved
    return Members(confirmed=confirmed, rows=rows, choice=choice, weights=np.eye(len(confirmed))[choice.index])


def _of_one_kind(
    search: Search, model: FinishModel, confirmed: Sequence[Confirmed], rows: np.ndarray | None = None
) -> Members:
    """The best one alone, or several where they pay; judged by `rows`, or by all samples that all spoke of."""
    rows = covered(confirmed) if rows is None else rows
    choice = _best_alone(search, confirmed, rows)
    alone = Members(confirmed=confirmed, rows=rows, choice=choice, weights=np.eye(len(confirmed))[choice.index])
    if model == "single" or len(confirmed) == 1:
        return alone
    kind, metric, seed = search.prepared.task.kind, search.metric, search.seed
    most = HEADS if confirmed[0].finalist.floor else TRAINED
    labels, said = _labels(search, rows), alone.said
    weights = select_ensemble(labels, said, kind, metric=metric, most=most, seed=seed)
    gain = ensemble_gain(labels, said, kind, metric=metric, most=most, seed=seed)
    taken = np.count_nonzero(weights) > 1 and (model == "ensemble" or gain.pays)
    return replace(alone, weights=weights if taken else alone.weights, ensemble_gain=gain)


def _of_both_kinds(
    search: Search,
    model: FinishModel,
    solved: Members,
    heads: Sequence[Confirmed],
    trained: Sequence[Confirmed],
    rows: np.ndarray,
) -> Members:
    """Heads and what was trained half and half, or `solved`, the heads alone, where what was trained is clearly worse.

    The samples' own choice among all of them is taken where it is better still, surely and in both measures.
    """
    confirmed, labels = [*heads, *trained], _labels(search, rows)
    kind, metric, seed = search.prepared.task.kind, search.metric, search.seed
    said = np.stack([each.probabilities[rows] for each in confirmed])
    learned = _of_one_kind(search, model, trained, rows)
    of_heads = np.append(solved.weights, np.zeros(len(trained)))
    of_trained = np.append(np.zeros(len(heads)), learned.weights)
    halves = (of_heads + of_trained) / 2
    by_heads, by_trained, by_both = (np.tensordot(weights, said, 1) for weights in (of_heads, of_trained, halves))
    gain = mixture_gain(labels, by_trained, by_heads, kind, metric=metric, seed=seed)
    both = mixture_gain(labels, by_both, by_heads, kind, metric=metric, seed=seed)
    # An adjustment gains less where fewer samples tune it.
    adjusting = _adjusting(search, solved.rows, np.tensordot(solved.weights, solved.said, 1))
    given_up = adjusting - _adjusting(search, rows, by_both)
    if gain.below(WORSE) or both.gain - given_up < -SURELY * both.standard_error:
        return replace(solved, trained_gain=gain)

    def freely(some: np.ndarray) -> np.ndarray:
        return select_ensemble(labels[some], said[:, some], kind, metric=metric, most=HEADS, seed=seed)

    free = choosing_gain(labels, said, freely, lambda some: halves, kind, metric=metric, seed=seed)
    return Members(
        confirmed=confirmed,
        rows=rows,
        choice=_best_alone(search, confirmed, rows),
        weights=freely(np.arange(len(rows))) if free.above(SURELY) else halves,
        ensemble_gain=free,
        trained_gain=gain,
    )


def _best_alone(search: Search, confirmed: Sequence[Confirmed], rows: np.ndarray) -> Choice:
    candidates = [
        Candidate(
            name=f"trial {each.finalist.number}",
            probabilities=each.probabilities[rows],
            cost=float(each.finalist.trial.user_attrs["total_parameters"]),
            floor=each.finalist.floor,
        )
        for each in confirmed
    ]
    return choose(_labels(search, rows), candidates, search.prepared.task.kind, metric=search.metric, seed=search.seed)


def _adjusting(search: Search, rows: np.ndarray, said: np.ndarray) -> float:
    """What probabilities of these samples gain by the adjustment that so many samples can tune."""
    kind = search.prepared.task.kind
    return fit_adjustment(_labels(search, rows), said, kind, metric=search.metric, seed=search.seed)[1]


def _labels(search: Search, rows: np.ndarray) -> np.ndarray:
    return np.asarray(search.prepared.development().labels[rows])
