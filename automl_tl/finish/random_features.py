"""What transfer is held against: the same head on the same architecture with random weights.

It says what the architecture alone is good for.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from automl_tl.features.task import OpenedSplit
from automl_tl.finish.refit import Tick
from automl_tl.model.spec import TrialSpec, spec_from_json
from automl_tl.probes.join import fit_joined
from automl_tl.search.inputs import Reader, stored_network
from automl_tl.search.scores import subset
from automl_tl.search.search import Search
from automl_tl.search.study import completed

MOST_ROWS = 1000  # development samples that the random features' head learns from: they are a yardstick, no contender
RANDOM_SEED = 0


def best_probe(search: Search) -> TrialSpec | None:
    """The best head that was solved for on transferred features."""
    for trial in completed(search.study):
        spec = spec_from_json(trial.user_attrs["spec"])
        if spec.fit in ("ridge", "logistic") and search.stored_for(spec) is not None:
            return spec
    return None


def random_features(
    search: Search, spec: TrialSpec, test: OpenedSplit, device: str, tick: Tick, passed: list[int]
) -> np.ndarray:
    """Probabilities (N, K) of ridge regression on the taps of `spec`, its network's weights drawn at random.

    Some of the development samples and all of the test samples pass the network, unless they did in an earlier run.
    """
    backbone, share = search.host.backbone(spec.backbone), search.stored[spec.backbone].device_share
    groups, task = search.context.backbones[spec.backbone], search.prepared.task
    drawn = stored_network(search.host, backbone, search.prepared, groups, None, share, random_seed=RANDOM_SEED)
    every = search.prepared.files(backbone, "development")
    chosen = subset(every.labels(), MOST_ROWS, search.seed, multilabel=task.kind == "multilabel")
    train = every.only(chosen).open(backbone)
    reader = Reader(spec=replace(spec, fit="ridge"), backbone=backbone, stored=drawn, device=device, passed=passed)
    tick("random weights, to be compared with", 0, len(chosen) + len(test.labels))
    seen, unseen = reader.clean_features(train), reader.clean_features(test)
    if seen is None or unseen is None:
        return np.full((len(test.labels), task.n_outputs), 1 / task.n_outputs)
    edges = np.cumsum(reader.widths())[:-1]
    fit = fit_joined(
        np.split(seen.features(), edges, axis=1),
        train.labels,
        task.kind,
        task.n_outputs,
        metric=search.metric,
        groups=train.groups,
    )
    logits = unseen.features() @ fit.weight + fit.bias
    if task.kind == "multilabel":
        return np.asarray(1 / (1 + np.exp(-logits)))
    likely = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(likely / likely.sum(1, keepdims=True))
