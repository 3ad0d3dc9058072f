"""The one training loop. Reads top to bottom: prepare, epochs of steps, validate, keep the best, stop early.

An epoch is whole passes over the training rows, at least `MIN_STEPS` steps. The state that is kept and scored is the
best epoch's. Nothing here knows of studies: a `Rung` callback says after each epoch whether to go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from automl_tl.features.rows import Rows
from automl_tl.model.assemble import TransferModel
from automl_tl.model.spec import TrialSpec
from automl_tl.training.augment import augment
from automl_tl.training.batches import epoch_batches, evaluation_batches, steps_per_epoch
from automl_tl.training.losses import Loss, label_tensor, probabilities, starting_point, task_loss
from automl_tl.training.metrics import Kind, validation_score
from automl_tl.training.optimizers import CLIP_NORM, build_optimizer, set_learning_rate

SCALE_ROWS = 256  # rows from which the scale of the features is taken
EVALUATION_BATCH = 128

Rung = Callable[[int, float], bool]
"""(epoch from 0, validation score so far best) -> True when the trial shall be pruned."""

Ending = Literal["finished", "early_stopping", "pruned", "deadline", "diverged"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """Rows with their labels: int64 classes (N,) or indicators (N, K)."""

    rows: Rows
    labels: np.ndarray
    from_cut: bool = False  # the rows are outputs of the model's frozen prefix


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceTask:
    """The source task, trained alongside with its own head."""

    data: Labelled
    kind: Kind
    head: nn.Module


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingData:
    """What a trial learns from and what it is judged by."""

    train: Labelled
    validation: Labelled
    kind: Kind
    metric: str
    n_outputs: int
    source: SourceTask | None = None


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What came of a training."""

    score: float | None = None  # best validation score; None when no epoch was finished
    loss: float = float("inf")  # validation loss of that epoch
    epoch: int = -1  # the best one, from 0
    curve: list[float] = field(default_factory=list)  # validation score of each epoch
    ending: Ending = "finished"
    state: dict[str, Tensor] = field(default_factory=dict)  # the model's, at the best epoch
    validation: np.ndarray | None = None  # probabilities (N, K) of the validation rows, at the best epoch


def train(
    model: TransferModel,
    data: TrainingData,
    spec: TrialSpec,
    *,
    device: str,
    seed: int,
    micro_batch: int | None = None,
    rung: Rung = lambda epoch, score: False,
    deadline: float | None = None,
) -> Outcome:
    """Train `model` in place by `spec`; it holds the best epoch's state afterwards.

    Parameters
    ----------
    micro_batch
        Rows that go through the model at once; gradients are accumulated up to the spec's batch size.
    deadline
        `time.time()` at which training stops with what it has.
    """
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    batch_size, n_train = spec.optimization.batch_size, len(data.train.labels)
    # Memory that is too short for a batch with gradients may be too short for many rows without.
    at_once = EVALUATION_BATCH if micro_batch is None or micro_batch >= batch_size else micro_batch
    model.to(device)
    if deadline is not None and time.time() > deadline:
        return _finish(model, Outcome(), "deadline")
    _fit_feature_scale(model, data.train, device, generator, min(at_once, 64))
    loss = _loss(data, spec, device)
    source_head = data.source.head.to(device) if data.source and spec.joint_source_weight else None
    optimizer = build_optimizer(model, spec, extra=source_head.parameters() if source_head else ())
    pull = starting_point(_transferred(model, spec), spec.regularization.l2_sp)
    total_steps = spec.max_epochs * steps_per_epoch(n_train, batch_size)
    labels = label_tensor(data.train.labels, device)
    outcome, lowest_loss, waited, step = Outcome(), float("inf"), 0, 0
    unfrozen = max((plan.unfreeze_epoch for plan in model.plans if plan.action != "freeze"), default=0)

    for epoch in range(spec.max_epochs):
        model.begin_epoch(epoch)
        for indices in epoch_batches(n_train, batch_size, generator, data.train.rows.lengths):
            if deadline is not None and time.time() > deadline:
                return _finish(model, outcome, "deadline")
            set_learning_rate(optimizer, step, total_steps)
            step += 1
            optimizer.zero_grad(set_to_none=True)
            for part in np.array_split(indices, -(-len(indices) // (micro_batch or len(indices)))):
                share = len(part) / len(indices)
                part_loss = loss(_logits(model, data.train, part, spec, device), labels[torch.from_numpy(part)])
                torch.autograd.backward(share * part_loss)
                if source_head is not None:
                    assert data.source is not None
                    weight = share * spec.joint_source_weight
                    _source_step(model, data.source, source_head, weight, generator, len(part), device)
            if pull is not None:
                pull.add_gradient()
            nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], CLIP_NORM)
            optimizer.step()

        said, validation_loss = _validate(model, data, loss, device, at_once)
        score = validation_score(data.validation.labels, said, data.kind, data.metric)
        if not np.isfinite(validation_loss):
            return _finish(model, outcome, "diverged")
        outcome.curve.append(score)
        progress = outcome.score is None or score > outcome.score + spec.regularization.min_delta
        progress |= validation_loss < lowest_loss
        lowest_loss = min(lowest_loss, validation_loss)
        if outcome.score is None or (score, -validation_loss) > (outcome.score, -outcome.loss):
            outcome.score, outcome.loss, outcome.epoch, outcome.validation = score, validation_loss, epoch, said
            outcome.state = {name: value.detach().clone() for name, value in model.state_dict().items()}
        if rung(epoch, outcome.score if outcome.score is not None else score):
            return _finish(model, outcome, "pruned")
        waited = 0 if progress or epoch < unfrozen else waited + 1
        if waited > spec.regularization.patience:
            return _finish(model, outcome, "early_stopping")
    return _finish(model, outcome, "finished")


