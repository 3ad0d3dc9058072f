"""One trial, in a slot's child process: from a `TrialOrder`, which is plain data, to a `TrialReport`.

1. Rebuild the plugins from the same sources, and refuse to go on if they are other ones than the host's.
2. Map the prepared samples; assemble the model of the spec, or its head alone.
3. Read the outputs of its frozen groups from the store, or add them to it.
4. Train as far as this trial goes, from where an earlier one stopped, or solve for the head in closed form; out of
   memory halves the micro-batch and starts over.
5. Save what was trained, what it said of the samples that judge it, and what is needed to go on; report.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from automl_tl.errors import TrialError
from automl_tl.features.task import OpenedSplit, SplitFiles
from automl_tl.host import PluginHost, PluginSources
from automl_tl.metrics.scores import Kind, decide, log_loss, report
from automl_tl.model.assemble import Interface, TransferModel, assemble, assemble_head, trained_state
from automl_tl.model.checkpoint import load_tensors, save_tensors
from automl_tl.model.groups import count_parameters
from automl_tl.model.plan import kept
from automl_tl.model.spec import TrialSpec, only_head_trains, spec_from_json
from automl_tl.plugin import Backbone
from automl_tl.search.inputs import Inputs, Reader, Splits, Stored
from automl_tl.search.judging import Said, save_said
from automl_tl.search.plugins import check_versions, host_in_child
from automl_tl.search.probe import fit_in_closed_form, linear_start
from automl_tl.training.fastest import fastest, precision_memory
from automl_tl.training.state import load_state, save_state
from automl_tl.training.stopping import stopping_rows
from automl_tl.training.train import Labelled, Outcome, Rung, SourceTask, Stage, TrainingData, train

SMALLEST_MICRO_BATCH = 1
CHECKPOINT = "model.safetensors"
STATE = "state.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOrder:
    """What a child needs of the source task."""

    checkpoint: Path  # the source model: layer groups and head
    train: SplitFiles
    kind: Kind
    n_outputs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialOrder:
    """All that crosses into the child; nothing of it is a live object, except plugins that were passed in Python."""

    database: Path
    study: str
    trial_id: int | None  # None: no study hears of it
    directory: Path  # the trial's own
    sources: PluginSources
    versions: dict[str, str]  # of the host's plugins
    spec: dict[str, Any]
    interface: Interface
    train: SplitFiles
    judged: SplitFiles | None  # what scores it; None: samples left out of a closed-form fit, or nothing does
    unlabeled: SplitFiles | None = None  # what its head learns from without labels
    kind: Kind
    metric: str
    source: SourceOrder | None  # None: the backbone's published weights are transferred, or none
    seed: int
    device: str  # as torch names it
    sitting: float  # when this search began: no connection that a process keeps between trials outlives it
    stage: Stage | None = None  # how far it is trained; None: to its end
    goes_on_from: Path | None = None  # the directory of the trial that it continues
    stored: Stored | None = None  # None: the backbone's weights are drawn anew
    divisor: int = 1  # of the micro-batch, after the child ran out of memory and was killed
    hyperband: int | None = None  # the most epochs of a trial, where Optuna's pruner may end this one
    deadline: float | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model that is ready to be trained, and what it trains on."""

    model: TransferModel
    inputs: Inputs
    reader: Reader
    train: OpenedSplit  # what it learns from


@dataclass(frozen=True, slots=True)
class Attempt:
    """A model that was trained, what it was trained on, and what came of it."""

    model: TransferModel
    inputs: Inputs
    outcome: Outcome
    facts: dict[str, Any]  # of this kind of training


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialReport:
    """What crosses back."""

    state: Literal["complete", "pruned", "failed"]
    score: float | None
    facts: dict[str, Any]  # kept as attributes of the trial


