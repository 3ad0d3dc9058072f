"""The default search space: one function from a trial to a `TrialSpec`, made of parts that a custom space may call.

    def space(trial, context):
        spec = default_space(trial, context)
        return replace(spec, plan=my_plan(trial, context))

Flat where it can be: the same names in every trial, so that the sampler learns from all of them. What must depend on
another choice (a strategy's plan, an optimizer's learning rate) has names of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, cast

from automl_tl.config import Domain
from automl_tl.errors import ConfigError, TrialError, unknown_name
from automl_tl.host import PluginHost
from automl_tl.model.plan import check_plan, cut, tap
from automl_tl.model.pooling import Pooling
from automl_tl.model.spec import (
    Fit,
    Optimization,
    Regularization,
    TrialSpec,
    Unlabeled,
    Weights,
    check_spec,
    only_head_trains,
    spec_from_json,
)
from automl_tl.plugin import Action, Choice, GroupPlan, LayerGroup, Modality, PlanContext, Suggest, TransferPlan
from automl_tl.search.scope import ScopedTrial
from automl_tl.training.stopping import STOPPING_ROWS

CLASS_WEIGHTS = ("none", "balanced", "effective_number", "logit_adjusted")
TRAINED_TOKENS = 128  # of a text in a training step: as many as MiniLM itself was trained with, says its model card
IMBALANCED = 1.5  # largest class over smallest, above which weighing classes is worth a parameter

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
    taps: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # of scored backbones, counted from 1, best first
    unlabeled: tuple[str, ...] = ()  # backbones whose heads may learn from the task's unlabeled samples

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
    if not only_head_trains(spec):  # a space may have replaced the plan that these were drawn for
        spec = replace(spec, fit="descent", joined=(), unlabeled="none")
    check_spec(spec)
    if spec.unlabeled != "none" and spec.backbone not in context.unlabeled:
        raise ConfigError(
            f"the search space gave a trial with unlabeled={spec.unlabeled!r}, but no unlabeled samples are there for "
            f"backbone {spec.backbone!r}; give some with data.unlabeled, and ask `context.unlabeled` which have them"
        )
    return spec_from_json(spec.to_json())  # as it will be read again: a rate of 0 is 0.0 then, with another digest


def default_space(trial: Suggest, context: SpaceContext) -> TrialSpec:
    """Suggest everything: backbone, strategy and its plan, head, regularization, optimization."""
    own = ScopedTrial(trial, context.overrides)
    backbone = str(own.suggest_categorical("backbone", tuple(context.backbones)))
    _check_backbone(backbone, context)
    strategy = str(own.suggest_categorical("strategy", context.strategies))
    head, head_parameters = suggest_head(trial, context)
    weights = context.weights_of(backbone)
    norms = ("eval", "train") if weights == "transferred" else ("train",)
    init_head = "random"
    if head == "linear" and weights == "transferred":
        init_head = str(own.suggest_categorical("init_head", ("probe", "random")))
    weight = 0.0
    if backbone == context.joint_with and weights == "transferred":
        weight = own.suggest_number("joint_source_weight", (0.0, 0.1, 0.3, 1.0))
    plan = suggest_plan(trial, context, backbone=backbone, strategy=strategy)
    fit, plan, joined = suggest_fit(trial, context, backbone=backbone, plan=plan, head=head)
    return TrialSpec(
        backbone=backbone,
        strategy=strategy,
        plan=plan,
        head=head,
        head_parameters=head_parameters,
        fit=fit,
        pooling=suggest_pooling(trial, context),
        joined=joined,
        unlabeled=suggest_unlabeled(trial, context, backbone=backbone, fit=fit),
        weights=weights,
        init_head=cast(Literal["random", "probe"], init_head),
        norm=cast(Literal["eval", "train"], own.suggest_categorical("norm", norms)),
        regularization=suggest_regularization(trial, context, weights=weights),
        optimization=suggest_optimization(trial, context),
        joint_source_weight=weight,
        tokens=suggest_tokens(trial, context, plan=plan),
        max_epochs=context.max_epochs,
    )


def suggest_fit(
    trial: Suggest, context: SpaceContext, *, backbone: str, plan: TransferPlan, head: str
) -> tuple[Fit, TransferPlan, tuple[str, ...]]:
    """How the head is found, and what it reads: in closed form where it is linear and nothing else trains.

    A head that is solved for by regression may read several taps at once, the best-scored ones of its backbone; then
    the plan keeps as many groups as the deepest of them needs.
    """
    if head != "linear" or cut(plan) <= tap(plan):
        return "descent", plan, ()
    own = ScopedTrial(trial, context.overrides)
    fit = cast(Fit, own.suggest_categorical("fit", ("ridge", "logistic", "prototypes", "descent")))
    ranked = context.taps.get(backbone, ())
    if fit not in ("ridge", "logistic") or len(ranked) < 2:
        return fit, plan, ()
    number = int(own.suggest_number("joined_taps", (1, 2, 4)))
    if number == 1:
        return fit, plan, ()
    *others, deepest = sorted(ranked[:number])
    names = [group.name for group in context.backbones[backbone]]
    return fit, frozen_until(names, deepest), tuple(names[number - 1] for number in others)


def suggest_unlabeled(trial: Suggest, context: SpaceContext, *, backbone: str, fit: Fit) -> Unlabeled:
    """Whether unlabeled samples teach a head that is fit by regression, and how; no question where there are none."""
    if fit not in ("ridge", "logistic") or backbone not in context.unlabeled:
        return "none"
    choices = ("none", "pseudo_labels", "propagation")
    return cast(Unlabeled, ScopedTrial(trial, context.overrides).suggest_categorical("unlabeled", choices))


def frozen_until(groups: Sequence[str], tap: int) -> TransferPlan:
    """The plan that freezes the first `tap` groups and drops the rest."""
    actions: list[Action] = ["freeze" if number < tap else "drop" for number in range(len(groups))]
    return TransferPlan(tuple(GroupPlan(group=g, action=a) for g, a in zip(groups, actions, strict=True)))


def suggest_pooling(trial: Suggest, context: SpaceContext) -> Pooling:
    """Whether the head reads means only, or how far values spread as well; a table's rows have nothing to pool."""
    choices = ("mean",) if context.modality == "tabular" else ("mean", "mean_std")
    return cast(Pooling, ScopedTrial(trial, context.overrides).suggest_categorical("pooling", choices))


