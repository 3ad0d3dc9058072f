"""What transfer is held against: the same head on the same architecture with random weights.

It says what the architecture alone is good for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from automl_tl.engine.spread import Crew
from automl_tl.features.task import OpenedSplit, SplitFiles
from automl_tl.finish.refit import Tick
from automl_tl.finish.settle import Final
from automl_tl.model.plan import tap
from automl_tl.model.spec import TrialSpec, spec_from_json
from automl_tl.probes.fit import ProbeFit
from automl_tl.probes.join import fit_joined
from automl_tl.search.inputs import Reader, Stored, stored_network
from automl_tl.search.passes import pass_backbone
from automl_tl.search.scores import subset
from automl_tl.search.search import Search
from automl_tl.search.space import frozen_until
from automl_tl.search.study import completed

MOST_ROWS = 1000  # development samples that the random features' head learns from: they are a yardstick, no contender
RANDOM_SEED = 0
WHAT = "random weights, to be compared with"


@dataclass(frozen=True, kw_only=True)
class RandomFeatures:
    """A network with random weights that some development samples have passed, and a head that reads it."""

    spec: TrialSpec
    stored: Stored
    files: SplitFiles  # those samples
    fit: ProbeFit
    passed: int  # of them, now; the others had passed it in an earlier run


def best_probe(search: Search) -> TrialSpec | None:
    """The best head that was solved for on transferred features."""
    for trial in completed(search.study):
        spec = spec_from_json(trial.user_attrs["spec"])
        if spec.fit in ("ridge", "logistic") and search.stored_for(spec) is not None:
            return spec
    return None


def readable(search: Search, final: Final) -> TrialSpec | None:
    """The head that is compared with itself on random weights: the best that was solved for, else one on the best tap.

    None where nothing was transferred.
    """
    spec, best = best_probe(search), final.best.spec
    if spec is not None or search.stored_for(best) is None:
        return spec
    names = [group.group for group in best.plan]
    return replace(best, fit="ridge", joined=(), plan=frozen_until(names, tap(best.plan) + 1))


def seconds_to_pass(search: Search, spec: TrialSpec, slots: int) -> float:
    """What it takes until the samples that are learned from, and those of the test split, have passed the network."""
    learned = min(MOST_ROWS, len(search.prepared.development().labels))
    rows = learned / slots + len(search.prepared.task.test)
    return rows * search.stored[spec.backbone].network.seconds_per_row


def fit_random_features(search: Search, spec: TrialSpec, crew: Crew, device: str, tick: Tick) -> RandomFeatures | None:
    """Ridge regression on the taps of `spec`, its network's weights drawn at random; None: its outputs are not kept.

    Raises AutomlTlError as `pass_backbone` does.
    """
    backbone, share = search.host.backbone(spec.backbone), search.stored[spec.backbone].device_share
    groups, task = search.context.backbones[spec.backbone], search.prepared.task
    drawn = stored_network(search.host, backbone, search.prepared, groups, None, share, random_seed=RANDOM_SEED)
    every = search.prepared.files(backbone, "development")
    files = every.only(subset(every.labels(), MOST_ROWS, search.seed, multilabel=task.kind == "multilabel"))
    passed = pass_backbone(
        search.host,
        backbone,
        drawn,
        [files],
        crew,
        lambda what, done, total: tick(WHAT, done, total),
        sitting=search.clock.began,
    )
    spec, stored, train = replace(spec, fit="ridge"), replace(drawn, network=passed.network), files.open(backbone)
    reader = Reader(spec=spec, backbone=backbone, stored=stored, device=device)
    rows = reader.clean_features(train)
    if rows is None:
        return None
    fit = fit_joined(
        np.split(rows.features(), np.cumsum(reader.widths())[:-1], axis=1),
        train.labels,
        task.kind,
        task.n_outputs,
        metric=search.metric,
        groups=train.groups,
    )
    return RandomFeatures(spec=spec, stored=stored, files=files, fit=fit, passed=passed.rows)


def random_probabilities(
    search: Search, known: RandomFeatures, test: OpenedSplit, device: str, tick: Tick, passed: list[int]
) -> np.ndarray | None:
    """What the head says of the test samples, (N, K), when they have passed the network; None: there is no room."""
    backbone = search.host.backbone(known.spec.backbone)
    reader = Reader(spec=known.spec, backbone=backbone, stored=known.stored, device=device, passed=passed)
    tick(WHAT, 0, len(test.labels))
    rows = reader.clean_features(test)
    if rows is None:
        return None
    logits = rows.features() @ known.fit.weight + known.fit.bias
    if search.prepared.task.kind == "multilabel":
        return np.asarray(1 / (1 + np.exp(-logits)))
    likely = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(likely / likely.sum(1, keepdims=True))
