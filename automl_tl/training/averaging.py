"""The moving average of a model's weights. It is what is judged and deployed; the weights themselves only descend.

At a constant learning rate the average is what an annealed rate would come to, at any moment, so that a training can be
judged wherever it is and go on afterwards. Izmailov et al., "Averaging Weights Leads to Wider Optima", UAI 2018;
Morales-Brotons et al., "Exponential Moving Average of Weights in Deep Learning", TMLR 2024.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from automl_tl.model.assemble import TransferModel, trained_state

CONSTANT = ("feature_shift", "feature_scale")  # fitted once, before the first step


class Average:
    """Exponential moving average of all floating tensors that training may change, normalization statistics too."""

    def __init__(self, model: TransferModel, decay: float) -> None:
        self._live = {  # the model's own memory, which steps write to
            name: tensor
            for name, tensor in trained_state(model).items()
            if tensor.is_floating_point() and name not in CONSTANT
        }
        self._decay = decay
        self.values = {name: tensor.clone() for name, tensor in self._live.items()}

    def update(self, step: int) -> None:
        """Take in the weights after this step, from 0."""
        average = get_ema_multi_avg_fn(decay_at(step, self._decay))  # type: ignore[no-untyped-call]  # public, untyped
        average(list(self.values.values()), list(self._live.values()), step)

    def set(self, values: Mapping[str, Tensor]) -> None:
        """Go on from these averages."""
        _copy([values[name] for name in self.values], list(self.values.values()))

    @contextmanager
    def standing_in(self) -> Iterator[None]:
        """Let the model have the averaged weights for a while."""
        live = list(self._live.values())
        own = [tensor.clone() for tensor in live]
        _copy(list(self.values.values()), live)
        try:
            yield
        finally:
            _copy(own, live)


def decay_at(step: int, decay: float) -> float:
    """The average's decay at a step, from 0: early on the average is over few steps, however long it will be."""
    return min(decay, (1 + step) / (10 + step))


def are_finite(averages: Mapping[str, Tensor]) -> bool:
    """Whether the weights have been numbers so far: one that was not stays in the average for good."""
    return all(bool(tensor.isfinite().all()) for tensor in averages.values())


@torch.no_grad()
def _copy(sources: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source)
