"""The end of a run: open the sealed test split once, measure the final model, and compare it with baselines.

Everything up to the opening used development samples only, and all that learns had learned by then; nothing after it is
trained, or chosen by what it shows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial

from automl_tl.data import Split, Task
from automl_tl.features.frozen import Source, store_outputs
from automl_tl.features.network import TYPES, Network
from automl_tl.features.task import OpenedSplit
from automl_tl.finish.baselines import majority
from automl_tl.finish.random_features import best_probe, random_probabilities
from automl_tl.finish.refit import Tick, load_chosen
from automl_tl.finish.rivals import RANDOM_WEIGHTS, RAW_INPUTS, Rivals
from automl_tl.finish.seeds import Refits
from automl_tl.finish.settle import Final
from automl_tl.finish.source_verdict import SourceVerdict, judge_source
from automl_tl.finish.verdict import TransferVerdict, judge, transfer_verdict
from automl_tl.finish.whole import FROM_SCRATCH, FULL_FINETUNING, Whole, searched_far_enough
from automl_tl.metrics.intervals import Interval, difference_interval, f1_interval
from automl_tl.metrics.scores import Counts, count, decide, f1, f1_per_class, report
from automl_tl.model.assemble import TransferModel
from automl_tl.model.plan import cut
from automl_tl.model.spec import TrialSpec, only_head_trains, spec_from_json
from automl_tl.search.checkpoints import probes
from automl_tl.search.copies import copies_in_test
from automl_tl.search.inputs import Reader, network_of
from automl_tl.search.search import Search
from automl_tl.search.study import completed
from automl_tl.training.train import Labelled, predict_probabilities

SHOWN = "f1_macro"  # whatever the search maximized


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What a run found; `report` makes it readable and `serve` makes it usable."""

    final: Final
    rivals: Rivals
    test: dict[str, Any] | None  # None: the task has no test split (the scikit-learn estimator)
    baselines: dict[str, dict[str, Any]]
    verdict: TransferVerdict | None  # what transfer gained over the best that does without
    transfer: dict[str, Any] | None  # transferred beside from random weights, when there is a source task
    source: SourceVerdict | None = None  # what the source task is worth, whatever the search made of it
    copies: str | None = None  # a sentence on test samples that have near-duplicates among those learnt from
    rows_passed: int = 0  # test samples that went through frozen groups, because their outputs were not stored
    random_rows_passed: int = 0  # samples that went through random weights, to be compared with


@dataclass(frozen=True)
class Measured:
    """What a final model decides of the test samples, and how much of its scores is its seed's doing."""

    labels: np.ndarray
    said: np.ndarray
    others: tuple[np.ndarray, ...]  # what the same model from other seeds decides
    refits: Refits
    task: Task

    def counts(self) -> list[Counts]:
        """Of each draw, the final model first."""
        return [count(self.labels, said, self.task.kind, self.task.n_outputs) for said in (self.said, *self.others)]

    def deviation(self, metric: str) -> float | None:
        """Standard deviation of a metric over draws; None: it is not known."""
        found = self.refits.deviation(np.array([float(f1(each, metric)) for each in self.counts()]))
        return None if found is None else float(found)

    def class_deviations(self) -> np.ndarray | float:
        """The same of the F1 of each class, (K,); 0 where it is not known."""
        found = self.refits.deviation(np.stack([f1_per_class(each) for each in self.counts()]))
        return 0.0 if found is None else found


