"""The source task: train shared layers and a task-specific head, measure them on held-back data, keep the layers.

The checkpoint is kept in the user's cache under a key of all that made it, and reused as long as none of that changes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from automl_tl.config import SourceConfig
from automl_tl.engine.slot import Children
from automl_tl.engine.slots import Slot
from automl_tl.errors import TrialError
from automl_tl.features.store import feature_root
from automl_tl.features.task import PreparedTask, SplitFiles
from automl_tl.host import PluginHost, PluginSources, load_host
from automl_tl.metrics.scores import Kind, decide, report
from automl_tl.model.assemble import Interface, assemble
from automl_tl.model.checkpoint import save_tensors
from automl_tl.model.spec import Optimization, Regularization, TrialSpec, spec_from_json
from automl_tl.plugin import GroupPlan, TransferPlan
from automl_tl.search.trial import CHECKPOINT, SourceOrder
from automl_tl.training.train import Labelled, TrainingData, predict_probabilities, train

FACTS = "source.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceModel:
    """The trained source model: where its layers lie, and how good it is at its own task."""

    order: SourceOrder
    backbone: str
    scores: dict[str, Any]  # on source data held back: accuracy, recall_macro, f1_macro, …
    reused: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceTraining:
    """What crosses into the child that trains the source model; plain data."""

    sources: PluginSources
    spec: dict[str, Any]
    interface: Interface
    splits: tuple[SplitFiles, SplitFiles, SplitFiles]  # train, validation, held back
    kind: Kind
    classes: tuple[str, ...]
    seed: int
    device: str
    directory: Path


def source_model(
    config: SourceConfig,
    host: PluginHost,
    prepared: PreparedTask,
    directory: Path,
    slot: Slot,
    children: Children,
    *,
    seed: int,
    tell: Callable[[str], None],
) -> SourceModel:
    """Return the trained source model of a run, from the cache when nothing that made it changed."""
    backbone = host.backbone(config.backbone)
    spec = TrialSpec(
        backbone=backbone.name,
        plan=TransferPlan(tuple(GroupPlan(group=group, action="tune") for group in backbone.layer_groups)),
        weights="transferred" if backbone.weights else "random",
        regularization=Regularization(dropout=0.1, weight_decay=1e-4, patience=max(5, config.epochs // 3)),
        optimization=Optimization(learning_rate=config.learning_rate, batch_size=config.batch_size),
        max_epochs=config.epochs,
    )
    opened = prepared.task.test.open()
    prepared.note("test", opened)
    held_back = prepared.prepare(backbone, "test", opened, lambda what, done, n: None)
    splits = (prepared.files(backbone, "train"), prepared.files(backbone, "validation"), held_back)
    key = _key(spec, splits, host.owner("backbone", backbone.name).source, seed)
    kept = feature_root().with_name("sources") / key
    reused = (kept / FACTS).exists()
    if reused:
        tell(f"source task: reusing the model trained before ({kept})")
    else:
        tell(f"source task: training {backbone.name} on {len(prepared.task.train.labels)} samples")
        order = SourceTraining(
            sources=host.sources,
            spec=spec.to_json(),
            interface=prepared.interface(backbone),
            splits=splits,
            kind=prepared.task.kind,
            classes=prepared.task.classes,
            seed=seed,
            device=slot.torch_device,
            directory=kept,
        )
        children.run(slot, train_source, order)
    directory.mkdir(parents=True, exist_ok=True)
    for name in (CHECKPOINT, FACTS):
        shutil.copyfile(kept / name, directory / name)
    return SourceModel(
        order=SourceOrder(
            checkpoint=directory / CHECKPOINT,
            train=splits[0],
            kind=prepared.task.kind,
            n_outputs=prepared.task.n_outputs,
        ),
        backbone=backbone.name,
        scores=json.loads((directory / FACTS).read_text()),
        reused=reused,
    )


def train_source(order: SourceTraining) -> None:
    """In a child: train, measure on the held-back split, save layers, head and scores."""
    host = load_host(order.sources)
    spec = spec_from_json(order.spec)
    backbone = host.backbone(spec.backbone)
    device = order.device
    model = assemble(spec, backbone, host.head(spec.head), order.interface, seed=order.seed)
    fit, validation, held_back = (
        Labelled(rows=split.rows, labels=split.labels) for split in (files.open(backbone) for files in order.splits)
    )
    data = TrainingData(
        train=fit,
        validation=validation,
        stopping=validation,  # it chooses nothing else: what is reported is the held-back split
        kind=order.kind,
        metric="f1_macro",
        n_outputs=order.interface.n_outputs,
    )
    outcome = train(model, data, spec, device=device, seed=order.seed)
    if outcome.score is None:
        raise TrialError(
            f"the source model did not learn: its loss is not finite ({spec.backbone}); lower learning_rate"
        )
    said = decide(predict_probabilities(model, held_back, order.kind, device), order.kind)
    scores = report(held_back.labels, said, order.kind, order.classes)
    save_tensors(model.state_dict(), order.directory / CHECKPOINT)
    partial = order.directory / f"{FACTS}.partial"
    partial.write_text(json.dumps({**scores, "epochs": len(outcome.curve), "n_train": len(fit.labels)}))
    partial.replace(order.directory / FACTS)


def _key(spec: TrialSpec, splits: tuple[SplitFiles, ...], plugin: str, seed: int) -> str:
    """A digest of all that makes a source model: spec, data, plugin, library, seed."""
    facts = [spec.to_json(), plugin, torch.__version__, seed, [split.digest() for split in splits]]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:20]
