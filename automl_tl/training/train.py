"""The one training loop. Reads top to bottom: begin or go on, epochs of steps, judge each by the averaged weights.

An epoch is a pass over the training rows, or `MIN_STEPS` steps where a pass has fewer. A training goes on in stages:
where one sitting ends (`TrainingState`) the next one takes up, bit for bit on a CPU, and no epoch is trained twice. A
stage makes the same steps whether or not others follow, except one that anneals, after which there is no going on.

What is scored and kept is the average of the weights as it is after the last epoch: to choose among epochs by the rows
that also choose among trials would flatter. Nothing here knows of studies: a `Rung` callback says after each epoch
whether to go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from automl_tl.errors import TrialError
from automl_tl.features.augment import augment
from automl_tl.metrics.scores import validation_score
from automl_tl.model.assemble import TransferModel
from automl_tl.model.spec import TrialSpec
from automl_tl.training.averaging import are_finite
from automl_tl.training.batches import epoch_batches, steps_per_epoch
from automl_tl.training.beginning import fit_feature_scale, start_head
from automl_tl.training.data import Labelled, LinearStart, SourceTask, TrainingData
from automl_tl.training.evaluation import all_logits, judge, predict_probabilities
from automl_tl.training.learner import new_learner
from automl_tl.training.losses import Loss, label_tensor, task_loss
from automl_tl.training.mix import draw_mixing, shortened
from automl_tl.training.optimizers import Schedule
from automl_tl.training.precision import Precision, laid_out, lay_out, running
from automl_tl.training.state import TrainingState
from automl_tl.training.stopping import stopping_rows

__all__ = [
    "Ending",
    "Labelled",
    "LinearStart",
    "Outcome",
    "Rung",
    "SourceTask",
    "Stage",
    "TrainingData",
    "TrainingState",
    "predict_probabilities",
    "stopping_rows",
    "train",
]

Rung = Callable[[int, float], bool]
"""(epoch from 0, its validation score) -> True when the trial shall be pruned."""

Ending = Literal["stage", "early_stopping", "pruned", "deadline", "diverged"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """How far a training goes in this sitting."""

    until: int  # epochs in all, those of earlier stages included
    anneal: bool = False  # let the rate fall to zero over the last fifth of all steps; what was annealed never goes on


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What came of a sitting. `score`, `loss` and `validation` are of its last epoch, by the averaged weights."""

    score: float | None = None  # validation score; None when no epoch was finished, or nothing judges
    loss: float = float("inf")  # log loss of the validation rows
    validation: np.ndarray | None = None  # probabilities (N, K) of the validation rows
    epochs: int = 0  # done in all, those of earlier stages included
    curve: list[float] = field(default_factory=list)  # validation score of each of them, where anything judges
    ending: Ending = "stage"
    state: TrainingState | None = None  # what the next stage goes on from; None: there is no going on


