"""Trains what was chosen on all development samples, averages weights where that was chosen, and loads models.

Where time is limited, a training of the search goes on from where it stopped, with all samples, while its rate falls to
zero: a few epochs more are better than training anew for as many as the search did (see `benchmarks/all_samples.py`).
Where there is no time even for one, what the search trained is handed over as it is. Without a limit, all are trained
anew, as the folds judged them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from optuna.trial import FrozenTrial

from automl_tl.engine.slot import Interrupted
from automl_tl.engine.slots import Slot
from automl_tl.engine.spread import Crew, spread
from automl_tl.errors import RunError, reason_for
from automl_tl.finish.blending import BlendOrder, keep
from automl_tl.finish.confirm import Fold, fold_directory, fold_order
from automl_tl.finish.soup import Blend
from automl_tl.model.assemble import TransferModel, assemble
from automl_tl.model.spec import TrialSpec
from automl_tl.search.checkpoints import checkpoint_of
from automl_tl.search.finalists import LONGER, Finalist
from automl_tl.search.order import trial_seed
from automl_tl.search.search import Search
from automl_tl.search.trial import CHECKPOINT, STATE, load_trained, run_trial
from automl_tl.training.train import Stage

Tell = Callable[[str], None]
Tick = Callable[[str, int, int], None]
"""(what is going on, how far, of how much)"""

How = Literal["anew", "further", "as it is"]
NOTHING: Mapping[int, Any] = MappingProxyType({})
"""By number of a finalist: whoever is not in it is trained anew, for as many epochs as in the search."""

REFIT = "all"  # instead of a fold's number
AVERAGED = "averaged"


def plan_refits(search: Search, finalists: Sequence[Finalist], seconds: float | None, slots: int) -> dict[int, How]:
    """How each finalist, by its number, comes to learn from all samples in so many seconds; None: there is no limit.

    Those that take longest give way first.
    """
    how: dict[int, How] = {each.number: "anew" for each in finalists if not is_whole(search, each)}
    if seconds is None:
        return how
    longest = sorted((each for each in finalists if each.number in how), key=lambda each: -each.seconds)
    for finalist in longest:
        if (search.directory / str(finalist.number) / STATE).exists():
            how[finalist.number] = "further"
    for finalist in longest:
        if fit_in(seconds, longest, slots, how):
            break
        if (search.directory / str(finalist.number) / CHECKPOINT).exists():
            how[finalist.number] = "as it is"
    return how


def plan_further(
    finalists: Sequence[Finalist], how: Mapping[int, How], seconds: float | None, slots: int
) -> dict[int, int]:
    """How many epochs more those are given that go on from the search, by number.

    One, which `plan_refits` reckoned with, and while there is time one after the other another one.
    """
    known = {each.number: each for each in finalists}
    further = {number: 1 for number, way in how.items() if way == "further"}
    growing = sorted(further, key=lambda number: known[number].seconds / known[number].epochs)
    while growing:
        for number in list(growing):
            longer = {**further, number: further[number] + 1}
            if longer[number] <= known[number].most_further and fit_in(seconds, finalists, slots, how, longer):
                further = longer
            else:
                growing.remove(number)
    return further


def fit_in(
    seconds: float | None,
    finalists: Sequence[Finalist],
    slots: int,
    how: Mapping[int, How] = NOTHING,
    further: Mapping[int, int] = NOTHING,
) -> bool:
    """Whether there is time to train these on all samples, anew where `how` has nothing else for one."""
    expected = [refit_seconds(each, how.get(each.number, "anew"), further.get(each.number, 1)) for each in finalists]
    return seconds is None or max(sum(expected) / slots, max(expected, default=0.0)) <= seconds


def refit_seconds(finalist: Finalist, how: How, further: int = 1) -> float:
    """What it takes a finalist to learn from all samples; `further`: epochs, where it goes on."""
    match how:
        case "anew":
            return LONGER * finalist.seconds
        case "further":
            return finalist.further_seconds(further)
        case "as it is":
            return 0.0


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A configuration with its trained model, and how much of the final model it is."""

    trial: FrozenTrial
    spec: TrialSpec
    model: TransferModel
    weight: float = 1.0
    blend: Blend | None = None  # what was averaged to make it; None: its own training alone


