"""The task's unlabeled samples in a search: which backbone they pass, how many of them, and where a trial finds them.

They pass the best-scored backbone once, as all samples do, and no longer than a share of the time limit. The number
that passed is kept in the study, so that a resumed run and the finish learn from the same ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from automl_tl.engine.slot import Interrupted
from automl_tl.errors import AutomlTlError, RunError, TrialError
from automl_tl.features.shards import StoreFull
from automl_tl.features.task import UNLABELED, SplitFiles
from automl_tl.model.spec import spec_from_json
from automl_tl.plugin import Backbone
from automl_tl.search.passes import ROWS_PASSED, Progress, pass_backbone
from automl_tl.search.study import completed

if TYPE_CHECKING:
    from automl_tl.data import Task
    from automl_tl.engine.spread import Crew
    from automl_tl.search.search import Search
    from automl_tl.search.space import SpaceContext

PASSED = "unlabeled"  # attribute of the study: backbone -> unlabeled samples that passed it
SHARE = 0.1  # of the time limit, for passing them
ENOUGH_LABELED = (
    50  # samples of a class, on average, with which unlabeled ones have nothing to add (benchmarks/unlabeled)
)


def with_unlabeled(context: SpaceContext, task: Task) -> SpaceContext:
    """The facts of a space with the backbones whose heads may learn from the task's unlabeled samples."""
    if task.unlabeled is None or _has_many(task):
        return context
    return replace(context, unlabeled=tuple(n for n in context.backbones if context.weights_of(n) == "transferred"))


def pass_unlabeled(search: Search, crew: Crew, tell: Callable[[str], None], progress: Progress) -> Search:
    """Pass the unlabeled samples through the best-scored backbone; returns the search in which its heads may use them.

    A no-op where there are none.
    """
    task = search.prepared.task
    if task.unlabeled is None or search.context.weights == "random":
        return search
    if _has_many(task):
        tell(f"unlabeled samples are left aside: they have nothing to add to {ENOUGH_LABELED} labeled ones of a class")
        return search
    able = with_unlabeled(search.context, task).unlabeled
    name = next((name for name in search.favored if name in able), None)
    known = search.study.user_attrs.get(PASSED, {})
    if name is None:
        if not known:
            tell("unlabeled samples are left aside: there is no backbone with transferred weights for them to pass")
        return search
    backbone, n = search.host.backbone(name), len(task.unlabeled)
    if name not in known:
        search.study.set_user_attr(PASSED, {**known, name: _affordable(search, name, n, len(crew.slots))})
    files = unlabeled_files(search, backbone)
    assert files.chosen is not None
    try:
        passed = pass_backbone(
            search.host, backbone, search.stored[name], [files], crew, progress, sitting=search.clock.began
        )
    except Interrupted:
        raise
    except AutomlTlError as error:
        if isinstance(error, RunError) and not isinstance(error, StoreFull):
            raise  # the disk: whatever comes next would meet the same
        tell(f"unlabeled samples are left aside: {error}")
        return search
    search.study.set_user_attr(ROWS_PASSED, search.study.user_attrs.get(ROWS_PASSED, 0) + passed.rows)
    used = len(files.chosen)
    fewer = "" if used == n else f", as many as {SHARE:.0%} of the time limit allows,"
    tell(
        f"{used:,} of {n:,} unlabeled samples{fewer} have passed {name}: probes that learn from them as well are tried"
    )
    return replace(search, context=replace(search.context, unlabeled=(name,)))


def what_they_gave(search: Search) -> str | None:
    """One sentence on the best probe that unlabeled samples taught beside the best that they did not; None: no such."""
    best: dict[bool, float] = {}
    for trial in completed(search.study):
        spec = spec_from_json(trial.user_attrs["spec"])
        if spec.fit != "descent":
            best.setdefault(spec.unlabeled != "none", trial.value or 0.0)
    if len(best) < 2:
        return None
    return (
        f"unlabeled samples: the best probe that learns from them has {search.metric} {best[True]:.3f} on left-out "
        f"samples, the best that does not {best[False]:.3f}"
    )


def unlabeled_files(search: Search, backbone: Backbone) -> SplitFiles:
    """Where the unlabeled samples lie that a head on this backbone learns from.

    Raises TrialError when the task has none.
    """
    given = search.prepared.task.unlabeled
    if given is None:
        raise TrialError(
            "a trial is to learn from unlabeled samples, but the task has none; give some with data.unlabeled, or let "
            "`unlabeled` be none"
        )
    used = int(search.study.user_attrs.get(PASSED, {}).get(backbone.name, len(given)))
    return search.prepared.files(backbone, UNLABELED).only(np.arange(used))  # they lie in random order


def _has_many(task: Task) -> bool:
    return len(task.train) + len(task.validation) >= ENOUGH_LABELED * len(task.classes)


def _affordable(search: Search, name: str, n: int, slots: int) -> int:
    """How many of n samples can pass a backbone in a share of the time limit."""
    limit, seconds = search.budget.seconds, search.stored[name].network.seconds_per_row
    if limit is None or not seconds:
        return n
    return min(n, max(1, int(SHARE * limit * slots / seconds)))
