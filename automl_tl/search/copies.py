"""Near-duplicates: among the development samples, by the first backbone that is passed; in the test split, at the end.

A copy on the other side of a split is an answer that was seen before: scores would lie. So copies stay together in
every split of development samples, and the user hears of them and of those in the test split, which stays as it is.
One that was drawn holds no equal samples, see `data.copies`; near ones can only be known by features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from automl_tl.engine.spread import Crew
from automl_tl.features.frozen import pooled_rows
from automl_tl.features.network import Network
from automl_tl.features.task import PreparedTask, SplitFiles
from automl_tl.host import PluginSources
from automl_tl.plugin import Backbone
from automl_tl.probes.duplicates import Duplicates, find_duplicates, say
from automl_tl.search.plugins import host_in_child
from automl_tl.search.scores import POOLING

DEPTH = 0.75  # of the layer groups, from which copies are sought: the last ones lose what makes a picture that picture
MOST_ROWS = 20_000  # samples that are compared, all with all; of more, only equal ones are found


@dataclass(frozen=True, slots=True, kw_only=True)
class CopiesOrder:
    """What crosses into the child that looks for copies."""

    sources: PluginSources
    sitting: float
    backbone: str
    network: Network
    files: SplitFiles


def find_copies(order: CopiesOrder) -> Duplicates:
    """In a child: the near-duplicates among the samples of a split."""
    backbone = host_in_child(order.sources, order.sitting).backbone(order.backbone)
    features = _features(backbone, order.network, order.files)
    assert features is not None
    return find_duplicates(features)


def copies_in_test(backbone: Backbone, network: Network, prepared: PreparedTask, ids: Sequence[str]) -> str | None:
    """One sentence on the test samples that have near-duplicates among the development samples.

    None where nothing is compared: tables, or outputs that are not stored. Of too many samples equal ones are counted.
    `ids` are those of the test samples, which must have been prepared.
    """
    files, others = prepared.files(backbone, "development"), prepared.files(backbone, "test")
    if prepared.task.modality == "tabular":
        return None
    if len(files.labels()) + len(others.labels()) > MOST_ROWS:
        known = {row.tobytes() for row in files.open(backbone).digests}
        equal = sum(row.tobytes() in known for row in others.open(backbone).digests)
        raised = ", which raises the test score" if equal else ""
        return f"{equal} of {len(ids)} test samples are equal to a training sample{raised}."
    seen, unseen = _features(backbone, network, files), _features(backbone, network, others)
    if seen is None or unseen is None:
        return None
    return say(find_duplicates(seen, others=unseen), sample_ids(prepared), other_ids=ids)


def _features(backbone: Backbone, network: Network, files: SplitFiles) -> np.ndarray | None:
    tap = max(1, math.ceil(DEPTH * len(backbone.layer_groups)))
    rows = pooled_rows(network, files.open(backbone).samples, [tap], POOLING)
    return None if rows is None else rows.features()


def keep_copies_together(
    sources: PluginSources, backbone: Backbone, network: Network, prepared: PreparedTask, crew: Crew, sitting: float
) -> str | None:
    """Let near-duplicates stand on one side of every split; returns a sentence where there are any.

    Rows of tables are left alone: with few distinct values, equal rows are no copies.
    """
    if prepared.task.modality == "tabular":
        return None
    files, development = prepared.files(backbone, "development"), prepared.development()
    n = len(development.labels)
    if n > MOST_ROWS:
        groups = prepared.equal_samples()
        note = f"{n - len(np.unique(groups))} of {n} development samples are equal to another one"
    else:
        order = CopiesOrder(sources=sources, sitting=sitting, backbone=backbone.name, network=network, files=files)
        found = crew.children.run(crew.slots[0], find_copies, order)
        groups, note = found.groups, say(found, sample_ids(prepared))
    if len(np.unique(groups)) == n:
        return None
    prepared.keep_together(groups if development.groups is None else joined(groups, development.groups))
    return note


def sample_ids(prepared: PreparedTask) -> list[str]:
    """What the user calls the development samples."""
    return [*prepared.task.train.samples.ids, *prepared.task.validation.samples.ids]


def joined(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The finest groups (N,) that keep together whatever either of two (N,) does: connected components."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    first = np.unique(one, return_inverse=True)[1]
    second = np.unique(other, return_inverse=True)[1] + first.max(initial=-1) + 1
    size = int(second.max(initial=-1)) + 1
    edges = coo_matrix((np.ones(len(first)), (first, second)), shape=(size, size))
    return np.asarray(connected_components(edges, directed=False)[1][first], dtype=np.int64)
