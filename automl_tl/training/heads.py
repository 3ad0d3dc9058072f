"""Heads of many trials on the same stored features, trained at once as one batched computation.

`train` for heads alone, to the end at once: the same steps, rates, clipping, averaging, judging and stopping, each head
by its own spec. Forward and backward pass are one for all (`torch.func.vmap`); every head's parameters are a row of a
stack, on which its optimizer steps as ever. All heads see the same batches and drop out by the same draws, each its own
share of them, so what comes of a head does not depend on those that train beside it.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from automl_tl.model.assemble import TransferModel
from automl_tl.model.spec import only_head_trains
from automl_tl.training.averaging import decay_at
from automl_tl.training.batches import epoch_batches, evaluation_batches, steps_per_epoch
from automl_tl.training.beginning import fit_feature_scale, start_head
from automl_tl.training.data import Labelled, TrainingData
from automl_tl.training.evaluation import EVALUATION_BATCH, judge
from automl_tl.training.losses import label_tensor, task_losses
from automl_tl.training.mix import draw_mixing
from automl_tl.training.optimizers import Schedule, build_optimizer
from automl_tl.training.stopping import Patience
from automl_tl.training.train import Ending, Outcome, has_diverged, judged

FEWEST, LARGE = 4, 200_000  # heads, and parameters of each: from and up to where it pays on a CPU


def batch_key(model: TransferModel) -> Hashable:
    """Models with equal keys can train at once on the same features; None: this one only trains alone, by `train`.

    Optimizers, learning rates, warm-up, clipping, averaging, weight decay, dropout, label smoothing, class weights and
    patience may differ.
    """
    spec = model.spec
    if not only_head_trains(spec) or spec.joint_source_weight or not _is_batchable(model):
        return None
    shapes = tuple((name, tuple(parameter.shape)) for name, parameter in model.head.named_parameters())
    steps = (spec.optimization.batch_size, spec.max_epochs)
    mixing = (spec.regularization.mixup, spec.regularization.activation_noise)
    return spec.head, tuple(sorted(spec.head_parameters.items())), shapes, spec.init_head, steps, mixing


def pays(models: Sequence[TransferModel], device: str) -> bool:
    """Whether these train faster at once than one after the other; see `benchmarks/many_heads.py`.

    On a CPU a large head keeps the processor busy by itself. A GPU waits for its next small task whatever the head.
    """
    size = sum(parameter.numel() for parameter in models[0].head.parameters())
    return len(models) > 1 if device != "cpu" else len(models) >= FEWEST and size <= LARGE


def train_heads(
    models: Sequence[TransferModel], data: TrainingData, *, device: str, seed: int, deadline: float | None = None
) -> list[Outcome]:
    """Train the heads of `models`, which have one `batch_key`, on rows that are the features (N, D) they read.

    Each model holds its averaged weights of its last epoch afterwards. Without dropout a head learns what `train`
    teaches it with the same seed, to its `max_epochs` at once, so that there is no going on. `deadline` is the
    `time.time()` at which training stops with what it has.
    """
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    spec, n_train = models[0].spec, len(data.train.labels)  # only what is in the key is asked of this one spec
    batch_size = spec.optimization.batch_size
    _begin(models, data, device, generator)
    total_steps = spec.max_epochs * steps_per_epoch(n_train, batch_size)
    trainees = [_trainee(model, total_steps) for model in models]
    labels, step, going = label_tensor(data.train.labels, device), 0, trainees
    drops = torch.Generator(device).manual_seed(seed)

    for epoch in range(spec.max_epochs):
        stack = Stack(going, data, device)
        for indices in epoch_batches(n_train, batch_size, generator, data.train.rows.lengths):
            if deadline is not None and time.time() > deadline:
                return _finish(trainees, "deadline")
            mixing = draw_mixing(len(indices), spec.regularization, device)
            features = mixing.change(data.train.rows.batch(indices, device))
            assert isinstance(features, Tensor)
            logits = stack.logits(features, drops)
            stack.set_gradients(mixing.loss(stack.loss, logits, labels[torch.from_numpy(indices)]))
            for trainee in going:
                trainee.schedule.set(trainee.optimizer, step)
                trainee.optimizer.step()
            stack.average(step)
            step += 1
        said, averages = (stack.say(data.validation), stack.say(data.stopping)), stack.averaged_rows()
        for trainee, validation, stopping, averaged in zip(going, *said, averages, strict=True):
            trainee.take_down(epoch, averaged, validation, stopping, data)
        going = [trainee for trainee in going if not trainee.has_stopped]
        if not going:
            break
    return _finish(trainees, "stage")


@dataclass(slots=True, kw_only=True)
class Trainee:
    """A model whose head is trained among others."""

    model: TransferModel
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    patience: Patience
    averaged: dict[str, Tensor]  # the head's weights, as of the last epoch that was finished
    outcome: Outcome = field(default_factory=Outcome)
    has_stopped: bool = False

    def take_down(
        self,
        epoch: int,
        averaged: dict[str, Tensor],
        validation: Tensor | None,
        stopping: Tensor | None,
        data: TrainingData,
    ) -> None:
        """Judge an epoch by what the averaged weights say (N, K) of two sets of rows, and stop where `train` would."""
        found = judged(validation, data, self.outcome.curve)
        if has_diverged(found, averaged):
            self.stop("diverged")
            return
        self.outcome, self.averaged = replace(found, epochs=epoch + 1), averaged
        if self.patience.epochs and stopping is not None and data.stopping is not None:
            self.patience.note(epoch, judge(stopping, data.stopping.labels, data.kind)[1])
        if self.patience.is_exhausted:
            self.stop("early_stopping")

    def stop(self, ending: Ending) -> None:
        """Put the averaged weights of the last finished epoch into the head; its parameters leave the stack."""
        for name, parameter in self.model.head.named_parameters():
            kept = self.averaged[name] if self.outcome.epochs else parameter.data
            parameter.data, parameter.grad = kept.clone(), None
        self.outcome.ending = ending
        self.model.eval()
        self.has_stopped = True


class Stack:
    """M heads as one: their parameters are rows of tensors (M, ...), and so are gradients and averages."""

    def __init__(self, trainees: Sequence[Trainee], data: TrainingData, device: str) -> None:
        models = [trainee.model for trainee in trainees]
        self.model = models[0]  # its head is called with everyone's parameters; all scale features alike
        self.device = device
        names = [name for name, _ in self.model.head.named_parameters()]
        self.members = {name: [model.head.get_parameter(name) for model in models] for name in names}
        self.parameters = {
            name: torch.stack([parameter.detach() for parameter in members]).requires_grad_()
            for name, members in self.members.items()
        }
        for name, members in self.members.items():
            for parameter, row in zip(members, self.parameters[name].detach(), strict=True):
                parameter.data = row
        self.averaged = {name: torch.stack([trainee.averaged[name] for trainee in trainees]) for name in names}
        settings = [model.spec.regularization for model in models]
        self.loss = task_losses(data.kind, data.train.labels, data.n_outputs, settings, device)
        descents = [model.spec.optimization for model in models]
        self.clip_norms = torch.tensor([each.clip_norm or float("inf") for each in descents], device=device)
        self.averaging = [each.averaging for each in descents]
        rates = sorted({each.dropout for each in settings})
        self.dropout = torch.tensor(rates if len(rates) == 1 else [each.dropout for each in settings], device=device)
        # Memory that is kept: to come by so much of it anew in every step takes longer than to fill it.
        size = self.dropout.numel() * self.model.spec.optimization.batch_size * len(self.model.feature_shift)
        self.memory = torch.empty(size if rates[-1] > 0 else 0, device=device)

    def logits(self, features: Tensor, drops: torch.Generator) -> Tensor:
        """(N, D) -> (M, N, K), with each head's dropout."""
        self.model.head.train()
        scaled = self._scaled(features)
        if len(self.memory):
            scaled = self._dropped(scaled, drops)
        return _logits(self.model.head, self.parameters, scaled)

    def set_gradients(self, losses: Tensor) -> None:
        """Give every parameter the gradient of its head's loss, clipped by the norm of that head's gradients."""
        stacked = list(self.parameters.values())
        for parameters in stacked:
            parameters.grad = None
        torch.autograd.backward(losses.sum(), inputs=stacked)
        flat = [torch.zeros_like(s).view(len(s), -1) if s.grad is None else s.grad.view(len(s), -1) for s in stacked]
        norms = torch.stack([torch.linalg.vector_norm(gradients, dim=1) for gradients in flat]).norm(dim=0)
        share = (self.clip_norms / (norms + 1e-6)).clamp(max=1.0)  # as `clip_grad_norm_` has it
        for members, gradients in zip(self.members.values(), flat, strict=True):
            gradients.mul_(share.unsqueeze(1))
            for parameter, row in zip(members, gradients, strict=True):
                parameter.grad = row.view_as(parameter)

    @torch.no_grad()
    def average(self, step: int) -> None:
        """Take the weights after this step, from 0, into the averages."""
        news = torch.tensor([1 - decay_at(step, averaging) for averaging in self.averaging], device=self.device)
        for name, averaged in self.averaged.items():
            averaged.lerp_(self.parameters[name].detach(), news.view(-1, *[1] * (averaged.ndim - 1)))

    def averaged_rows(self) -> list[dict[str, Tensor]]:
        """Each head's averaged weights."""
        return [{name: rows[i].clone() for name, rows in self.averaged.items()} for i in range(len(self.averaging))]

    @torch.no_grad()
    def say(self, data: Labelled | None) -> Sequence[Tensor | None]:
        """What the averaged weights of each head say of the rows: logits (N, K); None where there are no rows."""
        if data is None:
            return [None] * len(self.averaging)
        self.model.head.eval()
        logits: Tensor | None = None
        for indices in evaluation_batches(len(data.rows), EVALUATION_BATCH, data.rows.lengths):
            features = data.rows.batch(indices, self.device)
            assert isinstance(features, Tensor)
            part = _logits(self.model.head, self.averaged, self._scaled(features))
            if logits is None:
                logits = part.new_empty(len(part), len(data.rows), part.shape[2])
            logits[:, torch.from_numpy(indices)] = part
        assert logits is not None
        return list(logits)

    def _scaled(self, features: Tensor) -> Tensor:
        return (features - self.model.feature_shift) / self.model.feature_scale

    def _dropped(self, features: Tensor, drops: torch.Generator) -> Tensor:
        """(N, D) -> (M, N, D); where all heads drop out equally much, (1, N, D)."""
        rates = self.dropout.view(-1, 1, 1)
        drawn = torch.rand(features.shape, generator=drops, device=self.device)
        shape = (len(rates), *features.shape)
        kept = torch.ge(drawn, rates, out=self.memory[: drawn.numel() * len(rates)].view(shape))
        return kept.mul_(features).div_(1 - rates)


