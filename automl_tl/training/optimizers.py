"""The optimizer of a trial and its learning rate over time."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, assert_never

import torch
from torch import nn

from automl_tl.model.assemble import TransferModel
from automl_tl.model.spec import TrialSpec

WARM_UP = 0.05  # share of all steps in which the rate rises from zero
CLIP_NORM = 1.0  # of the gradient; keeps one bad batch from destroying transferred weights


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


def set_learning_rate(optimizer: torch.optim.Optimizer, step: int, total_steps: int) -> None:
    """Linear warm-up, then half a cosine down to zero (Loshchilov and Hutter, ICLR 2017)."""
    warm_up = max(1, round(WARM_UP * total_steps))
    if step < warm_up:
        factor = (step + 1) / warm_up
    else:
        factor = 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, total_steps - warm_up)))
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
