"""The end of a run: open the sealed test split once, measure the final model, and compare it with baselines.

Everything up to the opening used development samples only; nothing after it is chosen by what it shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from automl_tl.data import Split, Task
from automl_tl.features.task import OpenedSplit
from automl_tl.finish.baselines import majority, raw_inputs
from automl_tl.finish.random_features import MOST_ROWS, best_probe, random_features
from automl_tl.finish.refit import Chosen, Tick, load_chosen
from automl_tl.finish.settle import Final
from automl_tl.finish.verdict import TransferVerdict, judge, transfer_verdict
from automl_tl.metrics.intervals import difference_interval, f1_interval
from automl_tl.metrics.scores import decide, report
from automl_tl.model.spec import TrialSpec, spec_from_json
from automl_tl.search.checkpoints import full_finetunings, probes
from automl_tl.search.copies import copies_in_test
from automl_tl.search.inputs import Reader
from automl_tl.search.search import Search
from automl_tl.search.study import completed
from automl_tl.training.train import Labelled, predict_probabilities

YARDSTICK_SHARE = 0.1  # of the time limit, that passing random weights may take after it


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What a run found; `report` makes it readable and `serve` makes it usable."""

    final: Final
    test: dict[str, Any] | None  # None: the task has no test split (the scikit-learn estimator)
    baselines: dict[str, dict[str, Any]]
    verdict: TransferVerdict | None  # what transfer gained over the best that does without
    transfer: dict[str, Any] | None  # transferred beside from random weights, when there is a source task
    copies: str | None = None  # a sentence on test samples that have near-duplicates among those learnt from
    rows_passed: int = 0  # test samples that went through frozen groups, because their outputs were not stored
    random_rows_passed: int = 0  # samples that went through random weights, to be compared with


@dataclass(frozen=True)
class Measurer:
    """Lets models of one search predict the opened test split."""

    search: Search
    test: Split
    device: str
    tick: Tick
    passed: list[int]  # rows that went through frozen groups to be stored
    passed_random: list[int]  # and through groups with random weights

    def final(self, final: Final) -> np.ndarray:
        """What the final model decides."""
        weights = np.array([member.weight for member in final.members])
        said = np.stack([self.probabilities(member) for member in final.members])
        mean = np.tensordot(weights / weights.sum(), said, 1)
        kind = self.search.prepared.task.kind
        return decide(final.adjustment.apply(mean, kind), kind)

    def opened(self, spec: TrialSpec) -> OpenedSplit:
        """The test split as a spec's backbone sees it."""
        backbone = self.search.host.backbone(spec.backbone)
        return self.search.prepared.prepare(backbone, "test", self.test, self.tick).open(backbone)

    def probabilities(self, chosen: Chosen) -> np.ndarray:
        """What one model says, (N, K)."""
        search, spec = self.search, chosen.spec
        backbone, split = search.host.backbone(spec.backbone), self.opened(spec)
        reader = Reader(
            spec=spec, backbone=backbone, stored=search.stored_for(spec), device=self.device, passed=self.passed
        )
        rows, start = reader.frozen(split)
        return predict_probabilities(
            chosen.model,
            Labelled(rows=rows, labels=split.labels, start=start),
            search.prepared.task.kind,
            self.device,
            tick=lambda done: self.tick("predicting the test split", done, len(rows)),
        )


def finish(
    search: Search,
    final: Final,
    from_random: tuple[Search, Final] | None,
    device: str,
    *,
    tick: Tick = lambda what, done, n: None,
) -> Finished:
    """Open the test split and measure; `tick` hears how far each step is."""
    task = search.prepared.task
    if len(task.test) == 0:
        return Finished(final=final, test=None, baselines={}, verdict=None, transfer=None)
    test, passed = task.test.open(), list[int]()
    search.prepared.note("test", test)
    passed_random = list[int]()
    measurer = Measurer(search, test, device, tick, passed, passed_random)
    said = measurer.final(final)
    scores = _score(task, test, said)
    without, others = _without_transfer(measurer), _with_transfer(measurer)
    baselines = {name: _score(task, test, each) for name, each in (without | others).items()}
    copies = _copies(measurer)
    verdict = transfer_verdict(test.labels, said, without, task.kind, task.classes, metric=search.metric)
    transfer = None
    if from_random is not None:
        beside = Measurer(from_random[0], test, device, tick, passed, passed_random).final(from_random[1])
        transfer = _compare(task, test, (scores, said), (_score(task, test, beside), beside))
    return Finished(
        final=final,
        test=scores,
        baselines=baselines,
        verdict=verdict,
        transfer=transfer,
        copies=copies,
        rows_passed=sum(passed),
        random_rows_passed=sum(passed_random),
    )


def _without_transfer(measurer: Measurer) -> dict[str, np.ndarray]:
    """Predictions of what one could do without a pretrained model."""
    search, test, task = measurer.search, measurer.test, measurer.search.prepared.task
    found = {
        "majority": majority(task, len(test.labels)),
        "raw_inputs": raw_inputs(task, test, seed=search.seed),
    }
    spec = best_probe(search)
    if spec is not None and _is_quick(search, spec, len(test.labels)):
        split = measurer.opened(spec)
        drawn = random_features(search, spec, split, measurer.device, measurer.tick, measurer.passed_random)
        found["random_weights"] = decide(drawn, task.kind)
    return found


def _copies(measurer: Measurer) -> str | None:
    """Called when the test samples have passed a probe's backbone: their outputs are stored then."""
    search, spec = measurer.search, best_probe(measurer.search)
    if spec is None:
        return None
    backbone, network = search.host.backbone(spec.backbone), search.stored[spec.backbone].network
    measurer.opened(spec)
    return copies_in_test(backbone, network, search.prepared, measurer.test.samples.ids)


def _is_quick(search: Search, spec: TrialSpec, n_test: int) -> bool:
    """Whether random weights can be passed in a small part of the time that the user gave."""
    limit, rows = search.budget.seconds, MOST_ROWS + n_test
    seconds = rows * search.stored[spec.backbone].network.seconds_per_row
    return limit is None or seconds <= YARDSTICK_SHARE * limit


def _with_transfer(measurer: Measurer) -> dict[str, np.ndarray]:
    """Predictions of what one does who transfers without a search: only a head, or everything, trained far enough."""
    search, found = measurer.search, dict[str, np.ndarray]()
    ranked, enough = completed(search.study), search.budget.max_epochs / 2
    tuned = [trial for trial in full_finetunings(ranked)[:1] if trial.user_attrs["epochs"] >= enough]
    usual = {"linear_probe": probes(ranked)[:1], "full_finetuning": tuned}
    for name, trials in usual.items():
        for trial in trials:
            spec = spec_from_json(trial.user_attrs["spec"])
            model = load_chosen(search, spec, search.directory / str(trial.number), measurer.device)
            said = measurer.probabilities(Chosen(trial=trial, spec=spec, model=model))
            found[name] = decide(said, search.prepared.task.kind)
    return found


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
        "verdict": judge((low, high)),
    }
