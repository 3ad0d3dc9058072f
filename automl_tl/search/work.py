"""How much work a training is, before anybody has done it: enough to know whether there is time for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from automl_tl.model.plan import cut, kept
from automl_tl.model.spec import TrialSpec

if TYPE_CHECKING:
    from automl_tl.search.search import Search

WORK = "work"  # attribute of a configuration's first trial, and of what waits to become one
BESIDES = 0.3  # passes: batches are read, the model is assembled and judged; see `benchmarks/foreseen_work.py`
BACK = 2.0  # passes that gradients take, of outputs and of weights


def first_epoch_work(search: Search, spec: TrialSpec) -> float | None:
    """Of a spec's first epoch, beside those of others of this search: in passes, or in seconds of a pass.

    Forward from the samples or from the cut, up to the tap, and back to the first group that trains from the beginning.
    None where there are several backbones and nobody knows how long this one takes.
    """
    groups, read = search.context.backbones[spec.backbone], kept(spec.plan)
    shares = [group.flop_share for group in groups[: len(read)]]
    changed = spec.regularization.augmentation != "none" and not spec.regularization.views
    trains = [index for index, group in enumerate(read) if group.action != "freeze" and not group.unfreeze_epoch]
    forward, back = sum(shares[0 if changed else cut(spec.plan) :]), sum(shares[min(trains, default=len(read)) :])
    passes = BESIDES + forward + BACK * back
    if len(search.context.backbones) == 1:
        return passes
    stored = search.stored_for(spec)
    return passes * (stored.network.seconds_per_row if stored else 0.0) or None
