"""The optimizer of a trial and its learning rate over time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, assert_never

import torch
from torch import nn

from automl_tl.model.assemble import TransferModel
from automl_tl.model.spec import TrialSpec

ANNEALED = 0.2  # share of all steps in which an annealed rate falls


def build_optimizer(model: TransferModel, spec: TrialSpec, extra: Iterable[nn.Parameter] = ()) -> torch.optim.Optimizer:
    """One parameter group per (rate scale, decays or not, first epoch); `extra` parameters train like the head.

    Weight decay skips vectors: biases and normalization scales are not what over-fits. Parameters of one group start to
    train together, because fused SGD cannot mix those that have momentum with those that have none yet.
    """
    settings = spec.optimization
    groups: dict[tuple[float, bool, int], list[nn.Parameter]] = {}
    for plan, _, parameter in model.trained_parameters():
        scale, first = (settings.head_lr_scale, 0) if plan is None else (plan.lr_scale, plan.unfreeze_epoch)
        groups.setdefault((scale, parameter.ndim > 1, first), []).append(parameter)
    for parameter in extra:
        groups.setdefault((settings.head_lr_scale, parameter.ndim > 1, 0), []).append(parameter)
    decay = spec.regularization.weight_decay
    parameters: list[dict[str, Any]] = [
        {
            "params": members,
            "lr": settings.learning_rate * scale,
            "peak": settings.learning_rate * scale,
            "weight_decay": decay if decays else 0.0,
        }
        for (scale, decays, _), members in groups.items()
    ]
    match settings.optimizer:
        case "sgd":
            return torch.optim.SGD(parameters, fused=True)
        case "sgd_momentum":
            return torch.optim.SGD(parameters, momentum=0.9, nesterov=True, fused=True)
        case "adam":
            return torch.optim.Adam(parameters, fused=True)
        case "adamw":
            return torch.optim.AdamW(parameters, fused=True)
        case other:
            assert_never(other)


@dataclass(frozen=True, slots=True)
class Schedule:
    """The learning rate over the steps: a linear rise, then constant; where it is annealed, a linear fall to zero.

    How long training will go on changes nothing before the fall, so that a training which is annealed later has made
    the same steps as one which is not. Hägele et al., "Scaling Laws and Compute-Optimal Training Beyond Fixed Training
    Durations", NeurIPS 2024, find it as good as a cosine.
    """

    warm_up: int  # steps in which the rate rises
    end: int | None = None  # the step at which an annealed rate would be zero

    def set(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Give all parameter groups their rates for this step, from 0."""
        risen = min(1.0, (step + 1) / max(1, self.warm_up))
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * min(risen, self._left(step))

    def has_fallen(self, steps: int) -> bool:
        """Whether one of so many steps had an annealed rate, so that a longer training would have made another one."""
        return self._left(steps - 1) < 1

    def _left(self, step: int) -> float:
        """What annealing leaves of the rate."""
        return 1.0 if self.end is None else min(1.0, (self.end - step) / (ANNEALED * self.end))
