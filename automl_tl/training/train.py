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

from automl_tl.features.augment import augment
from automl_tl.features.rows import Rows
from automl_tl.metrics.scores import Kind, validation_score
from automl_tl.model.assemble import TransferModel, trained_state
from automl_tl.model.spec import Regularization, TrialSpec
from automl_tl.training.batches import epoch_batches, evaluation_batches, steps_per_epoch
from automl_tl.training.losses import Loss, label_tensor, probabilities, starting_point, task_loss
from automl_tl.training.mix import draw_mixing
from automl_tl.training.optimizers import CLIP_NORM, build_optimizer, set_learning_rate
from automl_tl.training.precision import Precision, laid_out, lay_out, running

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
    start: int = 0  # layer groups that the rows have passed already; never more than the model's cut


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
    state: dict[str, Tensor] = field(default_factory=dict)  # of the model, as far as it trains, at the best epoch
    validation: np.ndarray | None = None  # probabilities (N, K) of the validation rows, at the best epoch


@dataclass(slots=True, kw_only=True)
class Progress:
    """Judges epoch after epoch: which one is the best so far, and how many have passed without getting better."""

    settings: Regularization
    waits_from: int = 0  # epoch from which all trains that ever will; none before it counts as waited for in vain
    outcome: Outcome = field(default_factory=Outcome)
    lowest_loss: float = float("inf")
    waited: int = 0

    def note(self, score: float, loss: float, said: np.ndarray, model: TransferModel) -> None:
        """Take down an epoch: its validation score and loss, and what the model said; keep its state if it is best."""
        outcome, epoch = self.outcome, len(self.outcome.curve)
        outcome.curve.append(score)
        better = outcome.score is None or score > outcome.score + self.settings.min_delta or loss < self.lowest_loss
        self.lowest_loss = min(self.lowest_loss, loss)
        self.waited = 0 if better or epoch < self.waits_from else self.waited + 1
        if outcome.score is None or (score, -loss) > (outcome.score, -outcome.loss):
            outcome.score, outcome.loss, outcome.epoch, outcome.validation = score, loss, epoch, said
            outcome.state = {name: value.detach().clone() for name, value in trained_state(model).items()}

    @property
    def is_over(self) -> bool:
        """Whether patience is exhausted."""
        return self.waited > self.settings.patience

    def finish(self, model: TransferModel, ending: Ending) -> Outcome:
        """Put the best epoch's state back into the model."""
        model.load_state_dict(self.outcome.state, strict=False)
        self.outcome.ending = ending
        return self.outcome


def train(
    model: TransferModel,
    data: TrainingData,
    spec: TrialSpec,
    *,
    device: str,
    seed: int,
    micro_batch: int | None = None,
    precision: Precision = "channels_last",
    rung: Rung = lambda epoch, score: False,
    deadline: float | None = None,
) -> Outcome:
    """Train `model` in place by `spec`; it holds the best epoch's state afterwards.

    Parameters
    ----------
    micro_batch
        Rows that go through the model at once; gradients are accumulated up to the spec's batch size.
    precision
        Of every pass through the model, those of validation too; `fastest` finds out which one pays.
    deadline
        `time.time()` at which training stops with what it has.
    """
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    batch_size, n_train = spec.optimization.batch_size, len(data.train.labels)
    # Memory that is too short for a batch with gradients may be too short for many rows without.
    at_once = EVALUATION_BATCH if micro_batch is None or micro_batch >= batch_size else micro_batch
    progress = Progress(settings=spec.regularization, waits_from=last_unfreezing(model))
    model.to(device)
    lay_out(model, precision)
    if deadline is not None and time.time() > deadline:
        return progress.finish(model, "deadline")
    fit_feature_scale(model, data.train, device, generator, at_once=min(at_once, 64), precision=precision)
    loss = _loss(data, spec, device)
    source_head = data.source.head.to(device) if data.source and spec.joint_source_weight else None
    optimizer = build_optimizer(model, spec, extra=source_head.parameters() if source_head else ())
    pull = starting_point(_transferred(model, spec), spec.regularization.l2_sp)
    total_steps = spec.max_epochs * steps_per_epoch(n_train, batch_size)
    labels, step = label_tensor(data.train.labels, device), 0

    for epoch in range(spec.max_epochs):
        model.begin_epoch(epoch)
        for indices in epoch_batches(n_train, batch_size, generator, data.train.rows.lengths):
            if deadline is not None and time.time() > deadline:
                return progress.finish(model, "deadline")
            set_learning_rate(optimizer, step, total_steps)
            step += 1
            optimizer.zero_grad(set_to_none=True)
            for part in np.array_split(indices, -(-len(indices) // (micro_batch or len(indices)))):
                share = len(part) / len(indices)
                part_loss = _part_loss(model, data.train, part, labels, loss, spec, device, precision)
                torch.autograd.backward(share * part_loss)
                if source_head is not None:
                    assert data.source is not None
                    weight = share * spec.joint_source_weight
                    _source_step(model, data.source, source_head, weight, generator, len(part), device, precision)
            if pull is not None:
                pull.add_gradient()
            nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], CLIP_NORM)
            optimizer.step()

        said, validation_loss = _validate(model, data, loss, device, precision, at_once)
        score = validation_score(data.validation.labels, said, data.kind, data.metric)
        if not np.isfinite(validation_loss):
            return progress.finish(model, "diverged")
        progress.note(score, validation_loss, said, model)
        if rung(epoch, progress.outcome.score or 0.0):
            return progress.finish(model, "pruned")
        if progress.is_over:
            return progress.finish(model, "early_stopping")
    return progress.finish(model, "finished")


