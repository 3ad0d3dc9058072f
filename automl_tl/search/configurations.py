"""Configurations, as a study knows them: a spec, and the trials that train it further and further.

To Optuna every rung is a trial of its own, because a trial that has ended cannot go on, and none may stay running while
nobody works on it. The first trial of a configuration gives it its number; those that continue it name it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import optuna
from optuna.trial import FrozenTrial, TrialState

from automl_tl.search.schedule import Climb
from automl_tl.search.work import WORK

CONTINUES = "continues"  # attribute of a trial: the number of the configuration that it trains further
MOST_FAILURES = 2  # of trials that continue one configuration, after which it stays where it is


@dataclass(frozen=True, slots=True)
class Configuration:
    """A spec that was proposed once, and its trials, first to last."""

    number: int
    trials: tuple[FrozenTrial, ...]

    @property
    def done(self) -> tuple[FrozenTrial, ...]:
        """The trials that were finished, each further than the one before."""
        return tuple(trial for trial in self.trials if trial.state == TrialState.COMPLETE)

    @property
    def latest(self) -> FrozenTrial:
        """The trial that got furthest; only of configurations with one that is done."""
        return self.done[-1]

    @property
    def running(self) -> bool:
        """Whether somebody works on it now; one that waits in the queue is not begun."""
        return any(trial.state == TrialState.RUNNING for trial in self.trials)

    @property
    def climbs(self) -> bool:
        """Whether it is trained rung by rung, or was cut off on its way; others are done in one go."""
        return "until" in self.trials[0].user_attrs or bool(self.done and self.latest.user_attrs.get("resumable"))

    @property
    def epochs(self) -> int:
        """Epochs it was trained for; 0 where it was solved for, or nothing is done."""
        return int(self.latest.user_attrs["epochs"]) if self.done else 0

    @property
    def failures(self) -> int:
        """How many of its trials came to nothing, but for those that a stop of the host or the deadline cut off."""
        failed = (t for t in self.trials if t.state == TrialState.FAIL and t.user_attrs.get("crashed", True))
        pruned = (t for t in self.trials if t.state == TrialState.PRUNED and t.user_attrs.get("ending") != "deadline")
        return len([*failed, *pruned])

    @property
    def ended(self) -> bool:
        """Whether it cannot be trained further."""
        if not self.done or self.failures >= MOST_FAILURES:
            return True
        return not self.latest.user_attrs.get("resumable", False)


def configurations(study: optuna.Study) -> list[Configuration]:
    """All configurations of a study, in the order they were proposed."""
    found: dict[int, list[FrozenTrial]] = {}
    for trial in study.get_trials(deepcopy=False):
        found.setdefault(int(trial.user_attrs.get(CONTINUES, trial.number)), []).append(trial)
    return [Configuration(number, tuple(trials)) for number, trials in sorted(found.items())]


def climbs(
    found: Sequence[Configuration],
    rungs: Sequence[int],
    *,
    can_go_on: Callable[[FrozenTrial], bool],
    timed: bool = True,
) -> list[Climb]:
    """What the schedule needs to know of configurations that are done to some rung, or being trained.

    Parameters
    ----------
    can_go_on
        Whether what a trial needs to be gone on with is still there.
    timed
        False: every epoch counts as a second. What is decided then does not depend on how fast the machine is.
    """
    known = [_climb(each, rungs, can_go_on) for each in found if each.done or each.running]
    if timed:
        return known
    return [replace(each, seconds=_epochs(rungs)[: len(each.scores)], work=None) for each in known]


def training_seconds(trial: FrozenTrial) -> float:
    """What a trial took and would take again: without passing samples through frozen groups, which is done once."""
    return float(trial.user_attrs["seconds"]) - float(trial.user_attrs.get("passing_seconds", 0.0))


def _epochs(rungs: Sequence[int]) -> tuple[float, ...]:
    return tuple(float(later - rung) for rung, later in pairwise((0, *rungs)))


def _climb(configuration: Configuration, rungs: Sequence[int], can_go_on: Callable[[FrozenTrial], bool]) -> Climb:
    if not configuration.climbs:
        return Climb(number=configuration.number, running=configuration.running, final=True)
    scores, seconds, before, spent = list[float](), list[float](), 0, 0.0
    for trial in configuration.done:
        epochs = int(trial.user_attrs["epochs"])
        an_epoch = (spent + training_seconds(trial)) / max(1, epochs - before)
        for rung in [rung for rung in rungs if before < rung <= epochs]:
            scores.append(float(trial.value or 0.0))
            seconds.append(an_epoch * (rung - before))
            before = rung
        spent = an_epoch * (epochs - before)  # beyond the last rung, which counts for the next one
    over = configuration.ended or len(scores) >= len(rungs) or not can_go_on(configuration.latest)
    return Climb(
        number=configuration.number,
        scores=tuple(scores),
        seconds=tuple(seconds),
        work=configuration.trials[0].user_attrs.get(WORK),
        running=configuration.running,
        final=bool(configuration.done) and over,
    )
