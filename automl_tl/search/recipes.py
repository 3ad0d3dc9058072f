"""Known-good recipes, tried first: what an experienced engineer would try before any search.

A recipe names a few values; the rest are sensible defaults. It is run through the space itself, so it respects what the
user fixed or narrowed and works with custom spaces for the names they share.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from automl_tl.model.spec import TrialSpec
from automl_tl.plugin import Choice, Modality
from automl_tl.search.space import Space, SpaceContext, suggest_spec

MAX_RECIPES = 24
N_PROBES = 5  # of a backbone's recipes, the first ones
TAUGHT = {"spread labels": "propagation", "pseudo-labels": "pseudo_labels"}  # probes that learn from unlabeled samples
TUNED_BACKBONES = 2
MANY_A_CLASS = 200  # training samples, from which half of the groups are expected to be worth training

RATE: Mapping[Modality, float] = {"image": 1e-3, "text": 3e-4, "tabular": 1e-3}
"""Learning rate of some layer groups. At that of images a text model's first epoch was seen to fall below its probe."""

WHOLE_RATE: Mapping[Modality, float] = {"image": 3e-4, "text": 1e-4, "tabular": 3e-4}
"""Where every group trains, or only one."""

DEFAULTS: Mapping[str, Choice] = {
    "head": "linear",
    "dropout": 0.1,
    "weight_decay": 1e-3,
    "label_smoothing": 0.05,
    "l2_sp": 0.0,
    "class_weight": "none",
    "augmentation": "none",
    "views": 0,
    "mixup": 0.0,
    "activation_noise": 0.0,
    "fit": "ridge",
    "pooling": "mean",
    "joined_taps": 1,
    "unlabeled": "none",
    "norm": "eval",
    "patience": 0,
    "min_delta": 0.0,
    "optimizer": "adamw",
    "init_head": "probe",
    "head_lr_scale": 1.0,
    "batch_size": 32,
    "joint_source_weight": 0.0,
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """A name for the report and the values that make it."""

    name: str
    values: Mapping[str, Choice]


def recipes_for(
    backbone: str, n_groups: int, ranked: Sequence[int] = (), *, modality: Modality = "image", unlabeled: bool = False
) -> Iterator[Recipe]:
    """The recipes of one backbone, most trusted first; `ranked` are its taps, counted from 1, best-scored first.

    Those of `TAUGHT` follow the other probes where there are `unlabeled` samples.

    Reading the best tap comes before reading the last one: late layers are specialized to the source task, and dropping
    them was seen to beat fine-tuning them (Evci et al., ICML 2022, reach the same by reading all layers).
    """
    best = ranked[0] if ranked else max(1, round(0.67 * n_groups))
    # Not one far below: a stem or an embedding, though it is read well, learns little more.
    second = next((tap for tap in ranked[1:] if tap != best and 2 * tap >= best), best)
    rate, whole = RATE[modality], WHOLE_RATE[modality]
    probe = {**_suffix(best, 0, 3e-3), "fit": "ridge", "pooling": "mean_std"}
    plans: list[tuple[str, dict[str, Choice]]] = [
        ("ridge on the best tap", probe),
        ("linear probe", {"strategy": "linear_probe", "fit": "ridge", "learning_rate": 3e-3}),
        ("ridge on four taps", {**probe, "joined_taps": 4}),
        ("logistic on the best tap", {**probe, "fit": "logistic"}),
        ("logistic on four taps", {**probe, "fit": "logistic", "joined_taps": 4, "class_weight": "balanced"}),
        # Cheap ones first: a short budget may not see the end of the list.
        ("best tap, tune 2", _suffix(best, min(2, best), rate)),
        ("second tap, tune 2", _suffix(second, min(2, second), rate)),
        ("best tap, tune all", _suffix(best, n_groups, rate)),
        ("full fine-tuning", {"strategy": "full_finetune", "learning_rate": whole}),
        ("layer-wise decay", {"strategy": "discriminative", "discriminative.decay": 0.9, "learning_rate": 1e-4}),
        ("best tap, tune 1", _suffix(best, 1, whole)),
        ("last two", {"strategy": "last_k", "last_k.k": min(2, n_groups), "learning_rate": rate}),
        ("steep layer-wise decay", {"strategy": "discriminative", "discriminative.decay": 0.75, "learning_rate": rate}),
        ("best tap, last one anew", {**_suffix(best, min(3, best), rate), "suffix.n_reinit": 1}),
    ]
    if unlabeled:
        plans[N_PROBES:N_PROBES] = [(name, {**probe, "unlabeled": how}) for name, how in TAUGHT.items()]
    for name, values in plans:
        yield Recipe(f"{name} ({backbone})", {"backbone": backbone, **values})


def _suffix(tap: int, n_train: int, learning_rate: float) -> dict[str, Choice]:
    tapped: dict[str, Choice] = {"suffix.tap": tap, "suffix.n_train": n_train, "suffix.n_reinit": 0}
    return {"strategy": "suffix", "learning_rate": learning_rate, **tapped}


def recipe_parameters(
    space: Space, context: SpaceContext, most: int, backbones: Sequence[str] | None = None
) -> Iterator[tuple[str, TrialSpec, dict[str, Choice]]]:
    """Yield up to `most` (name, spec, parameters of the study), every backbone's best recipe before any second best.

    `backbones` are those that recipes are for, in this order; None: all.
    """
    names = tuple(context.backbones) if backbones is None else backbones
    taught = bool(context.unlabeled)
    columns = [
        list(
            recipes_for(
                name,
                len(context.backbones[name]),
                context.taps.get(name, ()),
                modality=context.modality,
                unlabeled=taught,
            )
        )
        for name in names
    ]
    n_probes = N_PROBES + taught * len(TAUGHT)
    # Probes take next to no time: all of them first. What trains layer groups is for the best few backbones only.
    rows = list(zip(*columns, strict=True))
    ordered = [recipe for row in rows[:n_probes] for recipe in row]
    ordered += [recipe for row in rows[n_probes:] for recipe in row[:TUNED_BACKBONES]]
    seen: list[dict[str, Choice]] = []
    for recipe in ordered:
        if recipe.values["strategy"] not in context.strategies:
            continue
        trial = RecipeTrial(recipe.values)
        spec = suggest_spec(space, trial, context)
        if spec.backbone != recipe.values["backbone"] or spec.strategy not in (None, recipe.values["strategy"]):
            continue  # the user's `space:` leaves no room for it
        if trial.chosen and trial.chosen not in seen and len(seen) < most:
            seen.append(trial.chosen)
            yield recipe.name, spec, trial.chosen


def like_a_recipe(
    space: Space, context: SpaceContext, backbone: str | None, generator: np.random.Generator
) -> dict[str, Choice]:
    """Parameters of a recipe that trains layer groups, with some of its values moved; {} where none fits the space.

    How many groups train is drawn by how many samples a class has: few samples cannot tell many weights what to be.
    """
    name = backbone or str(generator.choice(list(context.backbones)))
    n_groups, ranked = len(context.backbones[name]), context.taps.get(name, ())
    trained = list(recipes_for(name, n_groups, ranked, modality=context.modality))[N_PROBES:]
    known = [recipe for recipe in trained if recipe.values["strategy"] in context.strategies]
    if not known:
        return {}
    values = dict(known[int(generator.integers(len(known)))].values)
    if values["strategy"] == "suffix":
        taps = [*ranked[:3], n_groups] if ranked else [n_groups]
        per_class = context.n_train / max(1, context.n_classes)
        mean = 1 + n_groups * min(1.0, per_class / MANY_A_CLASS) / 2
        values["suffix.tap"] = int(generator.choice(taps))
        values["suffix.n_train"] = 1 + int(generator.poisson(mean))
        values["suffix.n_reinit"] = int(generator.choice(3, p=(0.8, 0.15, 0.05)))
    moved: dict[str, Choice] = {
        "learning_rate": float(values["learning_rate"] or 1e-3) * float(10 ** generator.normal(0, 0.4)),
        "weight_decay": float(10 ** generator.uniform(-5, -1)),
        "dropout": float(generator.choice([0.0, 0.1, 0.2, 0.4])),
        "label_smoothing": float(generator.choice([0.0, 0.05, 0.1])),
        "mixup": float(generator.choice([0.0, 0.2])),
        "pooling": str(generator.choice(["mean", "mean_std"])),
        "init_head": str(generator.choice(["probe", "random"], p=(0.7, 0.3))),
        "batch_size": int(generator.choice([16, 32, 64])),
    }
    trial = RecipeTrial({**values, **moved})
    spec = suggest_spec(space, trial, context)
    return trial.chosen if spec.backbone == name else {}


@dataclass(slots=True)
class RecipeTrial:
    """A `Suggest` that answers with a recipe's values, moved into the range that is asked for."""

    recipe: Mapping[str, Choice]
    chosen: dict[str, Choice] = field(default_factory=dict)

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """The recipe's number; unknown to the recipe: the lower end, left to the sampler."""
        wanted = self._wanted(name)
        if not isinstance(wanted, int | float):
            return low
        value = min(max(float(wanted), low), high)
        self.chosen[name] = value
        return value

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """The recipe's whole number; unknown to the recipe: the lower end, left to the sampler."""
        wanted = self._wanted(name)
        if not isinstance(wanted, int | float):
            return low
        value = min(max(round(wanted), low), high)
        value = low + (value - low) // step * step
        self.chosen[name] = value
        return value

    def suggest_categorical(self, name: str, choices: Sequence[Choice]) -> Choice:
        """The recipe's choice if it is one of these; else the first, left to the sampler."""
        wanted = self._wanted(name)
        if wanted not in choices:
            return choices[0]
        self.chosen[name] = wanted
        return wanted

    def _wanted(self, name: str) -> Choice:
        """`last_k@mobilenet_v2.k` is looked up as itself, as `last_k.k` and as `k`."""
        owner, dot, own = name.rpartition(".")
        for key in (name, f"{owner.partition('@')[0]}.{own}" if dot else name, own):
            if key in self.recipe:
                return self.recipe[key]
        return DEFAULTS.get(own)
