"""What was transferred, layer group by layer group: the same linear head on transferred features and on random ones.

The difference of their left-out scores says how much of what a group's output is worth was learned elsewhere. Where it
is gone, transferred weights are as good as none, and the groups from there on may be trained anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from automl_tl.engine.spread import Crew, spread
from automl_tl.features.frozen import pooled_rows
from automl_tl.features.network import Network
from automl_tl.features.task import SplitFiles
from automl_tl.host import PluginSources
from automl_tl.metrics.intervals import Interval, difference_interval
from automl_tl.metrics.scores import Kind, decide
from automl_tl.plugin import Backbone
from automl_tl.probes.ridge import fit_ridge
from automl_tl.search.passes import Progress
from automl_tl.search.plugins import host_in_child
from automl_tl.search.scores import POOLING

if TYPE_CHECKING:  # a child that compares taps needs no study
    from automl_tl.search.search import Search


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthGain:
    """Left-out scores of a linear head that reads one layer group's output: transferred, random, their difference."""

    layer_group: str
    transferred: float
    random: float
    gain: float
    interval: Interval  # 95 %, paired, of the gain

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "interval": list(self.interval)}


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthOrder:
    """What crosses into the child that compares one tap."""

    sources: PluginSources
    sitting: float
    backbone: str
    transferred: Network
    random: Network
    files: SplitFiles  # of samples that both have passed
    tap: int  # from 1
    kind: Kind
    n_outputs: int
    metric: str


def gain_by_depth(
    search: Search, backbone: Backbone, random: Network, files: SplitFiles, crew: Crew, tick: Progress
) -> tuple[DepthGain, ...]:
    """Compare every tap of a backbone, shallow to deep, on samples that have passed both networks."""
    task = search.prepared.task
    orders = [
        DepthOrder(
            sources=search.host.sources,
            sitting=search.clock.began,
            backbone=backbone.name,
            transferred=search.stored[backbone.name].network,
            random=random,
            files=files,
            tap=tap,
            kind=task.kind,
            n_outputs=task.n_outputs,
            metric=search.metric,
        )
        for tap in range(len(backbone.layer_groups), 0, -1)  # the widest first, so that none of them is left for last
    ]
    gains = spread(
        crew,
        lambda slot, order: crew.children.run(slot, gain_at, order),
        orders,
        tick=lambda done: tick("comparing layer groups with random weights", done, len(orders)),
    )
    return tuple(gain for gain in reversed(gains) if gain is not None)


def gain_at(order: DepthOrder) -> DepthGain | None:
    """In a child: compare one tap; None when its outputs are not stored."""
    backbone = host_in_child(order.sources, order.sitting).backbone(order.backbone)
    split, fits = order.files.open(backbone), []
    for network in (order.transferred, order.random):
        rows = pooled_rows(network, split.samples, [order.tap], POOLING)
        if rows is None:
            return None
        features = rows.batch(np.arange(len(split.labels)), "cpu").numpy()
        fits.append(
            fit_ridge(features, split.labels, order.kind, order.n_outputs, metric=order.metric, groups=split.groups)
        )
    transferred, random = fits
    interval = difference_interval(
        split.labels,
        decide(transferred.out_of_fold, order.kind),
        decide(random.out_of_fold, order.kind),
        order.kind,
        order.n_outputs,
        metric=order.metric,
    )
    return DepthGain(
        layer_group=backbone.layer_groups[order.tap - 1],
        transferred=transferred.score,
        random=random.score,
        gain=transferred.score - random.score,
        interval=interval,
    )


def gone_from(gains: Sequence[DepthGain]) -> str | None:
    """The first layer group from which on no gain is surely above 0; None: the last one still gains."""
    sure = [gain.interval[0] > 0 for gain in gains]
    first = max((number + 1 for number, each in enumerate(sure) if each), default=0)
    return gains[first].layer_group if first < len(gains) else None
