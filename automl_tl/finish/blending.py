"""In a slot's child: trained models and where they began are averaged into one, which predicts or is kept.

Which averages are worth it is decided in `soup`. Nothing here needs a study.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from automl_tl.errors import TrialError
from automl_tl.finish.soup import Blend
from automl_tl.model.assemble import TransferModel, trained_state
from automl_tl.model.checkpoint import load_tensors, save_tensors
from automl_tl.model.spec import spec_from_json
from automl_tl.search.inputs import Inputs
from automl_tl.search.plugins import check_versions, host_in_child
from automl_tl.search.probe import linear_start
from automl_tl.search.trial import CHECKPOINT, TrialOrder, load_trained, prepare
from automl_tl.training.beginning import start_head
from automl_tl.training.train import predict_probabilities

Tensors = Mapping[str, Tensor]

SHIFT, SCALE, WEIGHT, BIAS = "feature_shift", "feature_scale", "head.weight", "head.bias"


@dataclass(frozen=True, slots=True, kw_only=True)
class BlendOrder:
    """Models that fit together, and the averages of them that are wanted; plain data."""

    trained: Mapping[int, TrialOrder]  # by number: how each was trained; its folder holds what came of it
    blends: tuple[Blend, ...]
    directory: Path | None = None  # where the first of them is kept


@dataclass(frozen=True, slots=True)
class Ingredient:
    """What training changed, before and after it."""

    begun: Tensors
    trained: Tensors


def say(order: BlendOrder) -> list[np.ndarray]:
    """What each average says of the samples that judge: probabilities (N, K); TrialError: there is no beginning."""
    model, inputs, ingredients = _opened(order)
    first = next(iter(order.trained.values()))
    if inputs.validation is None:
        raise TrialError("averages of weights need samples that judge them")
    said = []
    for blend in order.blends:
        model.load_state_dict(blended(blend, ingredients), strict=False)
        said.append(predict_probabilities(model, inputs.validation, first.kind, first.device))
    return said


def keep(order: BlendOrder) -> None:
    """Leave the first of the averages in the order's folder, as a training leaves its model."""
    assert order.directory is not None
    _, _, ingredients = _opened(order)
    save_tensors(blended(order.blends[0], ingredients), order.directory / CHECKPOINT)


def blended(blend: Blend, ingredients: Mapping[int, Ingredient]) -> dict[str, Tensor]:
    """The tensors of an average."""
    chosen = [ingredients[number] for number in blend.ingredients]
    states = [state for each in chosen for state in (each.trained, each.begun)]
    shares = [part / len(chosen) for _ in chosen for part in (blend.share, 1 - blend.share)]
    return average(states, shares)


def average(states: Sequence[Tensors], shares: Sequence[float]) -> dict[str, Tensor]:
    """The weighted mean of models' tensors, shares of sum 1; what is no real number is the first one's.

    A linear head reads features that were shifted and scaled for each training by rows of its own. The mean has the
    shift and scale of the first, and of the heads, not of their numbers, the mean is taken.
    """
    first = states[0]
    alike = [_rescaled(state, first) for state in states]

    def mean(name: str) -> Tensor:
        parts = torch.stack([share * state[name].double() for share, state in zip(shares, alike, strict=True)])
        return parts.sum(0).to(first[name].dtype)

    averaged = {name for name, value in first.items() if value.is_floating_point()} - {SHIFT, SCALE}
    return {name: mean(name) if name in averaged else value for name, value in first.items()}


def _rescaled(state: Tensors, like: Tensors) -> Tensors:
    """The same model with the feature shift and scale of another."""
    slope = state[WEIGHT].double() / state[SCALE].double()  # of the unscaled features
    moved = (like[SHIFT].double() - state[SHIFT].double()) @ slope.T
    return {
        **state,
        SHIFT: like[SHIFT],
        SCALE: like[SCALE],
        WEIGHT: slope * like[SCALE].double(),
        BIAS: state[BIAS].double() + moved,
    }


def _opened(order: BlendOrder) -> tuple[TransferModel, Inputs, dict[int, Ingredient]]:
    """The first model and its inputs, and what training changed in each."""
    ingredients: dict[int, Ingredient] = {}
    found: tuple[TransferModel, Inputs] | None = None
    for number, trained in order.trained.items():
        spec = spec_from_json(trained.spec)
        host = host_in_child(trained.sources, trained.sitting)
        check_versions(host, trained.versions)
        ready = prepare(trained, spec, host, host.backbone(spec.backbone), trained.device)
        model = ready.model
        start = linear_start(ready.reader, ready.train, trained.kind, trained.interface.n_outputs, trained.metric)
        if start is None:
            raise TrialError(f"trial {number} did not begin at a probe's solution: no features are stored")
        state = load_tensors(trained.directory / CHECKPOINT)
        model.feature_shift.copy_(state[SHIFT])
        model.feature_scale.copy_(state[SCALE])
        start_head(model, start)
        begun = {name: tensor.detach().cpu().clone() for name, tensor in trained_state(model).items()}
        load_trained(trained.directory / CHECKPOINT, model)  # which sees to it that it is of this spec
        ingredients[number] = Ingredient(begun, state)
        found = found or (model, ready.inputs)
    assert found is not None
    return *found, ingredients
