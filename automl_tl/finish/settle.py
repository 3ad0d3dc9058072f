"""From a finished search to the model that is handed over; nothing here has seen the test split.

confirm    the best few, trained anew on the same folds
choose     the cheapest that is as good as the best, or several together where that is better
adjust     what they say, where the metric gains by it
refit      on all development samples
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from optuna.trial import TrialState

from automl_tl.config import FinishConfig
from automl_tl.engine.spread import Crew
from automl_tl.errors import TrialError
from automl_tl.finish.adjust import fit_adjustment
from automl_tl.finish.choice import Candidate, Choice, choose
from automl_tl.finish.confirm import Confirmed, as_searched, confirm, covered
from automl_tl.finish.ensemble import Gain, ensemble_gain, select_ensemble
from automl_tl.finish.finalists import choose_finalists, plan_folds
from automl_tl.finish.refit import Chosen, Tell, Tick, refit
from automl_tl.metrics.optimism import selection_optimism
from automl_tl.metrics.scores import decide, validation_score
from automl_tl.model.ensemble import Adjustment
from automl_tl.search.configurations import configurations
from automl_tl.search.search import Search, reason_of
from automl_tl.search.study import completed, settled

MEMBERS = 5  # of an ensemble at most
LONGER = 1.3  # times as long as in the search, on all samples instead of four fifths of them


@dataclass(frozen=True, kw_only=True)
class Final:
    """What is handed over, and how it came about."""

    best: Chosen  # the best single one
    members: tuple[Chosen, ...]  # of the final model; often the best one alone
    adjustment: Adjustment
    facts: dict[str, Any]  # for the report


def settle(
    search: Search,
    settings: FinishConfig,
    crew: Crew,
    device: str,
    tell: Tell = lambda text: None,
    tick: Tick = lambda what, done, n: None,
) -> Final:
    """Confirm, choose, adjust and refit; raises TrialError when no trial was completed."""
    confirmed = _confirmed(search, settings, crew, tell, tick)
    confirmed, rows, choice = _choose(search, confirmed)
    task, labels = search.prepared.task, search.prepared.development().labels[rows]
    said = np.stack([each.probabilities[rows] for each in confirmed])
    weights, gain = np.eye(len(confirmed))[choice.index], None
    if settings.model != "single" and len(confirmed) > 1:
        weights, gain = _together(search, settings, labels, said, choice.index)
        weights = _affordable(search, confirmed, weights, len(crew.slots))
    if np.count_nonzero(weights) == 1:
        weights = np.eye(len(confirmed))[choice.index]
    mean = np.tensordot(weights, said, 1)
    adjustment, adjustment_gain = fit_adjustment(labels, mean, task.kind, metric=search.metric, seed=search.seed)
    decisions = [decide(probabilities, task.kind) for probabilities in said]
    wanted = [index for index in np.argsort(-weights) if weights[index] > 0]
    if choice.index not in wanted:
        wanted.append(choice.index)
    models = refit(search, [confirmed[index].finalist for index in wanted], crew, device, tell, tick)
    chosen = {
        index: Chosen(trial=f.trial, spec=f.spec, model=model, weight=float(weights[index] or 1.0))
        for index, f, model in zip(wanted, [confirmed[i].finalist for i in wanted], models, strict=True)
    }
    return Final(
        best=chosen[choice.index],
        members=tuple(chosen[index] for index in wanted if weights[index] > 0),
        adjustment=adjustment,
        facts={
            "samples": len(rows),
            "finalists": [
                {
                    "trial": each.finalist.number,
                    "folds": len(each.scores),
                    search.metric: validation_score(labels, probabilities, task.kind, search.metric),
                }
                for each, probabilities in zip(confirmed, said, strict=True)
            ],
            "chosen_because": choice.reason,
            "adjustment_gain": adjustment_gain,
            "optimism": selection_optimism(labels, decisions, task.kind, task.n_outputs, metric=search.metric),
            "ensemble_gain": None if gain is None else asdict(gain),
        },
    )


def _confirmed(search: Search, settings: FinishConfig, crew: Crew, tell: Tell, tick: Tick) -> list[Confirmed]:
    ranked = completed(search.study)
    if not ranked:
        failures = [trial for trial in settled(search.study) if trial.state == TrialState.FAIL]
        why = f"the first failure: {reason_of(failures[0])}" if failures else "give it more time, or more trials"
        raise TrialError(f"study {search.study.study_name!r}: no trial was completed; {why}")
    spent = {
        trial.number: sum(float(earlier.user_attrs["seconds"]) for earlier in each.done[: place + 1])
        for each in configurations(search.study)
        for place, trial in enumerate(each.done)
    }
    finalists = choose_finalists(ranked, [spent[trial.number] for trial in ranked], settings.finalists)
    plan = plan_folds(finalists, _seconds_left(search), len(crew.slots))
    return confirm(search, plan, crew, tell, tick)


def _choose(search: Search, confirmed: Sequence[Confirmed]) -> tuple[list[Confirmed], np.ndarray, Choice]:
    """Who is chosen, among whom, and by which samples.

    Where there was no time for all folds, what is trained was judged by fewer samples than the floor was in the search.
    If it does not beat the floor on these, it leaves, and the floor is judged by all samples.
    """
    rows, choice = _chosen_by_all(search, confirmed)
    if confirmed[choice.index].finalist.floor:
        solved = [as_searched(search, each.finalist) for each in confirmed if each.finalist.floor]
        if len(covered(solved)) > len(rows):
            return solved, *_chosen_by_all(search, solved)
    return list(confirmed), rows, choice


def _chosen_by_all(search: Search, confirmed: Sequence[Confirmed]) -> tuple[np.ndarray, Choice]:
    rows = covered(confirmed)
    candidates = [
        Candidate(
            name=f"trial {each.finalist.number}",
            probabilities=each.probabilities[rows],
            cost=float(each.finalist.trial.user_attrs["total_parameters"]),
            floor=each.finalist.floor,
        )
        for each in confirmed
    ]
    labels, kind = search.prepared.development().labels[rows], search.prepared.task.kind
    return rows, choose(labels, candidates, kind, metric=search.metric, seed=search.seed)


def _together(
    search: Search, settings: FinishConfig, labels: np.ndarray, said: np.ndarray, single: int
) -> tuple[np.ndarray, Gain]:
    """The weights of an ensemble where it is better than the single best, else of that one; and the gain.

    Gain and choice are of samples that did not choose: to be better in the metric alone may be chance.
    """
    kind, metric, seed = search.prepared.task.kind, search.metric, search.seed
    weights = select_ensemble(labels, said, kind, metric=metric, most=MEMBERS, seed=seed)
    gain = ensemble_gain(labels, said, kind, metric=metric, most=MEMBERS, seed=seed)
    if settings.model == "ensemble" or (gain.gain > 0 and gain.log_loss_gain > 0):
        return weights, gain
    return np.eye(len(said))[single], gain


def _affordable(search: Search, confirmed: Sequence[Confirmed], weights: np.ndarray, slots: int) -> np.ndarray:
    """The weights of those that there is time to train on all samples; the others', lightest first, are dropped."""
    left = _seconds_left(search)
    kept = [int(index) for index in np.argsort(-weights, kind="stable") if weights[index] > 0]

    def seconds() -> float:
        each = [confirmed[index].finalist.seconds * LONGER for index in kept]
        return max(sum(each) / slots, max(each))

    while left is not None and len(kept) > 1 and seconds() > left:
        kept.pop()
    affordable = np.zeros_like(weights)
    affordable[kept] = weights[kept] / weights[kept].sum()
    return affordable


def _seconds_left(search: Search) -> float | None:
    return None if search.budget.end is None else search.budget.end - time.time()