def train(
    model: TransferModel,
    data: TrainingData,
    spec: TrialSpec,
    *,
    device: str,
    seed: int,
    stage: Stage | None = None,
    resumed: TrainingState | None = None,
    micro_batch: int | None = None,
    precision: Precision = "channels_last",
    rung: Rung = lambda epoch, score: False,
    deadline: float | None = None,
) -> Outcome:
    """Train `model` in place by `spec`; afterwards it holds the averaged weights of the last epoch that was finished.

    Parameters
    ----------
    stage
        How far to go; None: to the spec's `max_epochs` at once, annealed.
    resumed
        Where an earlier stage ended, of the same spec; `model` is assembled as it was then. With the same data and seed
        it goes on as if it had not been interrupted. It may also go on with other samples, as a training of the search
        does with those that judged it.
    micro_batch
        Rows that go through the model at once; gradients are accumulated up to the spec's batch size.
    precision
        Of every pass through the model, those of validation too; `fastest` finds out which one pays.
    deadline
        `time.time()` at which training stops with what it has. An epoch that it cuts off counts as not begun.

    Raises
    ------
    TrialError
        When there is nothing left to train, when `resumed` is of another kind of model, or when the head cannot start
        from `data.head_start`.
    """
    stage = stage or Stage(until=spec.max_epochs, anneal=True)
    outcome, last = Outcome(), resumed
    if resumed is not None:
        outcome = Outcome(epochs=resumed.epoch, curve=list(resumed.curve), state=resumed)
    if stage.until <= outcome.epochs:
        raise TrialError(f"a training that has done {outcome.epochs} epochs cannot go on until epoch {stage.until}")
    batch_size, n_train = spec.optimization.batch_size, len(data.train.labels)
    done = 0 if resumed is None else resumed.step
    steps = done + (stage.until - outcome.epochs) * steps_per_epoch(n_train, batch_size)
    schedule = Schedule(spec.optimization.warm_up, steps if stage.anneal else None)
    # Memory that is too short for a batch with gradients may be too short for many rows without.
    at_once = None if micro_batch is None or micro_batch >= batch_size else micro_batch

    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    model.to(device)
    lay_out(model, precision)
    if _is_over(deadline):
        return _end(outcome, "deadline", model, last)
    if resumed is None:
        fit_feature_scale(model, data.train, device, generator, at_once=min(at_once or 64, 64), precision=precision)
        if data.head_start is not None:
            start_head(model, data.head_start)
    source_head = data.source.head.to(device) if data.source and spec.joint_source_weight else None
    learner = new_learner(model, spec, generator, source_head, device)
    if resumed is not None:
        learner.go_on(resumed)
    loss, labels = _loss(data, spec, device), label_tensor(data.train.labels, device)
    say = partial(all_logits, model, device=device, precision=precision, at_once=at_once)

    for epoch in range(learner.epoch, stage.until):
        model.begin_epoch(epoch)
        for indices in epoch_batches(n_train, batch_size, generator, data.train.rows.lengths):
            if _is_over(deadline):
                return _end(outcome, "deadline", model, last)
            schedule.set(learner.optimizer, learner.step)
            learner.optimizer.zero_grad(set_to_none=True)
            for part in np.array_split(indices, -(-len(indices) // (micro_batch or len(indices)))):
                share = len(part) / len(indices)
                part_loss = _part_loss(model, data.train, part, labels, loss, spec, device, precision)
                torch.autograd.backward(share * part_loss)
                if source_head is not None:
                    assert data.source is not None
                    weight = share * spec.joint_source_weight
                    _source_step(model, data.source, source_head, weight, generator, len(part), device, precision)
            learner.descend()

        with learner.average.standing_in():
            found = judged(None if data.validation is None else say(data.validation), data, learner.curve)
            if learner.patience.epochs and data.stopping is not None:
                learner.patience.note(epoch, judge(say(data.stopping), data.stopping.labels, data.kind)[1])
        if has_diverged(found, learner.average.values):
            return _end(outcome, "diverged", model, last)
        learner.epoch, learner.curve = epoch + 1, found.curve
        last = learner.state()
        outcome = replace(found, epochs=last.epoch, state=None if schedule.has_fallen(last.step) else last)
        if found.score is not None and rung(epoch, found.score):
            return _end(outcome, "pruned", model, last)
        if learner.patience.is_exhausted:
            return _end(outcome, "early_stopping", model, last)
    return _end(outcome, "stage", model, last)


def judged(logits: Tensor | None, data: TrainingData, curve: Sequence[float]) -> Outcome:
    """What logits (N, K) of the validation rows are worth, after epochs with this `curve`; None: nothing judges."""
    if logits is None or data.validation is None:
        return Outcome(curve=list(curve))
    said, loss = judge(logits, data.validation.labels, data.kind)
    score = validation_score(data.validation.labels, said, data.kind, data.metric)
    return Outcome(score=score, loss=loss, validation=said, curve=[*curve, score])


def has_diverged(found: Outcome, averages: Mapping[str, Tensor]) -> bool:
    """Whether the weights, or what they say, are no numbers any more."""
    return not are_finite(averages) or (found.score is not None and not np.isfinite(found.loss))


def _is_over(deadline: float | None) -> bool:
    return deadline is not None and time.time() > deadline


def _end(outcome: Outcome, ending: Ending, model: TransferModel, last: TrainingState | None) -> Outcome:
    """Put the averaged weights of the last finished epoch into the model."""
    if last is not None:
        model.load_state_dict(last.deployed, strict=False)
    outcome.ending = ending
    if ending in ("early_stopping", "diverged"):
        outcome.state = None
    return outcome


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
    if model.cut == 0:
        batch = shortened(batch, spec.tokens)
    mixing = draw_mixing(len(part), spec.regularization, device, tokens=spec.tokens)
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
    loss = task_loss(
        source.kind, source.data.labels, logits.shape[1], label_smoothing=0.0, class_weight="none", device=device
    )
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
