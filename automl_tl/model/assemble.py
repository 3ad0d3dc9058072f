"""Backbone, transfer plan and head put together into the model that a trial trains.

The host applies the plan, never the plugin. A frozen group is frozen whole: its weights, its normalization statistics,
its dropout. A fine-tuned group keeps its normalization statistics by default too, because statistics learned on a few
small batches are worse than the transferred ones; groups whose weights are random must learn theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from automl_tl.errors import PluginError
from automl_tl.model.checkpoint import load_tensors
from automl_tl.model.groups import example_input
from automl_tl.model.plan import check_plan, cut, kept
from automl_tl.model.pooling import Activation, pool
from automl_tl.model.replay import Replay
from automl_tl.model.spec import TrialSpec, Weights, only_head_trains
from automl_tl.plugin import Backbone, GroupPlan, Head, ImageInput, Tokens

NORM_LAYERS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)
BACKBONE_PREFIX = "groups."

Change = Callable[[Activation], Activation]
"""Something that a training step does to activations on their way; what comes out has the shape of what went in."""


class TransferModel(nn.Module):
    """The kept layer groups, a scale for their pooled features, and the head: samples -> (N, n_outputs) logits.

    Every method that takes an activation also takes `start`, how many layer groups it has passed already: what was
    computed before and stored is not computed again.
    """

    feature_shift: Tensor
    feature_scale: Tensor

    def __init__(self, groups: nn.ModuleDict, head: nn.Module, spec: TrialSpec, in_features: int) -> None:
        super().__init__()
        self.groups = groups
        self.head = head
        self.dropout = nn.Dropout(spec.regularization.dropout)
        self.plans = tuple(plan for plan in kept(spec.plan) if plan.group in groups)
        self.cut = cut(spec.plan)
        self.spec = spec
        # One shift a feature and ONE scale for all: per-feature scales blow up the gradient where a feature is rare.
        self.register_buffer("feature_shift", torch.zeros(in_features))
        self.register_buffer("feature_scale", torch.ones(()))

    def prefix(self, inputs: Activation, start: int = 0) -> Activation:
        """The output of the constant groups before the cut; no gradient."""
        with torch.no_grad():
            return self._through(inputs, start, self.cut)

    def features(self, inputs: Activation, start: int = 0, change: Change = lambda activation: activation) -> Tensor:
        """The features (N, D) that the head reads, unscaled; no gradient reaches the constant groups.

        `change` acts where training begins: on what enters the first trained group, but on the features themselves
        where only the head trains, or where token ids enter.
        """
        groups = list(self.groups.items())
        if only_head_trains(self.spec):  # the taps that are joined lie on the way
            return cast(Tensor, change(read(groups[start:], inputs, self.spec)))
        entering = self.prefix(inputs, start)
        if isinstance(entering, Tokens) and not entering.values.is_floating_point():
            return cast(Tensor, change(read(groups[self.cut :], entering, self.spec)))
        return read(groups[self.cut :], change(entering), self.spec)

    def classify(self, features: Tensor, head: nn.Module | None = None) -> Tensor:
        """Features (N, D) -> logits (N, n_outputs), by this model's head or another one."""
        scaled = (features - self.feature_shift) / self.feature_scale
        logits: Tensor = (head or self.head)(self.dropout(scaled))
        return logits

    def forward(self, inputs: Activation, start: int = 0, change: Change = lambda activation: activation) -> Tensor:
        """Samples, or activations that have passed `start` groups -> logits (N, n_outputs)."""
        return self.classify(self.features(inputs, start, change))

    def set_feature_scale(self, features: Tensor) -> None:
        """Center and scale what the head reads by these pooled features (N, D), so that one learning rate suits all."""
        self.feature_shift.copy_(features.mean(0))
        spread = (features - self.feature_shift).square().mean().sqrt()
        self.feature_scale.copy_(spread.clamp(min=1e-6))

    def begin_epoch(self, epoch: int) -> None:
        """Put every group into the state that the plan asks for in this epoch: what trains, and in which mode."""
        self.train()
        for plan, group in zip(self.plans, self.groups.values(), strict=True):
            trains = plan.action in ("tune", "reinit") and epoch >= plan.unfreeze_epoch
            group.train(trains)
            for parameter in group.parameters():
                parameter.requires_grad_(False)
            if trains:
                for _, parameter in part_of(group, plan):
                    parameter.requires_grad_(True)
                if not self._learns_statistics(plan):
                    for layer in group.modules():
                        if isinstance(layer, NORM_LAYERS):
                            layer.eval()

    def trained_parameters(self) -> Iterator[tuple[GroupPlan | None, str, nn.Parameter]]:
        """Every parameter that is trained in some epoch, with its group's plan; None for the head's."""
        for plan, group in zip(self.plans, self.groups.values(), strict=True):
            if plan.action in ("tune", "reinit"):
                for name, parameter in part_of(group, plan):
                    yield plan, name, parameter
        for name, parameter in self.head.named_parameters():
            yield None, name, parameter

    def _learns_statistics(self, plan: GroupPlan) -> bool:
        return plan.action == "reinit" or self.spec.weights == "random" or self.spec.norm == "train"

    def _through(self, activation: Activation, first: int, end: int) -> Activation:
        for group in list(self.groups.values())[first:end]:
            activation = group(activation)
        return activation


def read(groups: Iterable[tuple[str, nn.Module]], activation: Activation, spec: TrialSpec) -> Tensor:
    """Pass an activation through groups and pool what the head reads: the last one's output, and that of joined ones.

    Features that were pooled before and have no group left to pass are what they are.
    """
    found = []
    for name, group in groups:
        activation = group(activation)
        if name in spec.joined:
            found.append(pool(activation, spec.pooling))
    return torch.cat([*found, pool(activation, spec.pooling)], 1)


