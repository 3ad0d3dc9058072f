"""Which trials' files stay: the models that may be handed over or compared with, and what may be trained further."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from optuna.trial import FrozenTrial, TrialState

from automl_tl.search.configurations import configurations
from automl_tl.search.study import completed
from automl_tl.search.trial import CHECKPOINT, STATE

if TYPE_CHECKING:
    from automl_tl.search.search import Search

FEWEST_KEPT = 6  # configurations on a rung whose state is kept, or the better half of them: these may go on


def drop_checkpoints(search: Search) -> None:
    """Keep the models of the best configurations, and of the best that were trained, which heads may crowd out.

    Beside them those of the best linear probe and the best full fine-tuning, which are baselines; and all of them while
    there are no more than may be kept. What a configuration needs to go on is kept of those that may yet be asked to.
    """
    # Looked at before it is decided who goes on: what another slot completes meanwhile is not judged yet.
    trials = search.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    ranked = completed(search.study)
    most = search.budget.keep_checkpoints
    trained = [trial for trial in ranked if trial.user_attrs["epochs"]]
    best = trials if len(trials) <= most else ranked[:most]
    keep = {trial.number for trial in (*best, *trained[:most])}
    keep |= {trial.number for trial in (*probes(ranked)[:1], *full_finetunings(ranked)[:1])}
    goes_on = _may_go_on(search)
    for trial in trials:
        directory = search.directory / str(trial.number)
        if trial.number not in keep | goes_on:
            (directory / CHECKPOINT).unlink(missing_ok=True)
        if trial.number not in goes_on:
            (directory / STATE).unlink(missing_ok=True)


def _may_go_on(search: Search) -> set[int]:
    """The latest trials of the configurations that may be trained further, or that are being."""
    by_rung: dict[int, list[FrozenTrial]] = {}
    going = set()
    for configuration in configurations(search.study):
        if configuration.done and not configuration.ended:
            by_rung.setdefault(configuration.epochs, []).append(configuration.latest)
            if configuration.running:
                going.add(configuration.latest.number)
    for trials in by_rung.values():
        ranked = sorted(trials, key=lambda trial: -(trial.value or 0.0))
        going |= {trial.number for trial in ranked[: max(FEWEST_KEPT, len(ranked) // 2)]}
    return going


def probes(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Those of the trials that are linear probes of the last layer."""
    specs = [trial.user_attrs["spec"] for trial in trials]
    return [
        t for t, spec in zip(trials, specs, strict=True) if spec["strategy"] == "linear_probe" and not spec["joined"]
    ]


def full_finetunings(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Those of the trials in which every transferred layer group trains and none is dropped."""
    specs = [trial.user_attrs["spec"] for trial in trials]
    return [
        trial
        for trial, spec in zip(trials, specs, strict=True)
        if spec["weights"] == "transferred" and all(group["action"] == "tune" for group in spec["plan"]["groups"])
    ]


def checkpoint_of(search: Search, trial: FrozenTrial) -> Path:
    """Where a complete trial's trained state lies."""
    return search.directory / str(trial.number) / CHECKPOINT
