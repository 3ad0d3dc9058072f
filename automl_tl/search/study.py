"""The Optuna study on disk: opening it, and what happens to a trial whose process died.

SQLite in write-ahead mode: transactional, survives a kill at any instant, and several processes may write. The study is
the only state of a search; host and children can die and the next start continues from it.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event
from sqlalchemy.engine import URL

from automl_tl.errors import RunError
from automl_tl.search.configurations import CONTINUES
from automl_tl.search.work import WORK

LOCK_WAIT = 60.0  # seconds a writer waits for another
MAX_CRASHES = 2  # deaths of the child after which a spec is given up


def open_storage(path: Path) -> RDBStorage:
    """Open or create the database file."""
    try:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("pragma journal_mode=wal")
        # As a URL, in which every path is only a path: Optuna fills in {…}, and what follows a ? is an option.
        url = URL.create("sqlite", database=str(path)).render_as_string(hide_password=False)
        storage = RDBStorage(url, engine_kwargs={"connect_args": {"timeout": LOCK_WAIT}})
    except sqlite3.Error as error:
        raise RunError(f"cannot open the study {path}: {error}") from None

    # Write-ahead logging keeps the file consistent without a flush per transaction; only a power cut loses the last
    # ones.
    @event.listens_for(storage.engine, "connect")
    def _synchronous_normal(connection: sqlite3.Connection, _: object) -> None:
        connection.execute("pragma synchronous=normal")

    storage.engine.dispose()
    return storage


def open_study(storage: RDBStorage, name: str, *, seed: int, hyperband: int | None = None) -> optuna.Study:
    """Open or create a study that maximizes; the sampler's stream depends on the seed and on how many trials exist.

    `hyperband`: the most epochs of a trial, where Optuna's pruner ends trials.
    """
    study = optuna.create_study(
        study_name=name, storage=storage, direction="maximize", load_if_exists=True, pruner=make_pruner(hyperband)
    )
    n_before = len(study.get_trials(deepcopy=False))
    study.sampler = optuna.samplers.TPESampler(seed=(seed * 1_000_003 + n_before) % 2**32)
    return study


def make_pruner(hyperband: int | None) -> optuna.pruners.BasePruner:
    """Optuna's Hyperband over so many epochs, for comparison; None: no trial is ended from outside."""
    if hyperband is None:
        return optuna.pruners.NopPruner()
    return optuna.pruners.HyperbandPruner(min_resource=1, max_resource=hyperband, reduction_factor=3)


def reap(study: optuna.Study) -> int:
    """Requeue every RUNNING trial; call it under the run's lock, when nothing else is alive. Return how many."""
    orphans = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    for trial in orphans:
        requeue(study, trial, reason="the run was stopped", crashed=False)
    return len(orphans)


def requeue(study: optuna.Study, trial: FrozenTrial, *, reason: str, crashed: bool) -> bool:
    """End a dead trial as failed and put its parameters back into the queue; False when it has crashed too often.

    A stop of the host is not the trial's fault and does not count. The copy is queued before the original ends: whoever
    is killed in between leaves an original that the next start meets again, and that finds its copy there.
    """
    crashes = int(trial.user_attrs.get("crashes", 0)) + crashed
    again = crashes <= MAX_CRASHES
    if CONTINUES in trial.user_attrs:
        # Its configuration stays where it was, and goes on from there when it promises most again.
        study._storage.set_trial_user_attr(trial._trial_id, "requeued", True)
        study._storage.set_trial_user_attr(trial._trial_id, "crashed", crashed)
    elif again:
        copied = any(t.user_attrs.get("repeats") == trial.number for t in study.get_trials(deepcopy=False))
        if not copied:
            same: dict[str, Any] = {
                name: trial.user_attrs[name] for name in ("recipe", "draw", WORK) if name in trial.user_attrs
            }
            # A fixed-parameter copy: what is repeated must not be sampled anew.
            fixed = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
            study.enqueue_trial(fixed, user_attrs={**same, "crashes": crashes, "repeats": trial.number})
        study._storage.set_trial_user_attr(trial._trial_id, "requeued", True)
    fail(study, trial, reason)
    return again


def fail(study: optuna.Study, trial: FrozenTrial, reason: str) -> None:
    """End a trial as failed, with its reason."""
    study._storage.set_trial_user_attr(trial._trial_id, "reason", reason)
    study.tell(trial.number, state=TrialState.FAIL)


def waiting(study: optuna.Study) -> list[FrozenTrial]:
    """The queue: trials that wait to be begun, the next one first."""
    return study.get_trials(deepcopy=False, states=(TrialState.WAITING,))


def begin_waiting(study: optuna.Study, trial: FrozenTrial) -> optuna.Trial:
    """Begin one that waits, whatever waits before it. Call it where no other thread begins any."""
    if not study._storage.set_trial_state_values(trial._trial_id, state=TrialState.RUNNING):
        raise RuntimeError(f"trial {trial.number} waits no longer")
    return optuna.Trial(study, trial._trial_id)


def begin_new(study: optuna.Study, fixed: Mapping[str, Any], attributes: Mapping[str, Any]) -> optuna.Trial:
    """Begin one that never waited, whatever does; its sampler draws what is not `fixed`."""
    template = optuna.trial.create_trial(
        state=TrialState.RUNNING, system_attrs={"fixed_params": dict(fixed)}, user_attrs=dict(attributes)
    )
    return optuna.Trial(study, study._storage.create_new_trial(study._study_id, template_trial=template))


def settled(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that ended for good: complete, pruned, or failed without being repeated."""
    return [trial for trial in study.get_trials(deepcopy=False) if is_settled(trial)]


def is_settled(trial: FrozenTrial) -> bool:
    """Whether a trial ended for good."""
    return trial.state.is_finished() and "requeued" not in trial.user_attrs


def completed(study: optuna.Study) -> list[FrozenTrial]:
    """The trial that stands for each configuration, best first; between equal scores the lower log loss decides.

    That is the one that was trained furthest, unless it over-fits: the score of an earlier one is the highest of
    several, and flatters by that. `benchmarks/which_rung.py` measures what the difference is worth.
    """
    standing: dict[int, FrozenTrial] = {}
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):  # each further than the one before
        number = trial.user_attrs.get(CONTINUES, trial.number)
        if number not in standing or not _over_fits(trial, standing[number]):
            standing[number] = trial
    return sorted(standing.values(), key=lambda trial: (-(trial.value or 0.0), _log_loss(trial), trial.number))


def _over_fits(trial: FrozenTrial, earlier: FrozenTrial) -> bool:
    """Whether training on made a configuration worse in the metric and in log loss, which sees more in few samples."""
    return (trial.value or 0.0) < (earlier.value or 0.0) and _log_loss(trial) > _log_loss(earlier)


def _log_loss(trial: FrozenTrial) -> float:
    return float(trial.user_attrs["validation"]["log_loss"])