def refit(
    search: Search,
    finalists: Mapping[int, Finalist],
    wanted: Sequence[Blend],
    crew: Crew,
    device: str,
    tell: Tell,
    tick: Tick,
    how: Mapping[int, How] = NOTHING,
    further: Mapping[int, int] = NOTHING,
) -> list[TransferModel]:
    """The wanted models, made of finalists trained on all development samples; `Blend((number,))` is one by itself.

    Finalists that `how` has nothing for are trained anew; `further` are epochs beyond those of the search. One that
    fails stays as the search trained it, and an average that fails is its first ingredient. Heads that were solved for
    are not solved for again.
    """
    needed = sorted({number for blend in wanted for number in blend.ingredients})
    every = Fold(np.arange(len(search.prepared.development().labels)), None, REFIT)
    at = spread(
        crew,
        lambda slot, number: _train(
            search, slot, finalists[number], how.get(number, "anew"), further.get(number, 0), every, crew, tell
        ),
        needed,
        tick=lambda done: tick("training on all samples", done, len(needed)),
    )
    trained = dict(zip(needed, at, strict=True))
    directories = spread(
        crew, lambda slot, blend: _blend(search, slot, finalists, blend, trained, every, crew, tell), wanted
    )
    specs = [finalists[blend.ingredients[0]].spec for blend in wanted]
    models = [load_chosen(search, spec, folder, device) for spec, folder in zip(specs, directories, strict=True)]
    for directory in {*at, *directories}:
        if directory.parent != search.directory:
            shutil.rmtree(directory, ignore_errors=True)
    return models


def is_whole(search: Search, finalist: Finalist) -> bool:
    """Whether the search's own model of a finalist learned from all development samples, as any seed would have it.

    So it is with heads that are solved for, judged by left-out samples, on features of weights that are not drawn.
    """
    judged_by_others = search.prepared.development().given is not None
    if not finalist.floor or judged_by_others or search.stored_for(finalist.spec) is None:
        return False
    return checkpoint_of(search, finalist.trial).exists()


def _train(
    search: Search, slot: Slot, finalist: Finalist, how: How, further: int, fold: Fold, crew: Crew, tell: Tell
) -> Path:
    """Train a finalist; returns where its model lies."""
    searched = search.directory / str(finalist.number)
    if is_whole(search, finalist) or how == "as it is":
        return searched
    order = fold_order(search, finalist, slot, fold)
    if further:
        order = replace(order, stage=Stage(until=finalist.epochs + further, anneal=True))
    if how == "further":
        order = replace(order, goes_on_from=searched)
    try:
        report = crew.children.run(slot, run_trial, order)
        why = "" if report.state == "complete" else str(report.facts.get("reason", report.facts["ending"]))
    except (Interrupted, RunError):
        raise
    except Exception as error:
        why = reason_for(error)
    if why:
        tell(f"trial {finalist.number} is handed over as the search trained it, without what judged it: {why}")
    return searched if why else order.directory


def _blend(
    search: Search,
    slot: Slot,
    finalists: Mapping[int, Finalist],
    blend: Blend,
    trained: Mapping[int, Path],
    fold: Fold,
    crew: Crew,
    tell: Tell,
) -> Path:
    """Average trained models; returns where the average lies."""
    first = trained[blend.ingredients[0]]
    if blend == Blend(blend.ingredients[:1]):
        return first
    orders = {
        number: replace(fold_order(search, finalists[number], slot, fold), directory=trained[number])
        for number in blend.ingredients
    }
    directory = fold_directory(search, finalists[blend.ingredients[0]], replace(fold, folder=AVERAGED))
    try:
        crew.children.run(slot, keep, BlendOrder(trained=orders, blends=(blend,), directory=directory))
    except (Interrupted, RunError):
        raise
    except Exception as error:
        tell(f"trial {blend.ingredients[0]} is handed over alone, not averaged: {reason_for(error)}")
        return first
    return directory


def load_chosen(search: Search, spec: TrialSpec, directory: Path, device: str) -> TransferModel:
    """Rebuild a trial's model from its spec and put the trained state in its folder into it."""
    return load_trained(directory / CHECKPOINT, build_model(search, spec, "cpu")).to(device)


def build_model(search: Search, spec: TrialSpec, device: str) -> TransferModel:
    """A spec's model before it is trained."""
    backbone = search.host.backbone(spec.backbone)
    transferred = search.source is not None and search.context.joint_with == spec.backbone and spec.weights != "random"
    return assemble(
        spec,
        backbone,
        search.host.head(spec.head),
        search.prepared.interface(backbone),
        source_weights=search.source.checkpoint if transferred and search.source else None,
        seed=trial_seed(search.seed, spec),
    ).to(device)
