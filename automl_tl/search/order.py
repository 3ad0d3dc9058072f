"""What a slot's child is told to do: which samples to learn from and be judged by, how far, from which seed."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import optuna

from automl_tl.engine.slots import Slot
from automl_tl.model.spec import TrialSpec, only_head_trains
from automl_tl.search.judging import divide
from automl_tl.search.trial import TrialOrder
from automl_tl.search.unlabeled import unlabeled_files
from automl_tl.training.train import Stage

if TYPE_CHECKING:
    from automl_tl.search.search import Search


def order_for(
    search: Search, trial: optuna.Trial, spec: TrialSpec, slot: Slot, deadline: float | None = None
) -> TrialOrder:
    """The order of one trial of the search, which ends at `deadline` with what it has."""
    configuration = trial.user_attrs
    draw = int(configuration.get("draw", trial_seed(search.seed, spec)))
    development = search.prepared.development()
    learn, judge = divide(development, draw, multilabel=search.prepared.task.kind == "multilabel")
    left_out = judged_by_left_out(spec) and development.given is None
    until, earlier = configuration.get("until"), configuration.get("goes_on_from")
    return training_order(
        search,
        spec,
        slot,
        directory=search.directory / str(trial.number),
        learn=np.arange(len(development.labels)) if left_out else learn,
        judge=None if left_out else judge,
        seed=trial_seed(search.seed, spec),
        stage=None if until is None else Stage(until=int(until)),
        goes_on_from=None if earlier is None else search.directory / str(earlier),
        trial_id=trial._trial_id,
        deadline=deadline,
        divisor=2 ** int(configuration.get("crashes", 0)),
    )


def training_order(
    search: Search,
    spec: TrialSpec,
    slot: Slot,
    *,
    directory: Path,
    learn: np.ndarray,
    judge: np.ndarray | None,
    seed: int,
    stage: Stage | None = None,
    goes_on_from: Path | None = None,
    trial_id: int | None = None,
    divisor: int = 1,
    deadline: float | None = None,
) -> TrialOrder:
    """The plain data that a child needs to train a spec on some development samples and be judged by others."""
    backbone = search.host.backbone(spec.backbone)
    transferred_from_source = search.source is not None and search.context.joint_with == spec.backbone
    files = search.prepared.files(backbone, "development")
    return TrialOrder(
        database=search.database,
        study=search.study.study_name,
        trial_id=trial_id,
        directory=directory,
        sources=search.host.sources,
        versions=search.host.versions(),
        spec=spec.to_json(),
        interface=search.prepared.interface(backbone),
        train=files.only(learn),
        judged=None if judge is None else files.only(judge),
        unlabeled=None if spec.unlabeled == "none" else unlabeled_files(search, backbone),
        kind=search.prepared.task.kind,
        metric=search.metric,
        source=search.source if transferred_from_source else None,
        stored=search.stored_for(spec),
        seed=seed,
        device=slot.torch_device,
        sitting=search.clock.began,
        stage=stage,
        goes_on_from=goes_on_from,
        divisor=divisor,
        hyperband=search.budget.max_epochs if search.budget.scheduler == "hyperband" else None,
        deadline=deadline,
    )


def judged_by_left_out(spec: TrialSpec) -> bool:
    """Whether a spec is solved for, so that each sample can be judged by the fit that left it out."""
    return spec.fit != "descent"


def climbs_rungs(spec: TrialSpec) -> bool:
    """Whether a spec is trained rung by rung; heads on stored features are so cheap that they are trained at once."""
    return spec.fit == "descent" and not only_head_trains(spec)


def trial_seed(seed: int, spec: TrialSpec, fold: int | None = None) -> int:
    """From the run's seed, the spec and the fold alone: a spec gives the same result whichever slot runs it."""
    text = f"{seed} {spec.digest()}" if fold is None else f"{seed} {spec.digest()} {fold}"
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)
