"""What one trains who does not search: the whole transferred network, or the same one from random weights.

Both learn from all development samples, like the final model, for as many epochs as the search gives any configuration
at most: a baseline that was stopped early would flatter what it is compared with. A full fine-tuning that the search
itself took far enough stands as it is, without the samples that judged it, and costs nothing more.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from optuna.trial import FrozenTrial

from automl_tl.engine.slot import Interrupted
from automl_tl.engine.slots import Slot
from automl_tl.engine.spread import Crew, spread
from automl_tl.errors import RunError, reason_for
from automl_tl.finish.confirm import CONFIRMED
from automl_tl.finish.refit import Tell, Tick, load_chosen
from automl_tl.model.assemble import TransferModel
from automl_tl.model.spec import Optimization, Regularization, TrialSpec, only_head_trains, spec_from_json
from automl_tl.plugin import GroupPlan, TransferPlan
from automl_tl.search.checkpoints import checkpoint_of, full_finetunings
from automl_tl.search.order import training_order, trial_seed
from automl_tl.search.recipes import WHOLE_RATE, RecipeTrial
from automl_tl.search.search import Search
from automl_tl.search.space import suggest_tokens
from automl_tl.search.study import completed
from automl_tl.search.trial import run_trial
from automl_tl.training.batches import steps_per_epoch
from automl_tl.training.train import Stage

FULL_FINETUNING, FROM_SCRATCH = "full_finetuning", "from_scratch"
PASSES = 3  # without gradients, that a training step takes as long as
FAR_ENOUGH = 0.5  # of the most epochs, from which a full fine-tuning of the search is a fair rival
WITHOUT_LIMIT = 0.25  # of the time the run has taken, that one of these may take where the user gave no limit
NO_TIME = "no time"


@dataclass(frozen=True, slots=True)
class Whole:
    """A trained network whose every layer group trained."""

    spec: TrialSpec
    model: TransferModel


def searched_far_enough(search: Search) -> FrozenTrial | None:
    """The best usual full fine-tuning of the search, if it is a fair rival."""
    enough = FAR_ENOUGH * search.budget.max_epochs
    far = (trial for trial in _usual(search) if trial.user_attrs["epochs"] >= enough)
    return next((trial for trial in far if checkpoint_of(search, trial).exists()), None)


def full_finetuning(search: Search, backbone: str) -> TrialSpec:
    """The best usual full fine-tuning that the search began; else one as the recipes have it."""
    begun = _usual(search)[:1]
    if begun:
        return replace(spec_from_json(begun[0].user_attrs["spec"]), max_epochs=search.budget.max_epochs)
    rate = WHOLE_RATE[search.context.modality]
    return replace(_recipe(search, backbone, learning_rate=rate), init_head="probe")


def _usual(search: Search) -> list[FrozenTrial]:
    """Full fine-tunings by a recipe, best first: one that was drawn at random may be bad, and flatter by that."""
    return [trial for trial in full_finetunings(completed(search.study)) if "recipe" in trial.user_attrs]


def from_scratch(search: Search, backbone: str) -> TrialSpec:
    """All layer groups from random weights, with the head of the best configuration that trained some."""
    spec = replace(_recipe(search, backbone, learning_rate=1e-3), weights="random", norm="train")
    for trial in completed(search.study):
        known = spec_from_json(trial.user_attrs["spec"])
        if known.fit == "descent" and not only_head_trains(known):
            return replace(spec, head=known.head, head_parameters=known.head_parameters, pooling=known.pooling)
    return spec


def train_whole(
    search: Search, name: str, spec: TrialSpec, end: float | None, crew: Crew, device: str, tell: Tell, tick: Tick
) -> Whole | str:
    """Train it on all development samples, or say in a few words why not; `end`: the moment until when there is time.

    Without a limit it may take a quarter of what the run took so far: who asks for four trials does not want to wait
    for 40 epochs.
    """
    now, each = time.time(), search.stored[spec.backbone].network.seconds_per_row
    end = now + WITHOUT_LIMIT * search.clock.now() if end is None else end
    n, batch = len(search.prepared.development().labels), spec.optimization.batch_size
    rows = spec.max_epochs * steps_per_epoch(n, batch) * batch
    if now + PASSES * rows * each > end:
        return NO_TIME
    directory = search.directory.with_name(f"{search.directory.name}-{CONFIRMED}") / name
    title = name.replace("_", " ")
    why, *_ = spread(
        crew,
        lambda slot, end: _train(search, slot, crew, spec, directory, end),
        [end],
        tick=lambda done: tick(f"training {title}, to be compared with", done, 1),
    )
    try:
        if why:
            if why != NO_TIME:
                tell(f"{title} is no baseline: {why}")
            return why
        return Whole(spec, load_chosen(search, spec, directory, device))
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _train(search: Search, slot: Slot, crew: Crew, spec: TrialSpec, directory: Path, deadline: float) -> str:
    """Train a spec on all development samples; returns in a few words why that was not possible."""
    order = training_order(
        search,
        spec,
        slot,
        directory=directory,
        learn=np.arange(len(search.prepared.development().labels)),
        judge=None,
        seed=trial_seed(search.seed, spec),
        stage=Stage(until=spec.max_epochs, anneal=True),
        deadline=deadline,
    )
    try:
        report = crew.children.run(slot, run_trial, order)
    except (Interrupted, RunError):
        raise
    except Exception as error:
        return reason_for(error)
    if report.facts.get("ending") == "deadline":
        return NO_TIME
    return "" if report.state == "complete" else str(report.facts.get("reason", report.facts["ending"]))


def _recipe(search: Search, backbone: str, *, learning_rate: float) -> TrialSpec:
    groups = search.context.backbones[backbone]
    plan = TransferPlan(tuple(GroupPlan(group=group.name, action="tune") for group in groups))
    return TrialSpec(
        backbone=backbone,
        plan=plan,
        regularization=Regularization(dropout=0.1, weight_decay=1e-3, label_smoothing=0.05),
        optimization=Optimization(learning_rate=learning_rate),
        tokens=suggest_tokens(RecipeTrial({}), search.context, plan=plan),
        max_epochs=search.budget.max_epochs,
    )
