"""Heads of many trials on the same stored features, trained at once as one batched computation.

`train` for heads alone: the same steps, rates, clipping, judging and stopping, each head by its own spec. Forward and
backward pass are one for all (`torch.func.vmap`); every head's parameters are a row of a stack, on which its optimizer
steps as ever. All heads see the same batches and drop out by the same draws, each its own share of them, so what comes
of a head does not depend on those that train beside it.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from automl_tl.metrics.scores import validation_score
from automl_tl.model.assemble import TransferModel
from automl_tl.model.spec import only_head_trains
from automl_tl.training.batches import epoch_batches, evaluation_batches, steps_per_epoch
from automl_tl.training.losses import label_tensor, probabilities, task_losses
from automl_tl.training.mix import draw_mixing
from automl_tl.training.optimizers import CLIP_NORM, build_optimizer, set_learning_rate
from automl_tl.training.train import (
    EVALUATION_BATCH,
    Ending,
    Labelled,
    Outcome,
    Progress,
    TrainingData,
    fit_feature_scale,
)

FEWEST, LARGE = 4, 200_000  # heads, and parameters of each: from and up to where it pays on a CPU


def batch_key(model: TransferModel) -> Hashable:
    """Models with equal keys can train at once on the same features; None: this one only trains alone, by `train`.

    Optimizers, learning rates, weight decay, dropout, label smoothing, class weights and patience may differ.
    """
    spec = model.spec
    if not only_head_trains(spec) or spec.joint_source_weight or not _is_batchable(model):
        return None
    shapes = tuple((name, tuple(parameter.shape)) for name, parameter in model.head.named_parameters())
    steps = (spec.optimization.batch_size, spec.max_epochs)
    mixing = (spec.regularization.mixup, spec.regularization.activation_noise)
    return spec.head, tuple(sorted(spec.head_parameters.items())), shapes, steps, mixing


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

    Each model holds its best epoch's state afterwards. Without dropout a head learns what `train` teaches it with the
    same seed. `deadline` is the `time.time()` at which training stops with what it has.
    """
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    spec, n_train = models[0].spec, len(data.train.labels)  # only what is in the key is asked of this one spec
    batch_size = spec.optimization.batch_size
    _fit_feature_scales(models, data.train, device, generator)
    trainees = [
        Trainee(model, Progress(settings=model.spec.regularization), build_optimizer(model, model.spec))
        for model in models
    ]
    total_steps = spec.max_epochs * steps_per_epoch(n_train, batch_size)
    labels, step, going = label_tensor(data.train.labels, device), 0, trainees
    drops = torch.Generator(device).manual_seed(seed)

    for _ in range(spec.max_epochs):
        stack = Stack([trainee.model for trainee in going], data, device)
        for indices in epoch_batches(n_train, batch_size, generator, data.train.rows.lengths):
            if deadline is not None and time.time() > deadline:
                return _finish(trainees, "deadline")
            mixing = draw_mixing(len(indices), spec.regularization, device)
            features = mixing.change(data.train.rows.batch(indices, device))
            assert isinstance(features, Tensor)
            logits = stack.logits(features, drops)
            stack.set_gradients(mixing.loss(stack.loss, logits, labels[torch.from_numpy(indices)]))
            for trainee in going:
                set_learning_rate(trainee.optimizer, step, total_steps)
                trainee.optimizer.step()
            step += 1
        for trainee, logits, loss in zip(going, *stack.validate(data.validation), strict=True):
            trainee.judge(logits, float(loss), data)
        going = [trainee for trainee in going if not trainee.has_stopped]
        if not going:
            break
    return _finish(trainees, "finished")


@dataclass(slots=True)
class Trainee:
    """A model whose head is trained among others."""

    model: TransferModel
    progress: Progress
    optimizer: torch.optim.Optimizer
    has_stopped: bool = False

    def judge(self, logits: Tensor, loss: float, data: TrainingData) -> None:
        """Take down an epoch by its logits (N, K) and loss on the validation rows, and stop where `train` would."""
        if not np.isfinite(loss):
            self.stop("diverged")
            return
        said = probabilities(logits, data.kind).cpu().numpy()
        score = validation_score(data.validation.labels, said, data.kind, data.metric)
        self.progress.note(score, loss, said, self.model)
        if self.progress.is_over:
            self.stop("early_stopping")

    def stop(self, ending: Ending) -> None:
        """Go back to the best epoch; the parameters leave the stack."""
        for parameter in self.model.head.parameters():
            parameter.data, parameter.grad = parameter.data.clone(), None
        self.progress.finish(self.model, ending)
        self.model.eval()
        self.has_stopped = True


class Stack:
    """M heads as one: their parameters are rows of tensors (M, ...), and so are the gradients."""

    def __init__(self, models: Sequence[TransferModel], data: TrainingData, device: str) -> None:
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
        settings = [model.spec.regularization for model in models]
        self.loss = task_losses(data.kind, data.train.labels, data.n_outputs, settings, device)
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
        share = (CLIP_NORM / (norms + 1e-6)).clamp(max=1.0)  # as `clip_grad_norm_` has it
        for members, gradients in zip(self.members.values(), flat, strict=True):
            gradients.mul_(share.unsqueeze(1))
            for parameter, row in zip(members, gradients, strict=True):
                parameter.grad = row.view_as(parameter)

    @torch.no_grad()
    def validate(self, data: Labelled) -> tuple[Tensor, Tensor]:
        """Logits (M, N, K) of the rows, and losses (M,)."""
        self.model.head.eval()
        logits: Tensor | None = None
        for indices in evaluation_batches(len(data.rows), EVALUATION_BATCH, data.rows.lengths):
            features = data.rows.batch(indices, self.device)
            assert isinstance(features, Tensor)
            part = _logits(self.model.head, self.parameters, self._scaled(features))
            if logits is None:
                logits = part.new_empty(len(part), len(data.rows), part.shape[2])
            logits[:, torch.from_numpy(indices)] = part
        assert logits is not None
        return logits, self.loss(logits, label_tensor(data.labels, self.device))

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


def _fit_feature_scales(
    models: Sequence[TransferModel], train: Labelled, device: str, generator: np.random.Generator
) -> None:
    first, *others = (model.to(device) for model in models)
    fit_feature_scale(first, train, device, generator, at_once=64)
    for other in others:
        other.feature_shift.copy_(first.feature_shift)
        other.feature_scale.copy_(first.feature_scale)


def _finish(trainees: Sequence[Trainee], ending: Ending) -> list[Outcome]:
    for trainee in trainees:
        if not trainee.has_stopped:
            trainee.stop(ending)
    return [trainee.progress.outcome for trainee in trainees]
