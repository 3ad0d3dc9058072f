"""Trains the finalists anew, all on the same folds, and keeps what each said of the samples it was not shown.

Those that are clearly behind are dropped on the way (a race), which leaves the time to the others. Averages of their
weights are asked on the same folds: those of the models that were trained on a fold say what they say of the rest.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from automl_tl.data.folds import fold_numbers
from automl_tl.engine.slot import Interrupted
from automl_tl.engine.slots import Slot
from automl_tl.engine.spread import Crew, spread
from automl_tl.errors import RunError, reason_for
from automl_tl.finish.blending import BlendOrder, say
from automl_tl.finish.choice import race
from automl_tl.finish.soup import Blend, blends_of, kinds_of
from automl_tl.search.finalists import FOLDS, SPARED, Finalist, Plan, without_folds
from automl_tl.search.judging import load_said
from automl_tl.search.order import training_order, trial_seed
from automl_tl.search.search import Search
from automl_tl.search.trial import CHECKPOINT, TrialOrder, TrialReport, run_trial
from automl_tl.training.train import Stage

FEWEST = 2  # folds, however little time is left: fewer compare nothing
CONFIRMED = "confirmed"  # folder beside the trials
HOLDOUT = "holdout"  # instead of a fold's number: the samples that judged what was trained


@dataclass(slots=True, eq=False)
class Confirmed:
    """A finalist, and what it said of samples that it had not learnt from, on the folds it was trained on."""

    finalist: Finalist
    probabilities: np.ndarray  # (N, K), NaN where it said nothing
    scores: list[float] = field(default_factory=list)  # of each fold, in order


@dataclass(frozen=True, slots=True)
class Fold:
    """Which development samples are learnt from, and which judge."""

    learn: np.ndarray
    judge: np.ndarray | None
    folder: str | None = None  # ends the names of the trainings' folders; None: they are those of the search
    number: int | None = None  # each of several folds has seeds of its own


@dataclass(frozen=True, slots=True)
class Training:
    """One finalist on one fold."""

    confirmed: Confirmed
    fold: Fold


@dataclass(slots=True, eq=False)
class Averages:
    """Of what averages of the finalists' weights said: (N, K) each, NaN where they said nothing."""

    wanted: bool
    said: dict[Blend, np.ndarray] = field(default_factory=dict)

    def of(self, confirmed: Sequence[Confirmed]) -> dict[Blend, np.ndarray]:
        """Those of finalists that stayed, which spoke of all samples of which these did."""
        stayed, rows = {each.finalist.number for each in confirmed}, covered(confirmed)
        return {
            blend: said
            for blend, said in self.said.items()
            if stayed.issuperset(blend.ingredients) and not np.isnan(said[rows]).any()
        }


def confirm(
    search: Search,
    plan: Plan,
    crew: Crew,
    tell: Callable[[str], None],
    tick: Callable[[str, int, int], None],
    averages: Averages | None = None,
) -> list[Confirmed]:
    """Train the finalists of a plan on its folds; those that the race dropped are left out.

    A finalist that fails on a fold is dropped, and `tell` hears why; if all do, or there are no folds, the holdout of
    the search judges what was trained, and heads that were solved for anew without it.
    `averages` takes down what averages of their weights say, where they are wanted.
    """
    averages = averages or Averages(wanted=False)
    task, development = search.prepared.task, search.prepared.development()
    n, n_outputs = len(development.labels), task.n_outputs
    going = [Confirmed(finalist, np.full((n, n_outputs), np.nan)) for finalist in plan.finalists]
    if development.given is not None or not plan.folds:
        if development.given is not None:  # else each was judged by samples that others learnt from
            given = Fold(np.arange(development.n_train), development.given)
            _ask_averages(search, averages, plan.finalists, given, crew, tell)
        searched = [as_searched(search, each.finalist) for each in going]
        return searched if development.given is not None else _heads_alike(search, searched, crew, tell, tick)
    numbers = fold_numbers(
        development.labels,
        FOLDS,
        seed=search.seed,
        groups=development.groups,
        multilabel=task.kind == "multilabel",
    )
    longest = 0.0  # seconds that a fold took
    for fold in range(min(plan.folds, int(numbers.max()) + 1)):
        if fold >= FEWEST and search.budget.end is not None and time.time() + longest > search.budget.end:
            break
        began = time.time()
        divided = Fold(np.flatnonzero(numbers != fold), np.flatnonzero(numbers == fold), str(fold), fold)
        trainings = [Training(each, divided) for each in going]
        # What takes longest first, so that no slot is left with it at the end.
        trainings.sort(key=lambda training: -training.confirmed.finalist.seconds)
        failures = spread(
            crew,
            lambda slot, training: _train(search, slot, training, crew),
            trainings,
            tick=partial(_tell_fold, tick, f"fold {fold + 1} of {plan.folds}", len(trainings)),
        )
        for training, failure in zip(trainings, failures, strict=True):
            if failure is not None:
                tell(f"trial {training.confirmed.finalist.number} is no finalist any more: {failure}")
                going.remove(training.confirmed)
        _ask_averages(search, averages, [each.finalist for each in going], divided, crew, tell)
        for training in trainings:
            shutil.rmtree(fold_directory(search, training.confirmed.finalist, divided), ignore_errors=True)
        going = [going[index] for index in race([each.scores for each in going])]
        longest = max(longest, time.time() - began)
    return going or confirm(search, without_folds(plan.finalists), crew, tell, tick, averages)