def _logits(head: nn.Module, parameters: Mapping[str, Tensor], features: Tensor) -> Tensor:
    """Features of all heads (N, D) or of each (M, N, D) -> (M, N, K)."""

    def one(own: dict[str, Tensor], read: Tensor) -> Tensor:
        logits: Tensor = functional_call(head, own, (read,))
        return logits

    if features.ndim == 3 and len(features) == 1:
        features = features[0]
    each = 0 if features.ndim == 3 else None
    logits: Tensor = vmap(one, in_dims=(0, each), randomness="same")(dict(parameters), features)
    return logits


def _is_batchable(model: TransferModel) -> bool:
    """Whether the head has no buffers, of which every trial would need its own, and nothing that `vmap` cannot do."""
    if next(model.head.buffers(), None) is not None:
        return False
    twice = {name: torch.stack([parameter.detach()] * 2) for name, parameter in model.head.named_parameters()}
    try:
        _logits(model.head, twice, model.feature_shift.expand(2, 2, -1))
    except RuntimeError:
        return False
    return True


def _begin(models: Sequence[TransferModel], data: TrainingData, device: str, generator: np.random.Generator) -> None:
    first, *others = (model.to(device) for model in models)
    fit_feature_scale(first, data.train, device, generator, at_once=64)
    for other in others:
        other.feature_shift.copy_(first.feature_shift)
        other.feature_scale.copy_(first.feature_scale)
    if data.head_start is not None:
        for model in models:
            start_head(model, data.head_start)


def _trainee(model: TransferModel, total_steps: int) -> Trainee:
    settings = model.spec.regularization
    return Trainee(
        model=model,
        optimizer=build_optimizer(model, model.spec),
        schedule=Schedule(model.spec.optimization.warm_up, total_steps),
        patience=Patience(epochs=settings.patience, min_delta=settings.min_delta),
        averaged={name: parameter.detach().clone() for name, parameter in model.head.named_parameters()},
    )


def _finish(trainees: Sequence[Trainee], ending: Ending) -> list[Outcome]:
    for trainee in trainees:
        if not trainee.has_stopped:
            trainee.stop(ending)
    return [trainee.outcome for trainee in trainees]
