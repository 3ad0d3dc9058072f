"""Trains what was chosen on all development samples, averages weights where that was chosen, and loads models."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from optuna.trial import FrozenTrial

from automl_tl.engine.slot import Interrupted
from automl_tl.engine.slots import Slot
from automl_tl.engine.spread import Crew, spread
from automl_tl.errors import RunError, reason_for
from automl_tl.finish.blending import BlendOrder, keep
from automl_tl.finish.confirm import Fold, fold_directory, fold_order
from automl_tl.finish.finalists import Finalist
from automl_tl.finish.soup import Blend
from automl_tl.model.assemble import TransferModel, assemble
from automl_tl.model.spec import TrialSpec
from automl_tl.search.checkpoints import checkpoint_of
from automl_tl.search.order import trial_seed
from automl_tl.search.search import Search
from automl_tl.search.trial import CHECKPOINT, load_trained, run_trial

Tell = Callable[[str], None]
Tick = Callable[[str, int, int], None]
"""(what is going on, how far, of how much)"""

REFIT = "all"  # instead of a fold's number
AVERAGED = "averaged"


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
) -> list[TransferModel]:
    """The wanted models, made of finalists trained on all development samples; `Blend((number,))` is one by itself.

    A finalist that fails stays as the search trained it, and an average that fails is its first ingredient. Heads that
    were solved for are not solved for again.
    """
    needed = sorted({number for blend in wanted for number in blend.ingredients})
    every = Fold(np.arange(len(search.prepared.development().labels)), None, REFIT)
    at = spread(
        crew,
        lambda slot, number: _train(search, slot, finalists[number], every, crew, tell),
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


def _train(search: Search, slot: Slot, finalist: Finalist, fold: Fold, crew: Crew, tell: Tell) -> Path:
    """Train a finalist; returns where its model lies."""
    if is_whole(search, finalist):
        return search.directory / str(finalist.number)
    order = fold_order(search, finalist, slot, fold)
    try:
        report = crew.children.run(slot, run_trial, order)
        why = "" if report.state == "complete" else str(report.facts.get("reason", report.facts["ending"]))
    except (Interrupted, RunError):
        raise
    except Exception as error:
        why = reason_for(error)
    if why:
        tell(f"trial {finalist.number} is handed over as the search trained it, without what judged it: {why}")
    return search.directory / str(finalist.number) if why else order.directory


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
