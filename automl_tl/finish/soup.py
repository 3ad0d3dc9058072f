"""One model out of several trained ones, or out of one and its beginning, by averaging weights: which fit, which pays.

Fine-tunings that begin at the same point, the transferred weights with the head of a linear probe, end in one valley of
the loss, and so does what lies between them. Two kinds of averages are tried:

- part of the way  (1 - share) * beginning + share * trained   "WiSE-FT": Wortsman et al., CVPR 2022
- soup             the mean of several trained models          "Model soups": Wortsman et al., ICML 2022

Whichever it is, a prediction costs what one of the models costs. The averaging itself is in `blending`.
Notation: M models, N samples, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from automl_tl.finish.adjust import fold_rows, log_losses
from automl_tl.finish.ensemble import Gain, mixture_gain
from automl_tl.metrics.scores import Kind, validation_score
from automl_tl.model.plan import cut, tap
from automl_tl.model.spec import TrialSpec

SHARES = (0.3, 0.5, 0.7)  # of the way from the beginning to what was trained
MOST = 4  # models in a soup; all soups of so many are tried
FOLDS = 5
DRAWS = 500
SAME = 1e-12  # scores nearer than this are equal


@dataclass(frozen=True, slots=True)
class Blend:
    """An average of weights."""

    ingredients: tuple[int, ...]  # numbers of the trained models, which count equally
    share: float = 1.0  # of what was trained; the rest is where it began

    def __str__(self) -> str:
        whose = f"trial{'s' * (len(self.ingredients) > 1)} {', '.join(map(str, self.ingredients))}"
        return whose if self.share == 1 else f"{whose}, {self.share:g} of the way from the beginning"


def kinds_of(specs: Mapping[int, TrialSpec]) -> list[tuple[int, ...]]:
    """The numbers of those that can be averaged, those that fit together in one tuple; in the order they are given.

    Such a training began at the transferred weights and a probe's solution, and re-initialized nothing. Those fit
    together whose backbone, cut, tap, and what the head reads are the same.
    """
    found: dict[tuple[Any, ...], list[int]] = {}
    for number, spec in specs.items():
        began_alike = spec.fit == "descent" and spec.init_head == "probe" and spec.weights == "transferred"
        if began_alike and all(plan.action != "reinit" for plan in spec.plan):
            key = (spec.backbone, cut(spec.plan), tap(spec.plan), spec.head, spec.pooling, spec.joined)
            found.setdefault(key, []).append(number)
    return [tuple(numbers) for numbers in found.values()]


def blends_of(numbers: Sequence[int]) -> list[Blend]:
    """All averages of models that fit together: each part of the way, and every soup of the first `MOST`."""
    ways = [Blend((number,), share) for number in numbers for share in SHARES]
    sizes = range(2, min(len(numbers), MOST) + 1)
    return ways + [Blend(some) for size in sizes for some in combinations(numbers[:MOST], size)]


def greedy_soup(
    kinds: Sequence[Sequence[int]], said: Mapping[Blend, np.ndarray], labels: np.ndarray, kind: Kind, metric: str
) -> list[Blend]:
    """The soup of each kind: from the best model down, one is added if the metric of the soup is no lower with it.

    `said`: probabilities (N, K) of every average and every model that it is made of, which is `Blend((number,))`.
    Kinds whose best model is better alone have no soup.
    """

    def score(blend: Blend) -> tuple[float, float]:
        return _score(labels, said[blend], kind, metric)

    soups = []
    for numbers in kinds:
        known = [number for number in numbers[:MOST] if Blend((number,)) in said]
        ranked = sorted(known, key=lambda number: score(Blend((number,))), reverse=True)
        soup, best = ranked[:1], score(Blend((ranked[0],)))[0] if ranked else 0.0
        for number in ranked[1:]:
            wider = Blend(tuple(each for each in numbers if each in (*soup, number)))
            if wider in said and (now := score(wider)[0]) >= best - SAME:
                soup, best = list(wider.ingredients), now
        if len(soup) > 1:
            soups.append(Blend(tuple(each for each in numbers if each in soup)))
    return soups


def choose_blend(
    kinds: Sequence[Sequence[int]],
    said: Mapping[Blend, np.ndarray],
    labels: np.ndarray,
    kind: Kind,
    *,
    metric: str = "f1_macro",
) -> Blend | None:
    """The best of the greedy soups and of what lies part of the way, by the metric and then log loss; None: no such.

    Arguments as in `greedy_soup`.
    """
    ways = [blend for blend in said if blend.share < 1]
    found = [*ways, *greedy_soup(kinds, said, labels, kind, metric)]
    return max(found, key=lambda blend: _score(labels, said[blend], kind, metric), default=None)


def blend_gain(
    kinds: Sequence[Sequence[int]],
    said: Mapping[Blend, np.ndarray],
    labels: np.ndarray,
    kind: Kind,
    *,
    metric: str = "f1_macro",
    seed: int = 0,
) -> Gain:
    """What the chosen average scores above the best single model, cross-fitted over the samples.

    Both are chosen on four fifths of the samples and asked for the last fifth; all fifths are scored together.
    Arguments as in `greedy_soup`, of which at least one model is an average; `seed` is of the folds and the bootstrap.
    """
    singles = [blend for blend in said if len(blend.ingredients) == 1 and blend.share == 1]
    averaged, single = (np.empty_like(said[singles[0]]) for _ in range(2))
    for fold in fold_rows(labels, FOLDS, seed):
        rest = np.setdiff1d(np.arange(len(labels)), fold)
        seen = {blend: probabilities[rest] for blend, probabilities in said.items()}
        best = max(singles, key=lambda blend: _score(labels[rest], seen[blend], kind, metric))
        chosen = choose_blend(kinds, seen, labels[rest], kind, metric=metric) or best
        averaged[fold], single[fold] = said[chosen][fold], said[best][fold]
    return mixture_gain(labels, averaged, single, kind, metric=metric, seed=seed)


def _score(labels: np.ndarray, said: np.ndarray, kind: Kind, metric: str) -> tuple[float, float]:
    """The metric, and what decides between equals."""
    return validation_score(labels, said, kind, metric), -float(log_losses(labels, said).mean())
