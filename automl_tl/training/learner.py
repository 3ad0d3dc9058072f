"""A model in training with all that goes with it from step to step, and how it is put aside and taken up again."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from automl_tl.errors import TrialError
from automl_tl.model.assemble import TransferModel, trained_state
from automl_tl.model.spec import TrialSpec
from automl_tl.training.averaging import Average
from automl_tl.training.losses import StartingPoint, starting_point
from automl_tl.training.optimizers import build_optimizer
from automl_tl.training.state import Tensors, TrainingState
from automl_tl.training.stopping import Patience, last_unfreezing


@dataclass(slots=True, kw_only=True)
class Learner:
    """Whatever a step or an epoch changes."""

    model: TransferModel
    optimizer: torch.optim.Optimizer
    average: Average
    patience: Patience
    generator: np.random.Generator
    pull: StartingPoint | None
    source_head: nn.Module | None
    clip_norm: float
    device: str
    epoch: int = 0  # epochs done
    step: int = 0  # steps done
    curve: list[float] = field(default_factory=list)

    def descend(self) -> None:
        """Take the step that the gradients ask for."""
        if self.pull is not None:
            self.pull.add_gradient()
        if self.clip_norm:
            nn.utils.clip_grad_norm_([p for g in self.optimizer.param_groups for p in g["params"]], self.clip_norm)
        self.optimizer.step()
        self.average.update(self.step)
        self.step += 1

    def state(self) -> TrainingState:
        """A copy, in host memory, of all that changes."""
        kept = self.optimizer.state_dict()["state"]
        return TrainingState(
            epoch=self.epoch,
            step=self.step,
            curve=tuple(self.curve),
            lowest=self.patience.lowest,
            waited=self.patience.waited,
            generator=dict(self.generator.bit_generator.state),
            random=_random_states(self.device),
            weights=_copies(trained_state(self.model)),
            averaged=_copies(self.average.values),
            optimizer=_copies(
                {
                    f"{i}/{name}": value
                    for i, of_one in kept.items()
                    for name, value in of_one.items()
                    if value is not None
                }
            ),
            source_head=_copies(self.source_head.state_dict() if self.source_head else {}),
            start=_copies({str(i): value for i, value in enumerate(self.pull.start)} if self.pull else {}),
        )

    def go_on(self, state: TrainingState) -> None:
        """Be as the one was that gave this state; TrialError: it was another kind of model."""
        shapes = [
            {name: value.shape for name, value in own.items()} for own in (trained_state(self.model), state.weights)
        ]
        if shapes[0] != shapes[1]:
            raise TrialError(
                f"the training state after epoch {state.epoch} does not fit the model of its spec: expected tensors "
                f"{sorted(shapes[0])}, got {sorted(shapes[1])} or other shapes; delete it, and the trial starts over"
            )
        self.epoch, self.step, self.curve = state.epoch, state.step, list(state.curve)
        self.patience.lowest, self.patience.waited = state.lowest, state.waited
        self.model.load_state_dict(state.weights, strict=False)
        self.average.set(state.averaged)
        self._set_optimizer(state.optimizer)
        if self.source_head is not None:
            self.source_head.load_state_dict(state.source_head)
        if self.pull is not None:
            for i, start in enumerate(self.pull.start):
                start.copy_(state.start[str(i)])
        self.generator.bit_generator.state = state.generator
        _set_random_states(state.random, self.device)

    def _set_optimizer(self, kept: Tensors) -> None:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        found: dict[int, Tensors] = {}
        for key, value in kept.items():
            index, _, name = key.partition("/")
            like = parameters[int(index)]
            # Fused optimizers walk through memory: what they keep of a weight must lie as the weight does.
            laid = torch.empty_like(like).copy_(value) if value.shape == like.shape else value
            found.setdefault(int(index), {})[name] = laid.detach()
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": found})


def new_learner(
    model: TransferModel, spec: TrialSpec, generator: np.random.Generator, source_head: nn.Module | None, device: str
) -> Learner:
    """A learner before its first step. `source_head` is trained like the model's own."""
    settings = spec.regularization
    return Learner(
        model=model,
        optimizer=build_optimizer(model, spec, extra=source_head.parameters() if source_head else ()),
        average=Average(model, spec.optimization.averaging),
        patience=Patience(epochs=settings.patience, min_delta=settings.min_delta, waits_from=last_unfreezing(model)),
        generator=generator,
        pull=starting_point(_transferred(model, spec), settings.l2_sp),
        source_head=source_head,
        clip_norm=spec.optimization.clip_norm,
        device=device,
    )


def _transferred(model: TransferModel, spec: TrialSpec) -> list[nn.Parameter]:
    if spec.weights == "random":
        return []
    return [p for plan, _, p in model.trained_parameters() if plan is not None and plan.action == "tune"]


def _copies(tensors: Tensors) -> Tensors:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def _random_states(device: str) -> Tensors:
    states: dict[str, Tensor] = {"cpu": torch.get_rng_state()}
    if torch.device(device).type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _set_random_states(states: Tensors, device: str) -> None:
    torch.set_rng_state(states["cpu"])
    if torch.device(device).type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