@dataclass(frozen=True)
class Measurer:
    """Lets models of one search predict the opened test split."""

    search: Search
    test: Split
    device: str
    tick: Tick
    passed: list[int]  # rows that went through frozen groups to be stored
    passed_random: list[int]  # and through groups with random weights

    def measured(self, final: Final, refits: Refits) -> Measured:
        """A final model beside itself from other seeds."""
        others = tuple(self.final(other) for other in refits.others)
        return Measured(self.test.labels, self.final(final), others, refits, self.search.prepared.task)

    def final(self, final: Final) -> np.ndarray:
        """What a final model decides."""
        weights = np.array([member.weight for member in final.members])
        said = np.stack([self.probabilities(member.spec, member.model) for member in final.members])
        mean = np.tensordot(weights / weights.sum(), said, 1)
        kind = self.search.prepared.task.kind
        return decide(final.adjustment.apply(mean, kind), kind)

    def pass_all(self, specs: Sequence[TrialSpec]) -> None:
        """Store in one pass of each backbone all that models of these specs read of the test split.

        Left to themselves, heads on frozen features and each cut of what was trained would pass it once more.
        """
        by_backbone: dict[str, list[TrialSpec]] = {}
        for spec in specs:
            if self.search.stored_for(spec) is not None and not spec.joint_source_weight:
                by_backbone.setdefault(spec.backbone, []).append(spec)
        for name, read in by_backbone.items():
            split, stored = self.opened(read[0]), self.search.stored[name]
            cuts = {None if only_head_trains(spec) else cut(spec.plan) for spec in read} - {0}
            lacking = [each for each in cuts if not _is_stored(stored.network, each, split)]
            if not lacking:
                continue
            first, *others = sorted(lacking, key=lambda each: (each is not None, -(each or 0)))  # the deepest first
            source = Source(
                groups=network_of(self.search.host.backbone(name), stored, self.device),
                device=self.device,
                also=tuple(each for each in others if each is not None),
                passed=self.passed,
                tick=partial(self._passing, len(split.labels)),
            )
            store_outputs(stored.network, split.samples, first, source)

    def _passing(self, n: int, done: int) -> None:
        self.tick("passing the test split", done, n)

    def opened(self, spec: TrialSpec) -> OpenedSplit:
        """The test split as a spec's backbone sees it."""
        backbone = self.search.host.backbone(spec.backbone)
        return self.search.prepared.prepare(backbone, "test", self.test, self.tick).open(backbone)

    def probabilities(self, spec: TrialSpec, model: TransferModel) -> np.ndarray:
        """What one model says, (N, K)."""
        search = self.search
        backbone, split = search.host.backbone(spec.backbone), self.opened(spec)
        reader = Reader(
            spec=spec, backbone=backbone, stored=search.stored_for(spec), device=self.device, passed=self.passed
        )
        rows, start = reader.frozen(split)
        return predict_probabilities(
            model,
            Labelled(rows=rows, labels=split.labels, start=start),
            search.prepared.task.kind,
            self.device,
            tick=lambda done: self.tick("predicting the test split", done, len(rows)),
        )


def finish(
    search: Search,
    final: Final,
    rivals: Rivals,
    from_random: tuple[Search, Final] | None,
    device: str,
    *,
    tick: Tick = lambda what, done, n: None,
) -> Finished:
    """Open the test split and measure; `tick` hears how far each step is."""
    task = search.prepared.task
    if len(task.test) == 0:
        return Finished(final=final, rivals=rivals, test=None, baselines={}, verdict=None, transfer=None)
    test, passed = task.test.open(), list[int]()
    search.prepared.note("test", test)
    passed_random = [rivals.random.passed] if rivals.random is not None else []
    measurer = Measurer(search, test, device, tick, passed, passed_random)
    measurer.pass_all(_read_specs(search, final, rivals))
    ours = measurer.measured(final, rivals.refits)
    without, others = _without_transfer(measurer, rivals), _with_transfer(measurer, rivals)
    copies = _copies(measurer)
    verdict = transfer_verdict(
        test.labels,
        ours.said,
        without,
        task.kind,
        task.classes,
        metric=search.metric,
        seed_sd=ours.deviation(search.metric) or 0.0,
        class_seed_sd=ours.class_deviations(),
    )
    transfer = None
    if from_random is not None:
        other = Measurer(from_random[0], test, device, tick, passed, passed_random)
        transfer = _compare(ours, other.measured(from_random[1], rivals.refits_from_random))
    baselines = {name: _beside(ours, said) for name, said in (without | others).items()}
    if rivals.raw is not None:
        baselines[RAW_INPUTS]["n_train"] = rivals.raw.n_train  # not all of them where there are very many
    return Finished(
        final=final,
        rivals=rivals,
        test=_result(ours),
        baselines=baselines,
        verdict=verdict,
        transfer=transfer,
        source=None if rivals.source is None else judge_source(search, rivals.source, test, device),
        copies=copies,
        rows_passed=sum(passed),
        random_rows_passed=sum(passed_random),
    )


def _is_stored(network: Network, cut: int | None, split: OpenedSplit) -> bool:
    """Whether the outputs at a cut, None: the pooled ones, are there for all samples of a split."""
    return any(not len(network.entry(cut, dtype).missing(split.digests)) for dtype in TYPES)


def _without_transfer(measurer: Measurer, rivals: Rivals) -> dict[str, np.ndarray]:
    """Predictions of what one could do without a pretrained model."""
    search, test, task = measurer.search, measurer.test, measurer.search.prepared.task
    found = {"majority": majority(task, len(test.labels))}
    if rivals.raw is not None:
        found[RAW_INPUTS] = rivals.raw.predict(test.samples)
    if rivals.random is not None:
        split = measurer.opened(rivals.random.spec)
        drawn = random_probabilities(
            search, rivals.random, split, measurer.device, measurer.tick, measurer.passed_random
        )
        if drawn is not None:
            found[RANDOM_WEIGHTS] = decide(drawn, task.kind)
    if FROM_SCRATCH in rivals.whole:
        found[FROM_SCRATCH] = _whole(measurer, rivals.whole[FROM_SCRATCH])
    return found