def run_trial(order: TrialOrder) -> TrialReport:
    """In a child: train the spec of an order."""
    started = time.perf_counter()
    spec = spec_from_json(order.spec)
    host = host_in_child(order.sources, order.sitting)
    check_versions(host, order.versions)
    backbone = host.backbone(spec.backbone)
    device = order.device
    micro_batch = max(SMALLEST_MICRO_BATCH, spec.optimization.batch_size // order.divisor)
    while True:
        try:
            attempt = _train_once(order, spec, host, backbone, device, micro_batch)
            break
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            reason = (str(error) or type(error).__name__).splitlines()[0]
        # Outside the handler: the traceback would keep the failed attempt's tensors alive.
        if device != "cpu":
            torch.cuda.empty_cache()
        if micro_batch <= SMALLEST_MICRO_BATCH:
            return TrialReport(state="failed", score=None, facts={"reason": f"out of memory at batch 1: {reason}"})
        micro_batch //= 2
    return report_of(order, attempt, micro_batch=micro_batch, seconds=time.perf_counter() - started)


def report_of(order: TrialOrder, attempt: Attempt, *, micro_batch: int, seconds: float) -> TrialReport:
    """Keep what was trained in the trial's folder, and say how it went."""
    outcome, model = attempt.outcome, attempt.model
    facts: dict[str, Any] = {
        "micro_batch": micro_batch,
        "trainable_parameters": sum(p.numel() for _, _, p in model.trained_parameters()),
        "head_parameters": count_parameters(model.head),
        "inputs": attempt.inputs.note,
        "rows_passed": attempt.inputs.passed,
        "seconds": seconds,
        "epochs": outcome.epochs,
        "ending": outcome.ending,
        "resumable": outcome.state is not None,
        **attempt.facts,
    }
    began = model.spec.fit != "descent" or outcome.epochs > 0
    unjudged = outcome.validation is None and order.judged is not None
    if not began or unjudged or outcome.ending == "pruned":
        return TrialReport(state="pruned", score=outcome.score, facts=facts)
    if outcome.validation is not None:
        labels, rows = _judged(order)
        facts["validation"] = _validation_scores(outcome.validation, labels, order)
        order.directory.mkdir(parents=True, exist_ok=True)
        save_said(order.directory, Said(rows, outcome.validation))
    save_tensors(trained_state(model), order.directory / CHECKPOINT)
    (order.directory / "spec.json").write_text(json.dumps(order.spec, indent=2) + "\n")
    if outcome.state is not None:
        save_state(outcome.state, order.directory / STATE)
    return TrialReport(state="complete", score=outcome.score, facts=facts)


def prepare(
    order: TrialOrder, spec: TrialSpec, host: PluginHost, backbone: Backbone, device: str, *, roomy: bool = True
) -> Prepared:
    """Assemble the model of a spec and find what it trains on; the head alone, where its features are stored."""
    splits = _open(order, spec, backbone)
    reader = Reader(
        spec=spec, backbone=backbone, stored=order.stored, device=device, deadline=order.deadline, roomy=roomy
    )
    inputs = reader.features(splits) if only_head_trains(spec) else None
    if inputs is not None:
        model = assemble_head(
            spec,
            host.head(spec.head),
            in_features=sum(reader.widths()),
            n_outputs=order.interface.n_outputs,
            seed=order.seed,
        ).to(device)
    else:
        source_weights = order.source.checkpoint if order.source and spec.weights == "transferred" else None
        model = assemble(
            spec, backbone, host.head(spec.head), order.interface, source_weights=source_weights, seed=order.seed
        ).to(device)
        inputs = reader.activations(model, splits)
    return Prepared(model, inputs, reader, splits.train)


def _open(order: TrialOrder, spec: TrialSpec, backbone: Backbone) -> Splits:
    """The trial's samples; those whose loss ends a training early are taken from what it would train on."""
    train, stopping = order.train, None
    if spec.fit == "descent" and spec.regularization.patience:
        every = order.train.open(backbone)
        carved = stopping_rows(
            every.labels, seed=order.seed, multilabel=order.kind == "multilabel", groups=every.groups
        )
        if carved is not None:
            train, stopping = order.train.only(carved[0]), order.train.only(carved[1])
    return Splits(
        train=train.open(backbone),
        judged=None if order.judged is None else order.judged.open(backbone),
        stopping=None if stopping is None else stopping.open(backbone),
        unlabeled=None if order.unlabeled is None else order.unlabeled.open(backbone),
    )


def _train_once(
    order: TrialOrder, spec: TrialSpec, host: PluginHost, backbone: Backbone, device: str, micro_batch: int
) -> Attempt:
    began = time.perf_counter()
    # Where memory was too short before, nothing is kept in it.
    ready = prepare(order, spec, host, backbone, device, roomy=micro_batch >= spec.optimization.batch_size)
    model, inputs = ready.model, ready.inputs
    passing = time.perf_counter() - began if inputs.passed else 0.0
    if spec.fit != "descent":
        widths, groups = ready.reader.widths(), ready.train.groups
        fitted, facts = fit_in_closed_form(model, inputs, widths, groups, order.kind, order.metric, device)
        return Attempt(model, inputs, fitted, facts)
    # Not at the top: neither a probe nor a pass needs a study, and both come before whatever trains layer groups.
    from automl_tl.search.rungs import rung

    precision = fastest(model, inputs.train, spec, device, precision_memory(), micro_batch=micro_batch)
    report: Rung = rung_of_nobody
    if order.trial_id is not None:
        report = rung(order.database, order.study, order.trial_id, hyperband=order.hyperband, sitting=order.sitting)
    outcome = train(
        model,
        training_data(order, ready, _source_task(order, spec, host, backbone, model)),
        spec,
        device=device,
        seed=order.seed,
        stage=order.stage,
        resumed=None if order.goes_on_from is None else load_state(order.goes_on_from / STATE),
        micro_batch=micro_batch,
        precision=precision,
        rung=report,
        deadline=order.deadline,
    )
    return Attempt(model, inputs, outcome, {"precision": precision, "passing_seconds": passing})


def rung_of_nobody(epoch: int, score: float) -> bool:
    """Nobody hears of this training's epochs, so nobody ends it."""
    return False


def training_data(order: TrialOrder, ready: Prepared, source: SourceTask | None = None) -> TrainingData:
    """What a trial learns from and is judged by."""
    inputs, spec, start = ready.inputs, ready.model.spec, None
    anew = any(group.action == "reinit" for group in kept(spec.plan))  # then no probe has seen what the head will read
    if spec.init_head == "probe" and not anew and order.goes_on_from is None:
        start = linear_start(ready.reader, ready.train, order.kind, order.interface.n_outputs, order.metric)
    return TrainingData(
        train=inputs.train,
        validation=inputs.validation,
        stopping=inputs.stopping,
        head_start=start,
        kind=order.kind,
        metric=order.metric,
        n_outputs=order.interface.n_outputs,
        source=source,
    )


def _judged(order: TrialOrder) -> tuple[np.ndarray, np.ndarray]:
    """Labels of the samples that judge a trial, and which of the development samples they are."""
    files = order.train if order.judged is None else order.judged
    labels = files.labels()
    return labels, np.arange(len(labels)) if files.chosen is None else files.chosen


def _validation_scores(said: np.ndarray, labels: np.ndarray, order: TrialOrder) -> dict[str, float]:
    """The scores besides the one that is maximized; the log loss decides between equal ones."""
    names = tuple(map(str, range(order.interface.n_outputs)))
    scores = report(labels, decide(said, order.kind), order.kind, names)
    shown = {name: scores[name] for name in ("f1_macro", "accuracy", "recall_macro")}
    return {**shown, "log_loss": log_loss(labels, said)}


def _source_task(
    order: TrialOrder, spec: TrialSpec, host: PluginHost, backbone: Backbone, model: TransferModel
) -> SourceTask | None:
    """The source rows with a linear head of their own, when the spec trains on both tasks."""
    if order.source is None or not spec.joint_source_weight:
        return None
    split = order.source.train.open(backbone)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(order.seed)
        head = nn.Linear(model.feature_shift.numel(), order.source.n_outputs)
    return SourceTask(data=Labelled(rows=split.rows, labels=split.labels), kind=order.source.kind, head=head)


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error)
    return "out of memory" in text or "not enough memory" in text or "can't allocate memory" in text


def load_trained(checkpoint: Path, model: TransferModel) -> TransferModel:
    """Put a trial's saved state into its assembled model, whose frozen groups are as they should be already."""
    tensors = load_tensors(checkpoint)
    expected = trained_state(model)
    if tensors.keys() != expected.keys() or any(tensors[name].shape != expected[name].shape for name in tensors):
        raise TrialError(f"the checkpoint {checkpoint} does not fit its spec; delete the trial's folder and resume")
    model.load_state_dict(tensors, strict=False)
    return model
