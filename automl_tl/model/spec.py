"""A trial's specification: plain data that says all that is trained and how. The same spec gives the same result."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pydantic import NonNegativeInt, TypeAdapter, ValidationError

from automl_tl.errors import ConfigError, RunError
from automl_tl.model.plan import cut, tap
from automl_tl.model.pooling import Pooling
from automl_tl.plugin import Choice, TransferPlan

OptimizerName = Literal["sgd", "sgd_momentum", "adam", "adamw"]
ClassWeight = Literal["none", "balanced", "effective_number", "logit_adjusted"]
"""How a loss lets rare classes count: not at all; N / (K n_k); less than that for large classes, whose samples tell
little news (Cui et al., CVPR 2019); or by adding the logarithms of the classes' shares to the logits while it is
minimized, so that what is learned decides as if all classes were alike (Menon et al., ICLR 2021)."""
Augmentation = Literal["none", "light", "strong"]
Fit = Literal["descent", "ridge", "logistic", "prototypes"]
Weights = Literal["transferred", "random"]
InitHead = Literal["random", "probe"]
Unlabeled = Literal["none", "pseudo_labels", "propagation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Regularization:
    """What keeps a trial from over-fitting."""

    dropout: float = 0.0  # of the pooled features the head reads
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    l2_sp: float = 0.0  # pull towards the transferred weights; Li et al., ICML 2018
    class_weight: ClassWeight = "none"
    augmentation: Augmentation = "none"
    views: int = 0  # changed views of each sample that are stored and drawn from; 0: every batch is changed anew
    mixup: float = 0.0  # alpha of the Beta that mixes activations at the cut; Zhang et al., ICLR 2018
    activation_noise: float = 0.0  # added at the cut, in standard deviations of the activations
    patience: int = 0  # epochs in a row without a lower loss of the stopping rows, after which it stops; 0: never
    min_delta: float = 0.0  # a fall of that loss which is no more than this counts as none


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimization:
    """How a trial descends."""

    optimizer: OptimizerName = "adamw"
    learning_rate: float = 1e-3  # of the backbone's groups, times each one's lr_scale
    head_lr_scale: float = 1.0  # the head's rate over the backbone's
    batch_size: int = 32
    warm_up: int = 30  # steps in which the rate rises from zero
    clip_norm: float = 1.0  # of the gradient; keeps one bad batch from destroying transferred weights; 0: any norm
    averaging: float = 0.999  # decay of the moving average of the weights, which is what is judged; 0: no average


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialSpec:
    """Backbone, transfer plan, head, regularization and optimization of one trial."""

    backbone: str
    plan: TransferPlan
    head: str = "linear"
    strategy: str | None = None  # which freezing strategy decided the plan; None: written by hand
    head_parameters: dict[str, Choice] = field(default_factory=dict)
    fit: Fit = "descent"  # how the head is found; in closed form where nothing else trains, and then it is linear
    pooling: Pooling = "mean"  # of what the head reads
    joined: tuple[str, ...] = ()  # groups before the tap whose pooled outputs the head reads too
    unlabeled: Unlabeled = "none"  # how the task's unlabeled samples teach a head that is fit by regression
    weights: Weights = "transferred"
    init_head: InitHead = "random"  # or the solution of a linear probe of the same features; for linear heads
    norm: Literal["eval", "train"] = "eval"  # normalization statistics of fine-tuned groups
    regularization: Regularization = Regularization()
    optimization: Optimization = Optimization()
    joint_source_weight: float = 0.0  # weight of the source task's loss, trained alongside
    tokens: NonNegativeInt = 0  # the first ones of a text, that trained groups see in a training step; 0: all of them
    max_epochs: int = 20

    def to_json(self) -> dict[str, Any]:
        """The spec as JSON-ready data."""
        values: dict[str, Any] = _ADAPTER.dump_python(self, mode="json")
        # Unnamed, as it was before there was a choice: digests and seeds stay the same.
        for name, usual in (("unlabeled", "none"), ("tokens", 0)):
            if values[name] == usual:
                del values[name]
        return values

    def digest(self) -> str:
        """A short name for exactly this spec."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]


_ADAPTER = TypeAdapter(TrialSpec)


def check_spec(spec: TrialSpec) -> None:
    """Raise ConfigError naming the values that no spec can have, such as an optimizer that does not exist."""
    try:
        _ADAPTER.validate_python(asdict(spec))
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}, got {e['input']!r}" for e in error.errors())
        raise ConfigError(f"the search space gave a trial that cannot be: {'; '.join(faults)}") from None
    if (spec.fit != "descent" or spec.joined) and not only_head_trains(spec):
        asked = f"fit={spec.fit!r}" if spec.fit != "descent" else f"joined={spec.joined}"
        raise ConfigError(
            f"the search space gave a trial that cannot be: {asked} is for plans in which only the head trains, but "
            f"strategy {spec.strategy!r} trains layer groups"
        )
    if spec.unlabeled != "none" and spec.fit not in ("ridge", "logistic"):
        raise ConfigError(
            f"the search space gave a trial that cannot be: unlabeled={spec.unlabeled!r} is for fit='ridge' and "
            f"fit='logistic', got fit={spec.fit!r}"
        )
    before = {group.group for group in spec.plan.groups[: tap(spec.plan)]}
    if not before.issuperset(spec.joined):
        raise ConfigError(
            f"the search space gave a trial that cannot be: joined={spec.joined}; expected layer groups before the tap"
        )


def only_head_trains(spec: TrialSpec) -> bool:
    """Whether every kept layer group stays as it was transferred."""
    return cut(spec.plan) == tap(spec.plan) + 1


def spec_from_json(values: dict[str, Any]) -> TrialSpec:
    """The inverse of `TrialSpec.to_json`; raises RunError when the values are no spec."""
    try:
        return _ADAPTER.validate_python(values)
    except ValidationError as error:
        raise RunError(f"a stored trial specification is damaged: {error}") from None
