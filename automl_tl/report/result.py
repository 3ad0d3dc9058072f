"""`result.json`: everything a run found, as plain data with a version.

Keys are only ever added; removing one or changing what it means raises `SCHEMA_VERSION`.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import optuna
import torch
from optuna.trial import TrialState

from automl_tl import __version__
from automl_tl.engine.slots import Slot
from automl_tl.finish.by_depth import gone_from
from automl_tl.finish.finish import Finished
from automl_tl.finish.refit import Chosen
from automl_tl.finish.settle import Final
from automl_tl.model.plan import plan_to_json
from automl_tl.search.passes import ROWS_PASSED
from automl_tl.search.search import Search, reason_of
from automl_tl.search.source import SourceModel
from automl_tl.search.status import incumbents, status_of
from automl_tl.search.study import settled

SCHEMA_VERSION = 1


def result_of(
    search: Search,
    from_random: Search | None,
    finished: Finished,
    source: SourceModel | None,
    slots: tuple[Slot, ...],
    test_opened: int,
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """Gather the result of a finished run as JSON-ready data."""
    task, status = search.prepared.task, status_of(search)
    result: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "task": {
            "name": task.name,
            "modality": task.modality,
            "kind": task.kind,
            "classes": list(task.classes),
            "n_train": len(task.train),
            "n_validation": len(task.validation),
            "n_test": len(task.test),
            "n_left_out": task.left_out,  # of training and validation samples, as there was no time for them
        },
        "metric": search.metric,
        "validation": _validation(search, finished.final),
        "test": finished.test,
        "test_opened": test_opened,  # more than once: the search was extended after its test score was seen
        "best": _best(finished.final.best, finished.final.further.get(finished.final.best.trial.number, 0)),
        "model": _model(finished.final),
        "baselines": finished.baselines,
        "missing_baselines": dict(finished.rivals.missing),  # and why
        "copies": finished.copies,
        "transfer_gain": None if finished.verdict is None else finished.verdict.to_json(),
        "feature_gain_by_depth": [gain.to_json() for gain in finished.rivals.by_depth],
        "feature_gain_gone_from": gone_from(finished.rivals.by_depth),  # null: the last layer group still gains
        "trials": {"complete": status.complete, "pruned": status.pruned, "failed": status.failed},
        "promotions": status.promoted,  # times that a configuration was trained further
        "failures": [
            {"trial": trial.number, "reason": reason_of(trial)}
            for trial in settled(search.study)
            if trial.state == TrialState.FAIL
        ],
        "store": _store(search, finished),
        "seconds": dict(seconds),
        "incumbents": [list(incumbent) for incumbent in incumbents(search)],
        "environment": _environment(slots, search),
    }
    if source is not None:
        result["source"] = {
            "backbone": source.backbone,
            "reused": source.reused,
            **{key: source.scores[key] for key in ("accuracy", "recall_macro", "f1_macro", "n_train", "epochs")},
            "verdict": None if finished.source is None else finished.source.to_json(),
        }
    if from_random is not None:
        beside = status_of(from_random)
        counts = {"complete": beside.complete, "pruned": beside.pruned, "failed": beside.failed}
        result["transfer"] = {**(finished.transfer or {}), "trials_from_random": counts}
    return result


def _validation(search: Search, final: Final) -> dict[str, Any]:
    """What was known before the test split was opened."""
    trial = final.best.trial
    return {**trial.user_attrs["validation"], search.metric: trial.value, "confirmed": final.facts}


def _model(final: Final) -> dict[str, Any]:
    """What is handed over: the members of an ensemble, or the best one alone, or one of averaged weights."""
    alone = "soup" if final.members[0].blend else "single"
    return {
        "kind": alone if len(final.members) == 1 else "ensemble",
        "members": [
            {
                "trial": m.trial.number,
                "weight": m.weight,
                "backbone": m.spec.backbone,
                "strategy": m.spec.strategy,
                "averaged": None if m.blend is None else {"trials": list(m.blend.ingredients), "share": m.blend.share},
            }
            for m in final.members
        ],
        "adjustment": final.adjustment.to_json(),
        "latency_ms": final.latency_ms,  # of one sample alone
    }


def _best(best: Chosen, further: int) -> dict[str, Any]:
    spec = best.spec.to_json()
    return {
        "trial": best.trial.number,
        "recipe": best.trial.user_attrs.get("recipe"),
        "backbone": spec["backbone"],
        "weights": spec["weights"],
        "strategy": spec["strategy"],
        "plan": plan_to_json(best.spec.plan),
        "head": {"name": spec["head"], **spec["head_parameters"]},
        "fit": spec["fit"],
        "pooling": spec["pooling"],
        "joined": spec["joined"],
        "strength": best.trial.user_attrs.get("strength"),
        "inputs": best.trial.user_attrs.get("inputs", ""),
        "regularization": spec["regularization"],
        "optimizer": spec["optimization"],
        "joint_source_weight": spec["joint_source_weight"],
        "epochs": best.trial.user_attrs["epochs"],
        "further_epochs": further,  # with all samples, when the search had ended
        "trainable_parameters": best.trial.user_attrs["trainable_parameters"],
        "total_parameters": best.trial.user_attrs["total_parameters"],
    }


def _store(search: Search, finished: Finished) -> dict[str, Any]:
    """How often a sample went through a frozen network in this run; 0 where all outputs were stored before."""
    trials = sum(trial.user_attrs.get("rows_passed", 0) for trial in search.study.get_trials(deepcopy=False))
    surveyed = search.study.user_attrs.get(ROWS_PASSED, 0)
    return {
        "directory": str(search.prepared.store.root),
        "rows_passed": surveyed + trials + finished.rows_passed,
        "rows_passed_in": {"survey": surveyed, "trials": trials, "finish": finished.rows_passed},
        "random_rows_passed": finished.random_rows_passed,  # through random weights, to be compared with
    }


def _environment(slots: tuple[Slot, ...], search: Search) -> dict[str, Any]:
    return {
        "automl_tl": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "torch": torch.__version__,
        "optuna": optuna.__version__,
        "scikit_learn": version("scikit-learn"),
        "cores": os.cpu_count(),
        "slots": [slot.name for slot in slots],
        "seed": search.seed,
        "plugins": search.host.versions(),
        # With several slots the proposals depend on which trial ends first; a single spec repeats anywhere.
        "repeats_exactly": len(slots) == 1 and search.budget.seconds is None,
    }