def fold_directory(search: Search, finalist: Finalist, fold: Fold) -> Path:
    """Where a training on a fold lies."""
    if fold.folder is None:
        return search.directory / str(finalist.number)
    return search.directory.with_name(f"{search.directory.name}-{CONFIRMED}") / f"{finalist.number}-{fold.folder}"


def fold_order(search: Search, finalist: Finalist, slot: Slot, fold: Fold) -> TrialOrder:
    """What trains a finalist on a fold."""
    return training_order(
        search,
        finalist.spec,
        slot,
        directory=fold_directory(search, finalist, fold),
        learn=fold.learn,
        judge=fold.judge,
        seed=trial_seed(search.seed, finalist.spec, fold.number),
        stage=final_stage(finalist),
        divisor=2 ** int(finalist.trial.user_attrs.get("crashes", 0)),
    )


def final_stage(finalist: Finalist) -> Stage:
    """As far as the search trained it, with a rate that falls to zero at the end."""
    return Stage(until=max(1, int(finalist.trial.user_attrs["epochs"])), anneal=True)


def _train(search: Search, slot: Slot, training: Training, crew: Crew) -> str | None:
    """Train one finalist on one fold and take down what it said; returns why that was not possible."""
    confirmed, fold = training.confirmed, training.fold
    order = fold_order(search, confirmed.finalist, slot, fold)
    try:
        report: TrialReport = crew.children.run(slot, run_trial, order)
    except (Interrupted, RunError):
        raise
    except Exception as error:
        return reason_for(error)
    if report.state != "complete" or report.score is None:
        return str(report.facts.get("reason", "it was cut off"))
    confirmed.probabilities[fold.judge] = load_said(order.directory).probabilities
    confirmed.scores.append(report.score)
    return None


def _ask_averages(
    search: Search,
    averages: Averages,
    finalists: Sequence[Finalist],
    fold: Fold,
    crew: Crew,
    tell: Callable[[str], None],
) -> None:
    """Let the averages of models that were trained on a fold predict its other samples."""
    if not averages.wanted:
        return
    there = {each.number: each for each in finalists if (fold_directory(search, each, fold) / CHECKPOINT).exists()}

    def ask(slot: Slot, numbers: tuple[int, ...]) -> str | None:
        orders = {number: fold_order(search, there[number], slot, fold) for number in numbers}
        blends = tuple(blends_of(numbers))
        try:
            said = crew.children.run(slot, say, BlendOrder(trained=orders, blends=blends))
        except (Interrupted, RunError):
            raise
        except Exception as error:
            return reason_for(error)
        n, n_outputs = len(search.prepared.development().labels), search.prepared.task.n_outputs
        for blend, probabilities in zip(blends, said, strict=True):
            averages.said.setdefault(blend, np.full((n, n_outputs), np.nan))[fold.judge] = probabilities
        return None

    kinds = kinds_of({number: finalist.spec for number, finalist in there.items()})
    for numbers, failure in zip(kinds, spread(crew, ask, kinds), strict=True):
        if failure is not None:
            tell(f"weights of trial {', '.join(map(str, numbers))} are not averaged: {failure}")


def _heads_alike(
    search: Search,
    searched: list[Confirmed],
    crew: Crew,
    tell: Callable[[str], None],
    tick: Callable[[str, int, int], None],
) -> list[Confirmed]:
    """Let heads that were solved for learn from as many samples as what was trained, and be judged by the same.

    In the search each of their samples was left out alone, so they had a quarter more to learn from than what left out
    a holdout: of a class of ten samples that is two. One that fails stays as it was searched.
    """
    heads = [each for each in searched if each.finalist.floor]
    trained = [each for each in searched if not each.finalist.floor]
    if not heads or not trained:
        return searched
    seconds = [each.finalist.seconds for each in heads]
    spent = max(sum(seconds) / len(crew.slots), *seconds)
    spent += SPARED * max(each.finalist.seconds for each in trained)
    if search.budget.end is not None and time.time() + spent > search.budget.end:
        return searched
    judge = covered(trained)
    fold = Fold(np.setdiff1d(np.arange(len(searched[0].probabilities)), judge), judge, HOLDOUT)
    alike = {each.finalist.number: Confirmed(each.finalist, np.full_like(each.probabilities, np.nan)) for each in heads}
    trainings = [Training(each, fold) for each in alike.values()]
    failures = spread(
        crew,
        lambda slot, training: _train(search, slot, training, crew),
        trainings,
        tick=partial(_tell_fold, tick, "heads beside what was trained", len(trainings)),
    )
    for training, failure in zip(trainings, failures, strict=True):
        shutil.rmtree(fold_directory(search, training.confirmed.finalist, fold), ignore_errors=True)
        training.confirmed.scores.clear()  # a holdout is no fold
        if failure is not None:
            number = training.confirmed.finalist.number
            tell(f"trial {number} is compared as the search judged it: {failure}")
            del alike[number]
    return [alike.get(each.finalist.number, each) for each in searched]


def _tell_fold(tick: Callable[[str, int, int], None], what: str, total: int, done: int) -> None:
    tick(what, done, total)


def as_searched(search: Search, finalist: Finalist) -> Confirmed:
    """A finalist with what it said in the search: of its holdout, or of all samples where it was solved for."""
    said, n = load_said(search.directory / str(finalist.number)), len(search.prepared.development().labels)
    found = Confirmed(finalist, np.full((n, search.prepared.task.n_outputs), np.nan))
    found.probabilities[said.rows] = said.probabilities
    return found


def covered(confirmed: Sequence[Confirmed]) -> np.ndarray:
    """Indices of the samples of which all said something."""
    return np.flatnonzero(np.logical_and.reduce([~np.isnan(each.probabilities).any(1) for each in confirmed]))
