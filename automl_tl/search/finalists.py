"""Who is looked at again at the end of a search, on which folds, and what there is time for.

The best of many scores is good by chance too; so the best few are trained anew, all on the same folds. Probes, which
take next to no time, always take part: they are the floor below which no result may end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import optuna
from optuna.trial import FrozenTrial

from automl_tl.config import FinishModel
from automl_tl.model.spec import TrialSpec, spec_from_json
from automl_tl.search.configurations import configurations, training_seconds
from automl_tl.search.order import judged_by_left_out

FOLDS = 5  # that the development samples are divided into; each training leaves one out
PROBES = 4  # finalists that are solved for, at most
SPARED = 0.35  # of the time that a training took: what it takes to go on with all samples, see `further_seconds`
LONGER = 1.3  # times as long as in the search, on all samples instead of four fifths of them
FURTHER = 0.25  # of the epochs that the search trained, at most, more of them on all samples
MOST = 6  # epochs more, at most, where a quarter is fewer
ENOUGH = 3  # epochs more that the search leaves time for, if nothing is trained on folds


@dataclass(frozen=True, slots=True)
class Finalist:
    """A configuration that is looked at again."""

    trial: FrozenTrial  # its best one
    spec: TrialSpec
    seconds: float  # that one training takes

    @property
    def number(self) -> int:
        """Its trial's."""
        return self.trial.number

    @property
    def epochs(self) -> int:
        """That the search trained it for."""
        return int(self.trial.user_attrs["epochs"])

    @property
    def most_further(self) -> int:
        """How many epochs more it is given on all samples, where there is time."""
        return max(MOST, math.ceil(FURTHER * self.epochs))

    def further_seconds(self, epochs: int) -> float:
        """What it takes to go on for so many epochs, with all samples."""
        return LONGER * self.seconds * epochs / self.epochs

    @property
    def floor(self) -> bool:
        """Whether its head was solved for on frozen features, each sample judged by the fit that left it out."""
        return judged_by_left_out(self.spec)


@dataclass(frozen=True, slots=True)
class Plan:
    """Finalists and how many of the folds each is trained on; without folds the search's holdouts decide."""

    finalists: tuple[Finalist, ...]
    folds: int


def finalists_of(study: optuna.Study, ranked: Sequence[FrozenTrial], most: int) -> list[Finalist]:
    """Of a study's best trials of each configuration, best first: those that are looked at again."""
    spent = {
        trial.number: sum(training_seconds(earlier) for earlier in each.done[: place + 1])
        for each in configurations(study)
        for place, trial in enumerate(each.done)
    }
    return choose_finalists(ranked, [spent[trial.number] for trial in ranked], most)


def choose_finalists(ranked: Sequence[FrozenTrial], seconds: Sequence[float], most: int) -> list[Finalist]:
    """The best heads that were solved for and the best `most` of all others; no two of the same spec.

    Parameters
    ----------
    ranked
        The best trial of each configuration, best first.
    seconds
        What it took together with those before it.
    """
    found: list[Finalist] = []
    for trial, spent in zip(ranked, seconds, strict=True):
        written = trial.user_attrs["spec"]
        solved = written["fit"] != "descent"  # as `Finalist.floor`; there may be thousands that need not be read
        if sum(each.floor == solved for each in found) >= (PROBES if solved else most):
            continue
        finalist = Finalist(trial, spec_from_json(written), spent)
        if all(each.spec != finalist.spec for each in found):
            found.append(finalist)
    return found


def spared_share(model: FinishModel) -> float:
    """Of the time that a training took: what is kept to learn from all samples. Ingredients of a soup begin anew."""
    return LONGER if model == "soup" else SPARED


def plan_folds(
    finalists: Sequence[Finalist], seconds: float | None, slots: int, *, spared: float = SPARED, most: int = FOLDS
) -> Plan:
    """As many finalists on as many folds as there is time for; a second finalist is worth more than a third fold.

    Parameters
    ----------
    finalists
        Best first.
    seconds
        There are; None: as many as it takes.
    slots
        That work side by side.
    spared
        Of the time that a training took: what is kept for the winner to learn from all samples.
    """
    floor = [each for each in finalists if each.floor]
    trained = [each for each in finalists if not each.floor]
    if seconds is None:
        return Plan(tuple(finalists), most)
    if not trained:
        return Plan(tuple(floor), most if most * _fold_seconds(floor, slots) <= seconds else 0)
    for n_trained, folds in _wishes(len(trained), most):
        chosen = (*floor, *trained[:n_trained])
        kept = spared * max(each.seconds for each in trained[:n_trained])
        if folds * _fold_seconds(chosen, slots) + kept <= seconds:
            return Plan(chosen, folds)
    return without_folds(finalists)


def _fold_seconds(finalists: Sequence[Finalist], slots: int) -> float:
    """What a fold takes, which has ended before the next one begins: all of these, shared out over the slots."""
    seconds = [each.seconds for each in finalists]
    return max(sum(seconds) / slots, max(seconds, default=0.0))


def without_folds(finalists: Sequence[Finalist]) -> Plan:
    """The best that was trained and the floor: two trainings of a search have hardly a sample that judged both."""
    trained = [each for each in finalists if not each.floor]
    return Plan((*(each for each in finalists if each.floor), *trained[:1]), 0)


def _wishes(trained: int, folds: int) -> list[tuple[int, int]]:
    """(finalists, folds), most wanted first."""
    pairs = [(n, k) for n in range(1, trained + 1) for k in range(2, folds + 1)]
    return sorted(pairs, key=lambda pair: (min(pair[0], 2), min(pair[1], 3), pair[0] * pair[1]), reverse=True)
