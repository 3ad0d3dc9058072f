"""A search whose trials are all the same: EfficientNet-Lite0, fine-tuned whole and to the end on the digits.

Everything else is the real thing: the sampler suggests a full space (its answer is then thrown away), the study is on
disk, the trial runs in a slot's child process and keeps its checkpoint.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import optuna
from rich.console import Console

from automl_tl.config import load_config
from automl_tl.features.task import prepare_task
from automl_tl.model.spec import Optimization, Regularization, TrialSpec
from automl_tl.plugin import GroupPlan, Suggest, TransferPlan
from automl_tl.report.live import Display
from automl_tl.run import TRANSFERRED, Run, lay_out, load, space_context
from automl_tl.rundir import RunDirectory
from automl_tl.search.search import Budget, Search, start_clock
from automl_tl.search.space import SpaceContext, default_space
from automl_tl.search.study import open_storage, open_study

BACKBONE = "efficientnet_lite0"
IMAGE_SIZE = 64


def fixed_spec(context: SpaceContext) -> TrialSpec:
    """Every layer group is trained, so nothing can be computed once for all trials; no epoch is saved by stopping."""
    epochs = context.max_epochs
    return TrialSpec(
        backbone=BACKBONE,
        strategy="full_finetune",
        plan=TransferPlan(tuple(GroupPlan(group=group.name, action="tune") for group in context.backbones[BACKBONE])),
        regularization=Regularization(dropout=0.1, weight_decay=1e-3, label_smoothing=0.05, patience=epochs),
        optimization=Optimization(learning_rate=3e-4, batch_size=32),
        max_epochs=epochs,
    )


def fixed_space(trial: Suggest, context: SpaceContext) -> TrialSpec:
    """Ask the sampler for a whole spec, then train the fixed one."""
    default_space(trial, context)
    return fixed_spec(context)


def fixed_search(directory: Path, *, trials: int, epochs: int) -> Search:
    """A search in `directory`, ready for `run_search`: samples prepared, study open and empty."""
    values = {"data": {"path": "sklearn:digits", "image_size": IMAGE_SIZE}, "backbones": BACKBONE}
    config = load_config(values, [f"search.max_epochs={epochs}"])
    display = Display(Console(quiet=True))
    story = Run(config=config, directory=RunDirectory(directory), display=display, space=fixed_space)
    loaded = load(story)
    prepared = lay_out(story, loaded)
    prepare_task(prepared, (loaded.host.backbone(BACKBONE),), display.progress)
    database = story.directory.database
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = open_study(open_storage(database), TRANSFERRED, seed=0)
    return Search(
        study=study,
        database=database,
        directory=directory / "trials",
        host=loaded.host,
        context=space_context(story, loaded, prepared, "transferred", joint=False),
        space=fixed_space,
        prepared=prepared,
        metric=config.search.metric,
        budget=Budget(
            trials=trials, seconds=None, max_epochs=epochs, scheduler="none", recipes=False, keep_checkpoints=3
        ),
        seed=0,
        clock=start_clock(study),
    )


def with_trials(search: Search, trials: int) -> Search:
    """The same search, allowed so many trials in all."""
    return replace(search, budget=replace(search.budget, trials=trials))