def _copies(measurer: Measurer) -> str | None:
    """Called when the test samples have passed a probe's backbone: their outputs are stored then."""
    search, spec = measurer.search, best_probe(measurer.search)
    if spec is None:
        return None
    backbone, network = search.host.backbone(spec.backbone), search.stored[spec.backbone].network
    measurer.opened(spec)
    return copies_in_test(backbone, network, search.prepared, measurer.test.samples.ids)


def _with_transfer(measurer: Measurer, rivals: Rivals) -> dict[str, np.ndarray]:
    """Predictions of what one does who transfers without a search: only a head, or everything, trained far enough."""
    search, found = measurer.search, dict[str, np.ndarray]()
    for name, trial in _usual(search).items():
        spec = spec_from_json(trial.user_attrs["spec"])
        model = load_chosen(search, spec, search.directory / str(trial.number), measurer.device)
        found[name] = _whole(measurer, Whole(spec, model))
    if FULL_FINETUNING in rivals.whole:
        found[FULL_FINETUNING] = _whole(measurer, rivals.whole[FULL_FINETUNING])
    return found


def _usual(search: Search) -> dict[str, FrozenTrial]:
    """Trials of the search that are what one does without it."""
    tuned = searched_far_enough(search)
    trials = {"linear_probe": probes(completed(search.study))[:1], FULL_FINETUNING: [tuned] if tuned else []}
    return {name: found[0] for name, found in trials.items() if found}


def _read_specs(search: Search, final: Final, rivals: Rivals) -> list[TrialSpec]:
    """Of all models that will predict the test split from transferred weights."""
    members = [member.spec for each in (final, *rivals.refits.others) for member in each.members]
    usual = [spec_from_json(trial.user_attrs["spec"]) for trial in _usual(search).values()]
    return [*members, *usual, *(whole.spec for whole in rivals.whole.values())]


def _whole(measurer: Measurer, whole: Whole) -> np.ndarray:
    """What a model of its own decides."""
    return decide(measurer.probabilities(whole.spec, whole.model), measurer.search.prepared.task.kind)


def _result(ours: Measured) -> dict[str, Any]:
    """The test scores of a final model; intervals are as wide as its seed and the test samples make them together."""
    deviation = ours.deviation(SHOWN)
    return {
        **_score(ours, ours.said, deviation or 0.0),
        "seed_sd": deviation,
        "seeds_missing": ours.refits.missing or None,
        "refits": None if deviation is None else [float(f1(each, SHOWN)) for each in ours.counts()],
    }


def _beside(ours: Measured, said: np.ndarray) -> dict[str, Any]:
    """The test scores of a baseline, and by how much ours are above them."""
    low, high = _difference(ours, said, ours.deviation(SHOWN) or 0.0)
    scores = _score(ours, said, 0.0)
    return {
        **scores,
        "gain_f1_macro": float(f1(ours.counts()[0], SHOWN)) - scores["f1_macro"],
        "gain_f1_macro_ci95": [low, high],
    }


def _score(ours: Measured, said: np.ndarray, seed_sd: float) -> dict[str, Any]:
    task = ours.task
    scores = report(ours.labels, said, task.kind, task.classes)
    interval = f1_interval(ours.labels, said, task.kind, task.n_outputs, seed_sd=seed_sd)
    return {"f1_macro": scores.pop("f1_macro"), "f1_macro_ci95": list(interval), **scores}


def _difference(ours: Measured, said: np.ndarray, seed_sd: float) -> Interval:
    task = ours.task
    return difference_interval(ours.labels, ours.said, said, task.kind, task.n_outputs, seed_sd=seed_sd)


def _compare(ours: Measured, random: Measured) -> dict[str, Any]:
    deviations = [each.deviation(SHOWN) or 0.0 for each in (ours, random)]
    scores = [_score(ours, each.said, sd) for each, sd in zip((ours, random), deviations, strict=True)]
    low, high = _difference(ours, random.said, math.hypot(*deviations))
    shown = ("accuracy", "recall_macro", "f1_macro", "f1_macro_ci95")
    return {
        "transferred": {key: scores[0][key] for key in shown},
        "from_random": {key: scores[1][key] for key in shown},
        "gain_f1_macro": scores[0]["f1_macro"] - scores[1]["f1_macro"],
        "gain_f1_macro_ci95": [low, high],
        "verdict": judge((low, high)),
    }
