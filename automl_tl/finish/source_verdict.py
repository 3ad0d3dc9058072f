"""What a source task taught its network that the target task can use, whatever the search made of it.

A search takes the layer groups that serve and trains the others anew, so its score hardly shows how bad a source was.
Here the network is taken whole and frozen, as the source task left it and as it was before: with the weights it was
published with, or several draws of random ones. The same head, ridge regression, learns from development samples what
their last layer groups put out, and is asked for the same test samples. And the source model itself must have learned:
its confusion matrix on source samples held back says so.

The rule has no thresholds but its levels; `benchmarks/negative_transfer.py` rates it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from automl_tl.data import Split
from automl_tl.features.frozen import Samples, Source, pooled_rows, store_outputs
from automl_tl.features.task import PreparedTask, lay_out_task, prepare_task
from automl_tl.finish.refit import Tick
from automl_tl.finish.verdict import Judgement, judge
from automl_tl.metrics.intervals import Interval, difference_interval
from automl_tl.metrics.scores import Kind, count, f1
from automl_tl.plugin import Backbone
from automl_tl.probes.fit import ProbeFit
from automl_tl.probes.ridge import fit_ridge
from automl_tl.search.inputs import Stored, network_of, stored_network
from automl_tl.search.scores import POOLING, subset
from automl_tl.search.search import Search
from automl_tl.search.source import FACTS

MOST_ROWS = 1000  # development samples that a head learns from
MOST_TEST_ROWS = 2000
LEAST_DRAWS, MOST_DRAWS = 2, 5  # of random weights: one draw may be lucky
SHARE = 0.1  # of the time limit, that passing them may take
UNLEARNED = 0.01  # probability that a source model which only guesses passes for one that has learned


@dataclass(frozen=True, kw_only=True)
class SourceVerdict:
    """What a user should know of a source task; scores are the metric on test samples."""

    verdict: Judgement
    learned: bool | None  # whether the source model does better than guess; None: several labels a sample
    beside: str  # what the network is without the source task
    layer_group: str  # the last one, which is read
    with_source: float
    without: tuple[float, ...]  # one number a draw of weights
    gain: float  # over their mean
    interval: Interval  # 95 %, paired

    @property
    def flagged(self) -> bool:
        """Whether the user should be warned: nothing shows that the source task helps, or it does harm."""
        return self.verdict != "positive" or self.learned is False

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        values = asdict(self) | {"without": list(self.without), "interval": list(self.interval)}
        return {**values, "flagged": self.flagged, "sentence": self.sentence()}

    def sentence(self) -> str:
        """The verdict in one sentence, with its numbers."""
        low, high = self.interval
        gain = f"{self.gain:+.3f} [{low:+.3f}, {high:+.3f}] beside {self.beside}, frozen and read at {self.layer_group}"
        if self.learned is False:
            return f"the source model does no better on its own task than guessing, check its labels; {gain}"
        if self.verdict == "positive":
            return f"the source task helps: {gain}"
        if self.verdict == "negative transfer":
            return f"negative transfer: taken whole, the source model does harm: {gain}"
        return f"nothing shows that the source task helps: {gain}"


def source_verdict(
    labels: np.ndarray,
    with_source: np.ndarray,
    without: Sequence[np.ndarray],
    kind: Kind,
    n_classes: int,
    *,
    learned: bool | None,
    beside: str,
    layer_group: str,
    metric: str = "f1_macro",
) -> SourceVerdict:
    """Positive where the source task surely gains, negative transfer where it surely loses, else inconclusive.

    The source's network began from one draw of weights, too, and may owe it as much as any other does: so the interval
    is as wide as the test samples and the spread of the draws make it together.

    Args:
        labels: (N,) classes, or (N, K) indicators, of test samples.
        with_source: predictions in the same form.
        without: the same of the network without the source task, one for each draw of its weights.
        kind: one label a sample or several.
        n_classes: K.
        learned: see `has_learned`.
        beside: what the network is without the source task.
        layer_group: what is read.
        metric: one of `metrics.scores.f1`.
    """
    score, *draws = (float(f1(count(labels, said, kind, n_classes), metric)) for said in (with_source, *without))
    spread = float(np.std(draws, ddof=1)) if len(draws) > 1 else 0.0
    seed_sd = spread * math.sqrt(1 + 1 / len(draws))
    bounds = [
        difference_interval(labels, with_source, said, kind, n_classes, metric=metric, seed_sd=seed_sd)
        for said in without
    ]
    low, high = np.mean(bounds, axis=0).tolist()
    return SourceVerdict(
        verdict=judge((low, high)),
        learned=learned,
        beside=beside,
        layer_group=layer_group,
        with_source=score,
        without=tuple(draws),
        gain=score - float(np.mean(draws)),
        interval=(low, high),
    )


def has_learned(confusion: np.ndarray) -> bool:
    """Whether predictions agree with labels (K, K) surely more often than if they had nothing to do with each other.

    By the kappa statistic and its normal approximation under independence (Fleiss, Cohen and Everitt 1969).
    """
    from scipy.special import ndtri

    n = confusion.sum()
    true, said = confusion.sum(1) / n, confusion.sum(0) / n
    expected = float(true @ said)
    variance = (expected + expected**2 - float((true * said) @ (true + said))) / n
    if variance <= 0:  # one and the same answer for all samples
        return False
    return bool((np.trace(confusion) / n - expected) / math.sqrt(variance) > ndtri(1 - UNLEARNED))


@dataclass(frozen=True, kw_only=True)
class SourceHead:
    """A head that was fitted on development samples to one network's last layer group."""

    prepared: PreparedTask  # the target task as this network sees it
    stored: Stored
    fit: ProbeFit


