"""Several trained models as one: the weighted mean of what they say, and an adjustment of it.

Members of one backbone share what is frozen in them. A batch passes these groups, the trunk, once, as far as the
deepest cut, and each member picks up on the way what it reads:

    only the head trains    the pooled outputs of its taps
    layer groups train      the whole output at its cut, from which it goes on alone

Which members are worth having, with which weights and adjustment, is decided in `finish`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from automl_tl.errors import RunError
from automl_tl.metrics.scores import Kind
from automl_tl.model.assemble import TransferModel
from automl_tl.model.plan import cut, kept, tap
from automl_tl.model.pooling import Activation, pool
from automl_tl.model.spec import TrialSpec, only_head_trains
from automl_tl.plugin import LayerGroup

SURE = 1e-7  # no probability is taken to be nearer to 0 or 1, as in `metrics.scores.log_loss`


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A trained model, and how much of the mean it is; only the ratios of weights count."""

    model: TransferModel
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(f"the weight of an ensemble's member must be > 0, got {self.weight}; leave the member out")


@dataclass(frozen=True, kw_only=True)
class Family:
    """Members that read the same inputs and share one trunk; made by `share_frozen`."""

    trunk: tuple[nn.Module, ...]  # the frozen groups of one backbone, up to the deepest cut of all members
    members: tuple[Member, ...]  # the one with the deepest cut first

    @property
    def weight(self) -> float:
        """What all members weigh together."""
        return sum(member.weight for member in self.members)

    def probabilities(self, batch: Activation, kind: Kind) -> Tensor:
        """The weighted mean of the members' probabilities of a batch of inputs, (N, K); no dropout, no gradient."""
        logits = torch.stack(self.logits(batch)).float()  # (M, N, K)
        said = logits.sigmoid() if kind == "multilabel" else logits.softmax(2)
        weights = torch.tensor([member.weight / self.weight for member in self.members], device=said.device)
        return (weights.view(-1, 1, 1) * said).sum(0)

    @torch.no_grad()
    def logits(self, batch: Activation) -> list[Tensor]:
        """The logits (N, K) of each member, in order, of a batch of inputs."""
        models = [member.model.eval() for member in self.members]
        taps = [_taps(model.spec) for model in models]
        features: list[list[Tensor]] = [[] for _ in models]
        said: dict[int, Tensor] = {}
        activation = batch
        for depth in range(len(self.trunk) + 1):
            if depth:
                activation = self.trunk[depth - 1](activation)
            pooled = cache(partial(pool, activation))  # once for all that read this tap
            for place, model in enumerate(models):
                if depth in taps[place]:
                    features[place].append(pooled(model.spec.pooling))
                if depth == model.cut and features[place]:
                    said[place] = model.classify(torch.cat(features[place], 1))
                elif depth == model.cut:
                    said[place] = model(activation, depth)
        return [said[place] for place in range(len(models))]


def share_frozen(members: Sequence[Member]) -> tuple[Family, ...]:
    """Put members together that can share a trunk; from then on they hold its groups once, in memory too.

    They can when they are of one backbone and the weights of every frozen group that both have are the same. All
    members of a backbone must read the same inputs.
    """
    families: list[list[Member]] = []
    for member in sorted(members, key=lambda member: -member.model.cut):
        family = next((family for family in families if _agree(family[0].model, member.model)), None)
        if family is None:
            families.append([member])
            continue
        for name in list(member.model.groups)[: member.model.cut]:
            member.model.groups[name] = family[0].model.groups[name]
        family.append(member)
    return tuple(
        Family(trunk=tuple(first.model.groups.values())[: first.model.cut], members=(first, *others))
        for first, *others in families
    )