def predict_probabilities(
    model: TransferModel,
    data: Labelled | Rows,
    kind: Kind,
    device: str,
    *,
    precision: Precision = "channels_last",
    tick: Callable[[int], None] = lambda done: None,
) -> np.ndarray:
    """Probabilities (N, K), float32, in the order of the rows; no augmentation, no dropout. `tick(done)`: progress."""
    labelled = data if isinstance(data, Labelled) else Labelled(rows=data, labels=np.empty(0))
    logits = _all_logits(model, labelled, device, precision, EVALUATION_BATCH, tick)
    return probabilities(logits, kind).cpu().numpy()


def last_unfreezing(model: TransferModel) -> int:
    """The first epoch in which all layer groups train that ever do."""
    return max((plan.unfreeze_epoch for plan in model.plans if plan.action != "freeze"), default=0)


@torch.no_grad()
def fit_feature_scale(
    model: TransferModel,
    train: Labelled,
    device: str,
    generator: np.random.Generator,
    *,
    at_once: int,
    precision: Precision = "channels_last",
) -> None:
    """Center and scale what the head reads by `SCALE_ROWS` training rows drawn by `generator`."""
    indices = np.sort(generator.permutation(len(train.labels))[:SCALE_ROWS])
    model.eval()
    parts = []
    for part in np.array_split(indices, -(-len(indices) // at_once)):
        with running(precision, device):
            parts.append(model.features(laid_out(train.rows.batch(part, device), precision), train.start).float())
    model.set_feature_scale(torch.cat(parts))


def _part_loss(
    model: TransferModel,
    data: Labelled,
    part: np.ndarray,
    labels: Tensor,
    loss: Loss,
    spec: TrialSpec,
    device: str,
    precision: Precision,
) -> Tensor:
    """The loss on the rows at `part`, augmented and mixed as the spec says."""
    batch = data.rows.batch(part, device)
    if data.start == 0:
        batch = augment(batch, spec.regularization.augmentation)
    mixing = draw_mixing(len(part), spec.regularization, device)
    with running(precision, device):
        logits = model(laid_out(batch, precision), data.start, mixing.change)
    return mixing.loss(loss, logits.float(), labels[torch.from_numpy(part)])


def _source_step(
    model: TransferModel,
    source: SourceTask,
    head: nn.Module,
    weight: float,
    generator: np.random.Generator,
    n: int,
    device: str,
    precision: Precision,
) -> None:
    """Add the gradient of the weighted source loss on as many source rows: shared groups, its own head."""
    indices = generator.integers(0, len(source.data.labels), n)
    with running(precision, device):
        features = model.features(laid_out(source.data.rows.batch(indices, device), precision))
        logits = model.classify(features, head)
    loss = task_loss(source.kind, source.data.labels, 0, label_smoothing=0.0, class_weight="none", device=device)
    target = label_tensor(source.data.labels[indices], device)
    torch.autograd.backward(weight * loss(logits.float(), target))


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
    model: TransferModel, data: TrainingData, loss: Loss, device: str, precision: Precision, at_once: int
) -> tuple[np.ndarray, float]:
    """Probabilities and loss on the validation rows."""
    logits = _all_logits(model, data.validation, device, precision, at_once)
    value = float(loss(logits, label_tensor(data.validation.labels, device)))
    return probabilities(logits, data.kind).cpu().numpy(), value


@torch.no_grad()
def _all_logits(
    model: TransferModel,
    data: Labelled,
    device: str,
    precision: Precision,
    at_once: int,
    tick: Callable[[int], None] = lambda done: None,
) -> Tensor:
    model.eval()
    logits: Tensor | None = None
    done = 0
    for indices in evaluation_batches(len(data.rows), at_once, data.rows.lengths):
        with running(precision, device):
            part = model(laid_out(data.rows.batch(indices, device), precision), data.start).float()
        if logits is None:
            logits = part.new_empty(len(data.rows), part.shape[1])
        logits[torch.from_numpy(indices)] = part
        done += len(indices)
        tick(done)
    assert logits is not None
    return logits
