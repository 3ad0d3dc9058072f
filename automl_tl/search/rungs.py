"""A child's own line to the study: it reports each epoch and hears whether the trial is behind its rung."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import optuna

from automl_tl.search.study import make_pruner, open_storage


def rung(database: Path, study: str, trial_id: int, *, prune: bool, sitting: float) -> Callable[[int, float], bool]:
    """Report each epoch's best score to the study and ask whether the trial is behind its rung."""
    opened = _study(database, study, prune, sitting)
    trial = optuna.Trial(opened, trial_id)
    reported = set(opened._storage.get_trial(trial_id).intermediate_values)

    def report(epoch: int, score: float) -> bool:
        if epoch + 1 not in reported:  # by a try that ran out of memory later
            trial.report(score, epoch + 1)
        return bool(trial.should_prune())

    return report


@functools.lru_cache(maxsize=1)
def _study(database: Path, name: str, prune: bool, sitting: float) -> optuna.Study:
    """The child's own connection; it never samples, so the sampler is of no account."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = open_storage(database)
    sampler = optuna.samplers.RandomSampler(seed=0)
    return optuna.load_study(study_name=name, storage=storage, sampler=sampler, pruner=make_pruner(prune))