def suggest_tokens(trial: Suggest, context: SpaceContext, *, plan: TransferPlan) -> int:
    """How many tokens of a text a training step is shown; models are judged, and predict, by all of them.

    No question by default; `space:` may make it one, where 0 means all.
    """
    if context.modality != "text" or cut(plan) > tap(plan):
        return 0
    return int(ScopedTrial(trial, context.overrides).suggest_number("tokens", (TRAINED_TOKENS,)))


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
    """Dropout, weight decay, label smoothing, L2-SP, class weights, augmentation, mixing and early stopping.

    `weights` is what the backbone starts from; None: what the context says. Random weights are no place to be pulled
    back to, so they go without L2-SP.
    """
    own = ScopedTrial(trial, context.overrides)
    pulls = (0.0, 1e-4, 1e-3, 1e-2) if (weights or context.weights) == "transferred" else (0.0,)
    weighing = CLASS_WEIGHTS if context.imbalance > IMBALANCED else ("none",)
    changes = ("none", "light", "strong") if context.modality == "image" else ("none", "light")
    waits = (0, 3, 6) if context.n_train >= STOPPING_ROWS else (0,)  # too few rows to stop by: rungs end a trial
    return Regularization(
        dropout=own.suggest_float("dropout", 0.0, 0.5),
        weight_decay=own.suggest_float("weight_decay", 1e-6, 1e-1, log=True),
        label_smoothing=own.suggest_number("label_smoothing", (0.0, 0.05, 0.1)),
        l2_sp=own.suggest_number("l2_sp", pulls),
        class_weight=own.suggest_categorical("class_weight", weighing),  # type: ignore[arg-type]
        augmentation=own.suggest_categorical("augmentation", changes),  # type: ignore[arg-type]
        views=int(own.suggest_number("views", (0, 4))),
        mixup=own.suggest_number("mixup", (0.0, 0.2)),
        activation_noise=own.suggest_number("activation_noise", (0.0, 0.1)),
        patience=int(own.suggest_number("patience", waits)),
        min_delta=own.suggest_number("min_delta", (0.0, 0.001, 0.005)),
    )


def suggest_optimization(trial: Suggest, context: SpaceContext) -> Optimization:
    """Optimizer, learning rates and batch size. SGD and Adam live on different scales, so each has its own rate.

    Warm-up, clipping and the averaging of weights are no question by default; `space:` may make them one.
    """
    usual = Optimization()
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
        warm_up=int(own.suggest_number("warm_up", (usual.warm_up,))),
        clip_norm=own.suggest_number("clip_norm", (usual.clip_norm,)),
        averaging=own.suggest_number("averaging", (usual.averaging,)),
    )


def _check_backbone(name: str, context: SpaceContext) -> None:
    if name not in context.backbones:
        raise ConfigError(unknown_name("backbone in this search", name, context.backbones))
