"""The default search space: one function from a trial to a `TrialSpec`, made of parts that a custom space may call.

    def space(trial, context):
        spec = default_space(trial, context)
        return replace(spec, plan=my_plan(trial, context))

Flat where it can be: the same names in every trial, so that the sampler learns from all of them. What must depend on
another choice (a strategy's plan, an optimizer's learning rate) has names of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, cast

from automl_tl.config import Domain
from automl_tl.errors import ConfigError, TrialError, unknown_name
from automl_tl.host import PluginHost
from automl_tl.model.plan import check_plan
from automl_tl.model.spec import Optimization, Regularization, TrialSpec, check_spec
from automl_tl.plugin import Choice, LayerGroup, Modality, PlanContext, Suggest, TransferPlan
from automl_tl.search.scope import ScopedTrial

IMBALANCED = 1.5  # largest class over smallest, above which weighing classes is worth a parameter

Weights = Literal["transferred", "random"]
Space = Callable[[Suggest, "SpaceContext"], TrialSpec]


@dataclass(frozen=True, kw_only=True)
class SpaceContext:
    """What a space may know: the plugins to choose from and the facts of the task."""

    host: PluginHost
    backbones: Mapping[str, tuple[LayerGroup, ...]]  # name -> its layer groups
    heads: tuple[str, ...]
    strategies: tuple[str, ...]
    modality: Modality
    n_train: int
    n_classes: int
    imbalance: float  # largest class over smallest
    max_epochs: int
    weights: Weights = "transferred"
    joint_with: str | None = None  # the backbone that the source task trained
    overrides: Mapping[str, Domain] = field(default_factory=dict)  # the user's `space:`

    def weights_of(self, backbone: str) -> Weights:
        """What a backbone starts from: `random` also where nothing was ever trained that could be transferred."""
        trained = self.host.backbone(backbone).weights is not None or backbone == self.joint_with
        return self.weights if trained else "random"


def suggest_spec(space: Space, trial: Suggest, context: SpaceContext) -> TrialSpec:
    """Ask any space for a spec and check it; raises ConfigError or TrialError when it cannot be carried out."""
    spec = space(trial, context)
    if not isinstance(spec, TrialSpec):
        raise TrialError(f"the search space must return a TrialSpec, got {spec!r}")
    _check_backbone(spec.backbone, context)
    check_spec(spec)
    return spec


def default_space(trial: Suggest, context: SpaceContext) -> TrialSpec:
    """Suggest everything: backbone, strategy and its plan, head, regularization, optimization."""
    own = ScopedTrial(trial, context.overrides)
    backbone = str(own.suggest_categorical("backbone", tuple(context.backbones)))
    _check_backbone(backbone, context)
    strategy = str(own.suggest_categorical("strategy", context.strategies))
    head, head_parameters = suggest_head(trial, context)
    weights = context.weights_of(backbone)
    norms = ("eval", "train") if weights == "transferred" else ("train",)
    weight = 0.0
    if backbone == context.joint_with and weights == "transferred":
        weight = own.suggest_number("joint_source_weight", (0.0, 0.1, 0.3, 1.0))
    plan = suggest_plan(trial, context, backbone=backbone, strategy=strategy)
    return TrialSpec(
        backbone=backbone,
        strategy=strategy,
        plan=plan,
        head=head,
        head_parameters=head_parameters,
        weights=weights,
        norm=cast(Literal["eval", "train"], own.suggest_categorical("norm", norms)),
        regularization=suggest_regularization(trial, context, weights=weights),
        optimization=suggest_optimization(trial, context),
        joint_source_weight=weight,
        max_epochs=context.max_epochs,
    )


def suggest_plan(trial: Suggest, context: SpaceContext, *, backbone: str, strategy: str) -> TransferPlan:
    """Let a freezing strategy decide the plan for a backbone; raises PluginError when the plan breaks the rules."""
    _check_backbone(backbone, context)
    groups = context.backbones[backbone]
    scoped = ScopedTrial(trial, context.overrides, scope=f"{strategy}@{backbone}.", alias=f"{strategy}.")
    facts = PlanContext(
        backbone=backbone,
        modality=context.modality,
        n_train=context.n_train,
        n_classes=context.n_classes,
        max_epochs=context.max_epochs,
    )
    plan = context.host.strategy(strategy).plan(scoped, groups, facts)
    owner = f"freezing strategy {strategy!r} ({context.host.owner('strategy', strategy).source})"
    check_plan(plan, [group.name for group in groups], max_epochs=context.max_epochs, owner=owner)
    return plan


def suggest_head(trial: Suggest, context: SpaceContext) -> tuple[str, dict[str, Choice]]:
    """A head's name and its own parameters, found by building a small one."""
    own = ScopedTrial(trial, context.overrides)
    name = str(own.suggest_categorical("head", context.heads))
    scoped = ScopedTrial(trial, context.overrides, scope=f"{name}.", alias=f"{name}.")
    context.host.head(name).build(scoped, in_features=8, n_outputs=2)
    return name, scoped.values


def suggest_regularization(trial: Suggest, context: SpaceContext, *, weights: Weights | None = None) -> Regularization:
    """Dropout, weight decay, label smoothing, L2-SP, class weights, augmentation and early stopping.

    `weights` is what the backbone starts from; None: what the context says. Random weights are no place to be pulled
    back to, so they go without L2-SP.
    """
    own = ScopedTrial(trial, context.overrides)
    pulls = (0.0, 1e-4, 1e-3, 1e-2) if (weights or context.weights) == "transferred" else (0.0,)
    weighing = ("none", "balanced") if context.imbalance > IMBALANCED else ("none",)
    changes = ("none", "light", "strong") if context.modality == "image" else ("none", "light")
    return Regularization(
        dropout=own.suggest_float("dropout", 0.0, 0.5),
        weight_decay=own.suggest_float("weight_decay", 1e-6, 1e-1, log=True),
        label_smoothing=own.suggest_number("label_smoothing", (0.0, 0.05, 0.1)),
        l2_sp=own.suggest_number("l2_sp", pulls),
        class_weight=own.suggest_categorical("class_weight", weighing),  # type: ignore[arg-type]
        augmentation=own.suggest_categorical("augmentation", changes),  # type: ignore[arg-type]
        patience=own.suggest_int("patience", 3, 10),
        min_delta=own.suggest_number("min_delta", (0.0, 0.001, 0.005)),
    )


def suggest_optimization(trial: Suggest, context: SpaceContext) -> Optimization:
    """Optimizer, learning rates and batch size. SGD and Adam live on different scales, so each has its own rate."""
    own = ScopedTrial(trial, context.overrides)
    optimizer = str(own.suggest_categorical("optimizer", ("adamw", "adam", "sgd_momentum", "sgd")))
    family = "adam" if optimizer.startswith("adam") else "sgd"
    rated = ScopedTrial(trial, context.overrides, scope=f"{family}.")
    low, high = (1e-5, 1e-2) if family == "adam" else (1e-3, 1e-1)
    sizes = tuple(size for size in (16, 32, 64, 128) if size <= max(16, context.n_train // 4))
    return Optimization(
        optimizer=optimizer,  # type: ignore[arg-type]
        learning_rate=rated.suggest_float("learning_rate", low, high, log=True),
        head_lr_scale=own.suggest_number("head_lr_scale", (1.0, 3.0, 10.0)),
        batch_size=int(own.suggest_number("batch_size", sizes)),
    )


def _check_backbone(name: str, context: SpaceContext) -> None:
    if name not in context.backbones:
        raise ConfigError(unknown_name("backbone in this search", name, context.backbones))
