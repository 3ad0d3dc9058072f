"""Trains what was chosen on all development samples, and loads trained models for use."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from optuna.trial import FrozenTrial

from automl_tl.engine.slot import Interrupted
from automl_tl.engine.slots import Slot
from automl_tl.engine.spread import Crew, spread
from automl_tl.errors import RunError, reason_for
from automl_tl.finish.confirm import final_stage, fold_directory
from automl_tl.finish.finalists import Finalist
from automl_tl.model.assemble import TransferModel, assemble
from automl_tl.model.spec import TrialSpec
from automl_tl.search.order import training_order, trial_seed
from automl_tl.search.search import Search
from automl_tl.search.trial import CHECKPOINT, load_trained, run_trial

Tell = Callable[[str], None]
Tick = Callable[[str, int, int], None]
"""(what is going on, how far, of how much)"""

REFIT = "all"  # instead of a fold's number


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A configuration with its trained model, and how much of the final model it is."""

    trial: FrozenTrial
    spec: TrialSpec
    model: TransferModel
    weight: float = 1.0


def refit(
    search: Search, finalists: Sequence[Finalist], crew: Crew, device: str, tell: Tell, tick: Tick
) -> list[TransferModel]:
    """The finalists trained on all development samples; one that fails stays as the search trained it."""
    every = np.arange(len(search.prepared.development().labels))

    def train(slot: Slot, finalist: Finalist) -> Path:
        directory = fold_directory(search, finalist, REFIT)
        order = training_order(
            search,
            finalist.spec,
            slot,
            directory=directory,
            learn=every,
            judge=None,
            seed=trial_seed(search.seed, finalist.spec),
            stage=final_stage(finalist),
        )
        try:
            report = crew.children.run(slot, run_trial, order)
            why = "" if report.state == "complete" else str(report.facts.get("reason", report.facts["ending"]))
        except (Interrupted, RunError):
            raise
        except Exception as error:
            why = reason_for(error)
        if why:
            tell(f"trial {finalist.number} is handed over as the search trained it, without what judged it: {why}")
        return search.directory / str(finalist.number) if why else directory

    directories = spread(
        crew, train, finalists, tick=lambda done: tick("training on all samples", done, len(finalists))
    )
    models = [load_chosen(search, f.spec, d, device) for f, d in zip(finalists, directories, strict=True)]
    for directory in directories:
        if directory.parent != search.directory:
            shutil.rmtree(directory, ignore_errors=True)
    return models


def load_chosen(search: Search, spec: TrialSpec, directory: Path, device: str) -> TransferModel:
    """Rebuild a trial's model from its spec and put the trained state in its folder into it."""
    backbone = search.host.backbone(spec.backbone)
    transferred = search.source is not None and search.context.joint_with == spec.backbone and spec.weights != "random"
    model = assemble(
        spec,
        backbone,
        search.host.head(spec.head),
        search.prepared.interface(backbone),
        source_weights=search.source.checkpoint if transferred and search.source else None,
        seed=trial_seed(search.seed, spec),
    )
    return load_trained(directory / CHECKPOINT, model).to(device)
