"""How a search stands, read from its study: for the live display and the result."""

from __future__ import annotations

from dataclasses import dataclass

from optuna.trial import FrozenTrial, TrialState

from automl_tl.search.configurations import CONTINUES
from automl_tl.search.reserve import deadline_of
from automl_tl.search.search import Search
from automl_tl.search.study import completed, settled


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningTrial:
    """A trial that a slot is working on."""

    slot: str
    number: int
    what: str  # backbone, strategy, head
    epoch: int  # epochs finished
    score: float | None  # best so far


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """A search at one moment."""

    complete: int  # configurations, however far they came
    pruned: int
    failed: int
    promoted: int  # times that one was trained further
    running: tuple[RunningTrial, ...]
    settled: tuple[FrozenTrial, ...]
    best: FrozenTrial | None
    seconds: float
    deadline: float | None  # time.time() at which the search ends as it stands; None: when its trials are done


def status_of(search: Search) -> Status:
    """Read the study; cheap enough for once a second."""
    ended = settled(search.study)
    standing = completed(search.study)
    running = search.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    return Status(
        complete=len(standing),
        promoted=sum(t.state == TrialState.COMPLETE and CONTINUES in t.user_attrs for t in ended),
        pruned=sum(trial.state == TrialState.PRUNED for trial in ended),
        failed=sum(trial.state == TrialState.FAIL for trial in ended),
        running=tuple(_running(trial) for trial in running if "slot" in trial.user_attrs),
        settled=tuple(ended),
        best=standing[0] if standing else None,
        seconds=search.clock.now(),
        deadline=deadline_of(search),
    )


def describe(trial: FrozenTrial) -> str:
    """A trial's choices in a few words."""
    spec = trial.user_attrs.get("spec")
    return f"{spec['backbone']} · {spec['strategy'] or 'own plan'} · {spec['head']}" if spec else "not yet planned"


def incumbents(search: Search) -> list[tuple[float, int, float]]:
    """(seconds, trial, validation score) of every trial that was the best when it ended."""
    found: list[tuple[float, int, float]] = []
    complete = search.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    for trial in sorted(complete, key=lambda trial: trial.user_attrs["at"]):
        score = float(trial.value or 0.0)
        if not found or score > found[-1][2]:
            found.append((round(float(trial.user_attrs["at"]), 2), trial.number, score))
    return found


def _running(trial: FrozenTrial) -> RunningTrial:
    values = trial.intermediate_values
    return RunningTrial(
        slot=trial.user_attrs["slot"],
        number=trial.number,
        what=describe(trial),
        epoch=max(values, default=0),
        score=max(values.values(), default=None),
    )
