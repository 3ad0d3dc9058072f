"""A child's own line to the study: it reports each epoch, and hears whether Optuna's pruner ends the trial."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import optuna

from automl_tl.search.study import make_pruner, open_storage


def rung(
    database: Path, study: str, trial_id: int, *, hyperband: int | None, sitting: float
) -> Callable[[int, float], bool]:
    """Report each epoch's score to the study and ask whether its pruner ends the trial."""
    opened = _study(database, study, hyperband, sitting)
    trial = optuna.Trial(opened, trial_id)
    reported = set(opened._storage.get_trial(trial_id).intermediate_values)

    def report(epoch: int, score: float) -> bool:
        if epoch + 1 not in reported:  # by a try that ran out of memory later
            trial.report(score, epoch + 1)
        return hyperband is not None and bool(trial.should_prune())

    return report


@functools.lru_cache(maxsize=1)
def _study(database: Path, name: str, hyperband: int | None, sitting: float) -> optuna.Study:
    """The child's own connection; it never samples, so the sampler is of no account."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = open_storage(database)
    sampler = optuna.samplers.RandomSampler(seed=0)
    return optuna.load_study(study_name=name, storage=storage, sampler=sampler, pruner=make_pruner(hyperband))