def predict_probabilities(
    model: TransferModel,
    data: Labelled | Rows,
    kind: Kind,
    device: str,
    *,
    tick: Callable[[int], None] = lambda done: None,
) -> np.ndarray:
    """Probabilities (N, K), float32, in the order of the rows; no augmentation, no dropout. `tick(done)`: progress."""
    labelled = data if isinstance(data, Labelled) else Labelled(rows=data, labels=np.empty(0))
    return probabilities(_all_logits(model, labelled, device, EVALUATION_BATCH, tick), kind).cpu().numpy()


def _logits(model: TransferModel, data: Labelled, indices: np.ndarray, spec: TrialSpec, device: str) -> Tensor:
    batch = data.rows.batch(indices, device)
    if data.from_cut:
        return model.from_cut(batch)
    logits: Tensor = model(augment(batch, spec.regularization.augmentation))
    return logits


def _source_step(
    model: TransferModel,
    source: SourceTask,
    head: nn.Module,
    weight: float,
    generator: np.random.Generator,
    n: int,
    device: str,
) -> None:
    """Add the gradient of the weighted source loss on as many source rows: shared groups, its own head."""
    indices = generator.integers(0, len(source.data.labels), n)
    features = model.features(model.prefix(source.data.rows.batch(indices, device)))
    loss = task_loss(source.kind, source.data.labels, 0, label_smoothing=0.0, class_weight="none", device=device)
    target = label_tensor(source.data.labels[indices], device)
    torch.autograd.backward(weight * loss(model.classify(features, head), target))


@torch.no_grad()
def _fit_feature_scale(
    model: TransferModel, train: Labelled, device: str, generator: np.random.Generator, at_once: int
) -> None:
    indices = np.sort(generator.permutation(len(train.labels))[:SCALE_ROWS])
    model.eval()
    parts = []
    for part in np.array_split(indices, -(-len(indices) // at_once)):
        batch = train.rows.batch(part, device)
        parts.append(model.features(batch if train.from_cut else model.prefix(batch)))
    model.set_feature_scale(torch.cat(parts))


def _loss(data: TrainingData, spec: TrialSpec, device: str) -> Loss:
    settings = spec.regularization
    return task_loss(
        data.kind,
        data.train.labels,
        data.n_outputs,
        label_smoothing=settings.label_smoothing,
        class_weight=settings.class_weight,
        device=device,
    )


def _transferred(model: TransferModel, spec: TrialSpec) -> list[nn.Parameter]:
    if spec.weights == "random":
        return []
    return [p for plan, _, p in model.trained_parameters() if plan is not None and plan.action == "tune"]


def _validate(
    model: TransferModel, data: TrainingData, loss: Loss, device: str, at_once: int
) -> tuple[np.ndarray, float]:
    """Probabilities and loss on the validation rows."""
    logits = _all_logits(model, data.validation, device, at_once)
    value = float(loss(logits, label_tensor(data.validation.labels, device)))
    return probabilities(logits, data.kind).cpu().numpy(), value


@torch.no_grad()
def _all_logits(
    model: TransferModel, data: Labelled, device: str, at_once: int, tick: Callable[[int], None] = lambda done: None
) -> Tensor:
    model.eval()
    logits: Tensor | None = None
    done = 0
    for indices in evaluation_batches(len(data.rows), at_once, data.rows.lengths):
        batch = data.rows.batch(indices, device)
        part = model.from_cut(batch) if data.from_cut else model(batch)
        if logits is None:
            logits = part.new_empty(len(data.rows), part.shape[1])
        logits[torch.from_numpy(indices)] = part
        done += len(indices)
        tick(done)
    assert logits is not None
    return logits


def _finish(model: TransferModel, outcome: Outcome, ending: Ending) -> Outcome:
    if outcome.state:
        model.load_state_dict(outcome.state)
    outcome.ending = ending
    return outcome