def cost_per_sample(
    specs: Sequence[TrialSpec], groups: Mapping[str, Sequence[LayerGroup]], whole: Mapping[str, float]
) -> float:
    """What a sample's way through all members costs; heads cost nothing.

    Parameters
    ----------
    groups
        All layer groups of each backbone that occurs.
    whole
        What one sample's pass through each whole backbone costs, in FLOPs, or in seconds as they were measured; the
        result is in the same unit.
    """
    deepest: dict[str, int] = {}
    cost = 0.0
    for spec in specs:
        alone = 0  # groups from here on are passed for this member only
        if spec.weights == "transferred":
            alone = cut(spec.plan)
            deepest[spec.backbone] = max(alone, deepest.get(spec.backbone, 0))
        cost += whole[spec.backbone] * _share(groups[spec.backbone][alone : len(kept(spec.plan))])
    return cost + sum(whole[name] * _share(groups[name][:depth]) for name, depth in deepest.items())


@dataclass(frozen=True, slots=True)
class Adjustment:
    """A correction of an ensemble's probabilities: z / temperature + bias, where z are their logarithms, or log odds.

    The temperature is of Guo et al., "On Calibration of Modern Neural Networks", ICML 2017; a bias moves decisions
    towards rare classes, as in Menon et al., "Long-tail learning via logit adjustment", ICLR 2021.
    """

    temperature: float = 1.0
    bias: tuple[float, ...] = ()  # one a class; none: 0 for all

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"the temperature of an adjustment must be > 0, got {self.temperature}")

    def apply(self, probabilities: np.ndarray, kind: Kind) -> np.ndarray:
        """Probabilities (N, K) -> adjusted ones (N, K), float32.

        Softmax of the adjusted logarithms; for several labels a sample, the sigmoid of the adjusted log odds. Raises
        ValueError when there is not one bias a class.
        """
        if self == UNADJUSTED:
            return probabilities.astype(np.float32, copy=False)
        n_classes = probabilities.shape[1]
        if len(self.bias) not in (0, n_classes):
            raise ValueError(f"an adjustment of {n_classes} classes needs as many biases, got {len(self.bias)}")
        likely = probabilities.astype(np.float64).clip(SURE, 1 - SURE)
        bias = np.array(self.bias) if self.bias else 0.0
        if kind == "multilabel":
            odds = (np.log(likely) - np.log1p(-likely)) / self.temperature + bias
            adjusted = np.exp(-np.logaddexp(0, -odds))
        else:
            logs = np.log(likely) / self.temperature + bias
            adjusted = np.exp(logs - np.logaddexp.reduce(logs, 1, keepdims=True))
        return np.asarray(adjusted, dtype=np.float32)

    def to_json(self) -> dict[str, Any]:
        """The adjustment as JSON-ready data."""
        return {"temperature": self.temperature, "bias": list(self.bias)}

    @staticmethod
    def from_json(values: dict[str, Any]) -> Adjustment:
        """The inverse of `to_json`; raises RunError when the values are no adjustment."""
        try:
            return _ADAPTER.validate_python(values)
        except ValidationError as error:
            raise RunError(f"a stored adjustment of probabilities is damaged: {error}") from None


UNADJUSTED = Adjustment()
_ADAPTER = TypeAdapter(Adjustment)


def _taps(spec: TrialSpec) -> frozenset[int]:
    """The depths, counted from 1, at which a head reads the trunk itself; none where layer groups train."""
    if not only_head_trains(spec):
        return frozenset()
    joined = (depth for depth, group in enumerate(spec.plan, 1) if group.group in spec.joined)
    return frozenset({*joined, tap(spec.plan) + 1})


def _agree(deeper: TransferModel, other: TransferModel) -> bool:
    """Whether the frozen groups of `other` are those of a model that is frozen at least as deep."""
    if deeper.spec.backbone != other.spec.backbone:
        return False
    pairs = list(zip(deeper.groups.values(), other.groups.values(), strict=False))[: other.cut]
    return all(_equal(*pair) for pair in pairs)


def _equal(group: nn.Module, other: nn.Module) -> bool:
    if group is other:
        return True
    left, right = group.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(tensor, right[name]) for name, tensor in left.items())


def _share(groups: Sequence[LayerGroup]) -> float:
    return sum(group.flop_share for group in groups)
