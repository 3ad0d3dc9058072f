"""Several trials of one head on the same stored features, trained as one batched computation.

The host asks for the company of a trial whose head is worth it; the child trains all whose steps can be batched at once
and the rest alone. To the study each is a trial like any other.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from automl_tl.errors import reason_for
from automl_tl.host import PluginHost
from automl_tl.model.assemble import assemble_head
from automl_tl.model.plan import tap
from automl_tl.model.spec import TrialSpec, only_head_trains, spec_from_json
from automl_tl.plugin import Choice
from automl_tl.search.inputs import Stored
from automl_tl.search.plugins import check_versions, host_in_child
from automl_tl.search.trial import (
    Attempt,
    Prepared,
    TrialOrder,
    TrialReport,
    prepare,
    report_of,
    run_trial,
    training_data,
)
from automl_tl.training.heads import batch_key, pays, train_heads

if TYPE_CHECKING:  # children import this module, too, and need no study for it
    import optuna

AT_ONCE = 8  # trials, the first one included

SHARED = (
    *("backbone", "strategy", "head", "fit", "init_head", "pooling", "joined_taps"),
    *("augmentation", "views", "patience", "mixup", "activation_noise", "batch_size"),
)
"""Parameters by which trials can be batched: what they read, and the shape of their steps. All others are free."""


def wants_company(spec: TrialSpec, stored: Stored | None, host: PluginHost, n_outputs: int, device: str) -> bool:
    """Whether a trial trains no more than a head on stored features, and several such train faster at once."""
    settings = spec.regularization
    changes = settings.augmentation != "none" and not settings.views
    if stored is None or not only_head_trains(spec) or spec.fit != "descent" or changes:
        return False
    columns = stored.network.columns(tap(spec.plan) + 1, spec.pooling)
    head = host.head(spec.head)
    model = assemble_head(spec, head, in_features=columns.stop - columns.start, n_outputs=n_outputs, seed=0)
    return batch_key(model) is not None and pays([model] * AT_ONCE, device)


def shared_parameters(trial: optuna.Trial, spec: TrialSpec) -> dict[str, Choice]:
    """The parameters that a trial's company has to share with it."""
    owners = (f"{spec.strategy}@{spec.backbone}.", f"{spec.head}.")
    return {name: value for name, value in trial.params.items() if name in SHARED or name.startswith(owners)}


def run_together(orders: Sequence[TrialOrder]) -> list[TrialReport]:
    """In a child: train these trials, those at once that can be; one that fails leaves the others alone."""
    started = time.perf_counter()
    first = orders[0]
    host = host_in_child(first.sources, first.sitting)
    check_versions(host, first.versions)
    device = first.device
    specs = [spec_from_json(order.spec) for order in orders]
    reports: dict[int, TrialReport] = {}
    ready: dict[int, Prepared] = {}
    for i, spec in enumerate(specs):
        if _reads_the_same(spec, specs[0]):
            with contextlib.suppress(Exception):  # alone it says what is wrong with it
                ready[i] = prepare(orders[i], spec, host, host.backbone(spec.backbone), device)
    try:
        keys = {i: batch_key(each.model) for i, each in ready.items()}
        batch = [i for i, key in keys.items() if key is not None and key == next(iter(keys.values()))]
        if batch and pays([ready[i].model for i in batch], device):
            outcomes = train_heads(
                [ready[i].model for i in batch],
                training_data(first, ready[batch[0]]),
                device=device,
                seed=first.seed,
                deadline=first.deadline,
            )
            seconds = (time.perf_counter() - started) / len(batch)
            for i, outcome in zip(batch, outcomes, strict=True):
                attempt = Attempt(ready[i].model, ready[i].inputs, outcome, {"trained_with": len(batch) - 1})
                size = specs[i].optimization.batch_size
                reports[i] = report_of(orders[i], attempt, micro_batch=size, seconds=seconds)
    except (RuntimeError, MemoryError):
        reports.clear()  # too large at once, or not batchable after all: each is trained alone
    return [reports[i] if i in reports else _alone(order) for i, order in enumerate(orders)]


def _alone(order: TrialOrder) -> TrialReport:
    try:
        return run_trial(order)
    except Exception as error:
        return TrialReport(state="failed", score=None, facts={"reason": reason_for(error)})


def _reads_the_same(spec: TrialSpec, other: TrialSpec) -> bool:
    ours, theirs = spec.regularization, other.regularization
    what = (spec.backbone, spec.plan, spec.pooling, spec.joined, spec.init_head)
    same = what == (other.backbone, other.plan, other.pooling, other.joined, other.init_head)
    changes = (ours.augmentation, ours.views) == (theirs.augmentation, theirs.views)
    return same and changes and bool(ours.patience) == bool(theirs.patience)
