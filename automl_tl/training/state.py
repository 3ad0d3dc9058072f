"""Where a training stands after an epoch, in memory and on disk. What makes one, and goes on from it, is `learner`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from automl_tl.errors import RunError
from automl_tl.model.checkpoint import load_tensors, save_tensors

Tensors = dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingState:
    """All that a training needs to go on, with the same model, spec and data, as if it had not been interrupted."""

    epoch: int  # epochs done
    step: int  # optimizer steps done
    curve: tuple[float, ...]  # validation score of each epoch
    lowest: float  # log loss of the stopping rows so far
    waited: int  # epochs since then
    generator: dict[str, Any]  # of numpy, which draws the batches
    random: Tensors  # torch's: "cpu", and "cuda" where there is one
    weights: Tensors  # `trained_state` of the model, the scale of the features included
    averaged: Tensors  # moving averages of those that are averaged
    optimizer: Tensors  # "INDEX/NAME": what it keeps of each parameter
    source_head: Tensors  # of the source task that is trained alongside
    start: Tensors  # "INDEX": weights that L2-SP pulls back to

    @property
    def deployed(self) -> Tensors:
        """What is judged and deployed: the averaged weights, and what is not averaged as it is."""
        return {**self.weights, **self.averaged}


_TENSORS = ("random", "weights", "averaged", "optimizer", "source_head", "start")
_PLAIN = ("epoch", "step", "curve", "lowest", "waited", "generator")
_PLAIN_NAME = "plain"  # one more tensor, whose bytes are JSON: so the file is one, and written whole or not at all


def save_state(state: TrainingState, path: Path) -> None:
    """Write the state to one safetensors file; a crash leaves the old file or the new one. RunError: it cannot be."""
    tensors = {f"{kind}/{name}": value for kind in _TENSORS for name, value in getattr(state, kind).items()}
    plain = json.dumps({name: getattr(state, name) for name in _PLAIN})
    save_tensors({**tensors, _PLAIN_NAME: torch.frombuffer(bytearray(plain.encode()), dtype=torch.uint8)}, path)


def load_state(path: Path) -> TrainingState:
    """The inverse of `save_state`; raises RunError naming the file when it is missing or damaged."""
    tensors = load_tensors(path)
    found: dict[str, Any] = {kind: {} for kind in _TENSORS}
    try:
        plain = json.loads(tensors.pop(_PLAIN_NAME).numpy().tobytes())
        for key, value in tensors.items():
            kind, _, name = key.partition("/")
            found[kind][name] = value
        return TrainingState(**found, **{**plain, "curve": tuple(plain["curve"])})
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"{path} is no training state ({type(error).__name__}: {error}); delete it, and the trial starts over"
        ) from None
