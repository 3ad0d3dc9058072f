"""The end of a search, in order: pick the best trial, open the sealed test split once, measure it and its baselines.

Everything up to the opening used validation scores only; nothing after it is chosen by what it shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from automl_tl.data import Split, Task
from automl_tl.errors import TrialError
from automl_tl.finish.baselines import majority, raw_inputs
from automl_tl.metrics.intervals import difference_interval, f1_interval
from automl_tl.metrics.scores import decide, report
from automl_tl.model.assemble import TransferModel, assemble
from automl_tl.model.spec import TrialSpec, spec_from_json
from automl_tl.search.inputs import Reader, Stored
from automl_tl.search.search import Search, checkpoint_of, probes, reason_of, trial_seed
from automl_tl.search.study import completed, settled
from automl_tl.search.trial import load_trained
from automl_tl.training.train import Labelled, predict_probabilities

Tick = Callable[[str, int, int], None]
"""(what is going on, samples done, samples in all)"""


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A search's best trial, with its trained model."""

    trial: FrozenTrial
    spec: TrialSpec
    model: TransferModel


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What a run found; `report` makes it readable and `serve` makes it usable."""

    best: Chosen
    test: dict[str, Any] | None  # None: the task has no test split (the scikit-learn estimator)
    baselines: dict[str, dict[str, Any]]
    transfer: dict[str, Any] | None  # transferred beside from random weights, when there is a source task
    rows_passed: int = 0  # test samples that went through frozen groups, because their outputs were not stored


def finish(
    search: Search, from_random: Search | None, device: str, *, tick: Tick = lambda what, done, n: None
) -> Finished:
    """Choose by validation, then open the test split and measure; `tick` hears how far each step is."""
    best = choose(search, device)
    rival = choose(from_random, device) if from_random is not None else None
    task = search.prepared.task
    if len(task.test) == 0:
        return Finished(best=best, test=None, baselines={}, transfer=None)

    test, passed = task.test.open(), list[int]()
    search.prepared.note("test", test)
    scores, said = _measure(search, best, test, device, tick, passed)
    baselines = {
        "majority": _score(task, test, majority(task, len(test.labels))),
        "raw_inputs": _score(task, test, raw_inputs(task, test, seed=search.seed)),
    }
    for probe in probes(completed(search.study))[:1]:
        is_best = probe.number == best.trial.number
        baselines["linear_probe"] = (
            scores if is_best else _measure(search, _load(search, probe, device), test, device, tick, passed)[0]
        )
    transfer = None
    if from_random is not None and rival is not None:
        beside, rival_said = _measure(from_random, rival, test, device, tick, passed)
        transfer = _compare(task, test, (scores, said), (beside, rival_said))
    return Finished(best=best, test=scores, baselines=baselines, transfer=transfer, rows_passed=sum(passed))


def choose(search: Search, device: str) -> Chosen:
    """The complete trial with the best validation score, its model loaded; raises TrialError when there is none."""
    ranked = completed(search.study)
    if not ranked:
        failures = [trial for trial in settled(search.study) if trial.state == TrialState.FAIL]
        why = f"the first failure: {reason_of(failures[0])}" if failures else "give it more time, or more trials"
        raise TrialError(f"study {search.study.study_name!r}: no trial was completed; {why}")
    return _load(search, ranked[0], device)


def _load(search: Search, trial: FrozenTrial, device: str) -> Chosen:
    """Rebuild a trial's model from its spec and put its trained state in."""
    spec = spec_from_json(trial.user_attrs["spec"])
    backbone = search.host.backbone(spec.backbone)
    transferred = search.source is not None and search.context.joint_with == spec.backbone and spec.weights != "random"
    model = assemble(
        spec,
        backbone,
        search.host.head(spec.head),
        search.prepared.interface(backbone),
        source_weights=search.source.checkpoint if transferred and search.source else None,
        seed=trial_seed(search.seed, spec),
    )
    return Chosen(trial=trial, spec=spec, model=load_trained(checkpoint_of(search, trial), model).to(device))


def _measure(
    search: Search, chosen: Chosen, test: Split, device: str, tick: Tick, passed: list[int]
) -> tuple[dict[str, Any], np.ndarray]:
    """Scores on the test split with their interval, and the predictions they are of."""
    backbone = search.host.backbone(chosen.spec.backbone)
    split = search.prepared.prepare(backbone, "test", test, tick).open(backbone)
    reader = Reader(
        spec=chosen.spec, backbone=backbone, stored=_stored(search, chosen.spec), device=device, passed=passed
    )
    rows, start = reader.frozen(split)
    task = search.prepared.task
    said = predict_probabilities(
        chosen.model,
        Labelled(rows=rows, labels=split.labels, start=start),
        task.kind,
        device,
        tick=lambda done: tick("predicting the test split", done, len(rows)),
    )
    predictions = decide(said, task.kind)
    return _score(task, test, predictions), predictions


def _stored(search: Search, spec: TrialSpec) -> Stored | None:
    return search.stored.get(spec.backbone) if spec.weights == "transferred" else None


def _score(task: Task, split: Split, said: np.ndarray) -> dict[str, Any]:
    scores = report(split.labels, said, task.kind, task.classes)
    interval = f1_interval(split.labels, said, task.kind, len(task.classes))
    return {"f1_macro": scores.pop("f1_macro"), "f1_macro_ci95": list(interval), **scores}


def _compare(
    task: Task, test: Split, transferred: tuple[dict[str, Any], np.ndarray], random: tuple[dict[str, Any], np.ndarray]
) -> dict[str, Any]:
    shown = ("accuracy", "recall_macro", "f1_macro", "f1_macro_ci95")
    low, high = difference_interval(test.labels, transferred[1], random[1], task.kind, len(task.classes))
    return {
        "transferred": {key: transferred[0][key] for key in shown},
        "from_random": {key: random[0][key] for key in shown},
        "gain_f1_macro": transferred[0]["f1_macro"] - random[0]["f1_macro"],
        "gain_f1_macro_ci95": [low, high],
        "verdict": "positive" if low > 0 else "negative transfer" if high < 0 else "inconclusive",
    }