def part_of(group: nn.Module, plan: GroupPlan) -> list[tuple[str, nn.Parameter]]:
    """The parameters of a trained group that the plan's `part` lets train."""
    if plan.part == "all":
        return list(group.named_parameters())
    if plan.part == "bias":
        return [(name, p) for name, p in group.named_parameters() if name.rpartition(".")[2].endswith("bias")]
    norms = {id(p) for layer in group.modules() if isinstance(layer, NORM_LAYERS) for p in layer.parameters()}
    return [(name, p) for name, p in group.named_parameters() if id(p) in norms]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """What a model must accept and put out."""

    input_shape: tuple[int, ...]  # one sample's: (3, H, W), () for texts, (D,)
    n_outputs: int


def assemble(
    spec: TrialSpec,
    backbone: Backbone,
    head: Head,
    interface: Interface,
    *,
    source_weights: Path | None = None,
    seed: int,
) -> TransferModel:
    """Build the model of a spec: transferred or random weights, re-initialized groups, dropped tail, new head.

    Parameters
    ----------
    source_weights
        Checkpoint of this backbone trained on the source task; replaces its published weights.
    seed
        Of everything drawn anew: the head, re-initialized groups, random weights.

    Raises
    ------
    PluginError
        When backbone, head or plan do not keep their contract.
    """
    check_plan(spec.plan, backbone.layer_groups, max_epochs=spec.max_epochs, owner=f"strategy {spec.strategy!r}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = _backbone_module(backbone, spec.weights, interface.input_shape, source_weights)
        plans = kept(spec.plan)
        fresh = module
        if any(plan.action == "reinit" for plan in plans):
            fresh = backbone.build(input_shape=interface.input_shape, weights=None)
        groups = nn.ModuleDict(
            {p.group: (fresh if p.action == "reinit" else module).get_submodule(p.group) for p in plans}
        )
        in_features = _features_width(groups, backbone, interface.input_shape, spec)
    model = TransferModel(groups, _build_head(spec, head, in_features, interface.n_outputs, seed), spec, in_features)
    for layer in model.groups.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            # Some networks average over thousands of batches; a few epochs on a small task would never catch up.
            layer.momentum = max(layer.momentum or 0.0, 0.1)
    model.begin_epoch(0)
    if isinstance(backbone.input, ImageInput):
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def assemble_head(spec: TrialSpec, head: Head, *, in_features: int, n_outputs: int, seed: int) -> TransferModel:
    """The model of a spec in which only the head trains, without the layer groups: for features that are stored."""
    return TransferModel(nn.ModuleDict(), _build_head(spec, head, in_features, n_outputs, seed), spec, in_features)


def trained_state(model: TransferModel) -> dict[str, Tensor]:
    """The tensors that training may have changed. What is frozen is the backbone's own and need not be kept again."""
    frozen = tuple(f"{BACKBONE_PREFIX}{plan.group}." for plan in model.plans[: model.cut])
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(frozen)}


def _build_head(spec: TrialSpec, head: Head, in_features: int, n_outputs: int, seed: int) -> nn.Module:
    """A head drawn from the seed alone, whatever else is built before it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if spec.fit != "descent":
            return nn.Linear(in_features, n_outputs)
        return head.build(Replay(spec.head_parameters), in_features=in_features, n_outputs=n_outputs)


def frozen_groups(
    backbone: Backbone,
    input_shape: tuple[int, ...],
    *,
    source_weights: Path | None = None,
    random_seed: int | None = None,
) -> nn.ModuleDict:
    """All layer groups of a backbone, as they stay where they are frozen: transferred, or drawn from a seed."""
    weights: Weights = "transferred" if random_seed is None else "random"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(random_seed or 0)
        module = _backbone_module(backbone, weights, input_shape, source_weights).eval()
    groups = nn.ModuleDict({name: module.get_submodule(name) for name in backbone.layer_groups})
    if isinstance(backbone.input, ImageInput):
        groups.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return groups.requires_grad_(False)


def _backbone_module(
    backbone: Backbone, weights: Weights, input_shape: tuple[int, ...], source_weights: Path | None
) -> nn.Module:
    transferred = weights == "transferred"
    published = backbone.weights.find() if transferred and backbone.weights and source_weights is None else None
    if transferred and backbone.weights and source_weights is None and published is None:
        raise PluginError(f"backbone {backbone.name!r}: its weights are not installed; run: {backbone.weights.install}")
    module = backbone.build(input_shape=input_shape, weights=published)
    if transferred and source_weights is not None:
        load_backbone(module, source_weights)
    return module


def load_backbone(module: nn.Module, checkpoint: Path) -> None:
    """Load a source model's layer groups into a backbone module; its head stays where it was."""
    tensors = load_tensors(checkpoint)
    groups = {k.removeprefix(BACKBONE_PREFIX): v for k, v in tensors.items() if k.startswith(BACKBONE_PREFIX)}
    module.load_state_dict(groups, strict=True)


def _features_width(groups: nn.ModuleDict, backbone: Backbone, input_shape: tuple[int, ...], spec: TrialSpec) -> int:
    with torch.no_grad():
        features = read(groups.eval().items(), example_input(backbone, input_shape), spec)
    if features.ndim != 2:
        raise PluginError(
            f"backbone {backbone.name!r}: expected layer group outputs (N, C, H, W), (N, D) or Tokens, "
            f"got pooled features of shape {tuple(features.shape)}"
        )
    return features.shape[1]