@dataclass(frozen=True, kw_only=True)
class SourceHeads:
    """Heads on the source's network, and on the same without the source task, one for each draw of its weights."""

    backbone: Backbone
    with_source: SourceHead
    without: tuple[SourceHead, ...]


def learn_source(search: Search, device: str, tick: Tick = lambda what, done, n: None) -> SourceHeads | None:
    """Fit the heads, before the test split is opened; None where there is no source task, or no room to compare.

    Development samples pass the network without the source task; with it they have passed in the search.
    """
    name = next((name for name, stored in search.stored.items() if stored.source_weights is not None), None)
    if name is None:
        return None
    backbone, alone = search.host.backbone(name), _target_alone(search, name)
    networks = [(search.prepared, search.stored[name])]
    networks += [(alone, stored) for stored in _without_source(search, backbone, alone)]
    found = []
    for number, (prepared, stored) in enumerate(networks):
        tick("comparing with the network without its source task", number, len(networks))
        files = prepared.files(backbone, "development")
        split = files.only(_some(search, files.labels(), MOST_ROWS)).open(backbone)
        seen = _last_outputs(stored, split.samples, backbone, device)
        if seen is None:
            return None
        task = prepared.task
        fit = fit_ridge(seen, split.labels, task.kind, task.n_outputs, metric=search.metric, groups=split.groups)
        found.append(SourceHead(prepared=prepared, stored=stored, fit=fit))
    return SourceHeads(backbone=backbone, with_source=found[0], without=tuple(found[1:]))


def judge_source(search: Search, heads: SourceHeads, test: Split, device: str) -> SourceVerdict | None:
    """Ask the heads for samples of the opened test split; None where there is no room for what they read."""
    assert search.source is not None
    task, backbone = search.prepared.task, heads.backbone
    asked = _some(search, test.labels, MOST_TEST_ROWS)
    said = []
    for head in (heads.with_source, *heads.without):
        each = _said(head, test, asked, backbone, device)
        if each is None:
            return None
        said.append(each)
    confusion = json.loads(search.source.checkpoint.with_name(FACTS).read_text(encoding="utf-8"))["confusion"]
    return source_verdict(
        test.labels[asked],
        said[0],
        said[1:],
        task.kind,
        task.n_outputs,
        learned=None if confusion is None else has_learned(np.array(confusion)),
        beside="random weights" if backbone.weights is None else "its published weights",
        layer_group=backbone.layer_groups[-1],
        metric=search.metric,
    )


def _some(search: Search, labels: np.ndarray, most: int) -> np.ndarray:
    return subset(labels, most, search.seed, multilabel=search.prepared.task.kind == "multilabel")


def _target_alone(search: Search, name: str) -> PreparedTask:
    """The target task as the network sees it without a source: tables are then scaled by their own training rows."""
    prepared, backbone = search.prepared, search.host.backbone(name)
    if prepared.formats[name].encoder is None:
        return prepared
    directory = prepared.directory.with_name("target_alone")
    alone = lay_out_task(prepared.task, (backbone,), directory, prepared.store)
    prepare_task(alone, (backbone,), lambda what, done, n: None)
    return alone


def _without_source(search: Search, backbone: Backbone, prepared: PreparedTask) -> list[Stored]:
    """The network as it was before the source task: with published weights, or several draws of random ones."""
    known, groups = search.stored[backbone.name], search.context.backbones[backbone.name]

    def network(weights: Path | None, seed: int | None) -> Stored:
        found = stored_network(search.host, backbone, prepared, groups, weights, known.device_share, random_seed=seed)
        return replace(found, network=replace(found.network, compute=known.network.compute))

    if backbone.weights is not None:
        return [network(backbone.weights.find(), None)]
    limit, rows = search.budget.seconds, MOST_ROWS + min(MOST_TEST_ROWS, len(prepared.task.test))
    seconds = rows * known.network.seconds_per_row
    draws = MOST_DRAWS if limit is None or not seconds else int(SHARE * limit / seconds)
    return [network(None, seed) for seed in range(min(MOST_DRAWS, max(LEAST_DRAWS, draws)))]


def _said(head: SourceHead, test: Split, asked: np.ndarray, backbone: Backbone, device: str) -> np.ndarray | None:
    """What a head predicts of some test samples; None: there is no room for what it reads."""
    head.prepared.note("test", test)
    files = head.prepared.prepare(backbone, "test", test, lambda what, done, n: None)
    unseen = _last_outputs(head.stored, files.only(asked).open(backbone).samples, backbone, device)
    if unseen is None:
        return None
    logits = unseen @ head.fit.weight + head.fit.bias
    return np.asarray((logits >= 0) if head.prepared.task.kind == "multilabel" else logits.argmax(1), dtype=np.int64)


def _last_outputs(stored: Stored, samples: Samples, backbone: Backbone, device: str) -> np.ndarray | None:
    """Pooled outputs (N, d) of the last layer group; what is not stored yet is stored."""
    taps = [len(backbone.layer_groups)]
    rows = pooled_rows(stored.network, samples, taps, POOLING)
    if rows is None:
        groups = network_of(backbone, stored, device)
        if store_outputs(stored.network, samples, None, Source(groups=groups, device=device)):
            rows = pooled_rows(stored.network, samples, taps, POOLING)
    return None if rows is None else rows.features()
