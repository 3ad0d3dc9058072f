"""The known-good recipes: real plans, distinct, within what the user allows."""

from dataclasses import replace

import numpy as np
import optuna
import pytest

from automl_tl.config import Range
from automl_tl.plugin import GroupPlan, TransferPlan
from automl_tl.search.recipes import like_a_recipe, recipe_parameters, recipes_for
from automl_tl.search.space import default_space, suggest_spec


@pytest.fixture
def alone(context):
    return replace(context, backbones={"source_mlp": context.backbones["source_mlp"]})


def parameters(context, most=99, space=default_space, backbones=None):
    found = recipe_parameters(space, context, most, backbones)
    return {name: chosen for name, _, chosen in found}


def spec_of(chosen, context, space=default_space):
    """The spec of an enqueued recipe, as a study fills it up."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.enqueue_trial(chosen)
    trial = study.ask()
    spec = suggest_spec(space, trial, context)
    assert all(trial.params.get(name, value) == value for name, value in chosen.items())
    return spec


def actions(spec):
    return [group.action for group in spec.plan]


def test_each_recipe_is_what_its_name_says(alone):
    specs = {name.partition(" (")[0]: spec_of(chosen, alone) for name, chosen in parameters(alone).items()}
    names = [recipe.name.partition(" (")[0] for recipe in recipes_for("source_mlp", 3)]
    # A table has nothing to be pooled over, no tap has a score here, and the second tap is the best one.
    assert [name for name in names if name not in specs] == [
        "ridge on four taps",
        "logistic on four taps",
        "second tap, tune 2",
    ]
    assert actions(specs["ridge on the best tap"]) == ["freeze", "freeze", "drop"]
    assert actions(specs["linear probe"]) == ["freeze", "freeze", "freeze"]
    assert actions(specs["best tap, tune 2"]) == ["tune", "tune", "drop"]
    assert actions(specs["full fine-tuning"]) == ["tune", "tune", "tune"]
    assert actions(specs["last two"]) == ["freeze", "tune", "tune"]
    assert actions(specs["best tap, tune 1"]) == ["freeze", "tune", "drop"]
    assert actions(specs["best tap, last one anew"]) == ["tune", "reinit", "drop"]
    for name, decay in (("layer-wise decay", 0.9), ("steep layer-wise decay", 0.75)):
        assert [group.lr_scale for group in specs[name].plan] == pytest.approx([decay**2, decay, 1.0])
    assert all(spec.head == "linear" and spec.optimization.optimizer == "adamw" for spec in specs.values())
    assert all(spec.regularization.augmentation == "none" for spec in specs.values())
    assert [name for name, spec in specs.items() if spec.fit == "ridge"] == ["ridge on the best tap", "linear probe"]
    assert [name for name, spec in specs.items() if spec.fit == "logistic"] == ["logistic on the best tap"]
    assert specs["full fine-tuning"].optimization.learning_rate == pytest.approx(3e-4)


def test_texts_are_tuned_more_gently_than_images():
    rates = {
        modality: [recipe.values["learning_rate"] for recipe in recipes_for("net", 6, (6, 4), modality=modality)][5:]
        for modality in ("image", "text")
    }
    assert all(text <= image for text, image in zip(rates["text"], rates["image"], strict=True))
    assert max(rates["text"]) == 3e-4


def test_scored_taps_are_where_recipes_read(alone):
    scored = replace(alone, taps={"source_mlp": (1, 3, 2)})
    specs = {name.partition(" (")[0]: spec_of(chosen, scored) for name, chosen in parameters(scored).items()}
    assert actions(specs["ridge on the best tap"]) == ["freeze", "drop", "drop"]
    assert actions(specs["best tap, tune 2"]) == ["tune", "drop", "drop"]
    assert actions(specs["second tap, tune 2"]) == ["freeze", "tune", "tune"]
    joined = specs["ridge on four taps"]
    assert (actions(joined), joined.joined) == (["freeze"] * 3, ("layer1", "layer2"))
    assert actions(specs["linear probe"]) == ["freeze"] * 3  # of the last tap, whatever the scores say


def test_each_recipe_comes_with_its_spec(context):
    """What it trains is known before it is asked for: its cut is stored with those of the others."""
    for _, spec, chosen in recipe_parameters(default_space, context, 99):
        asked = spec_of(chosen, context)
        assert (asked.plan, asked.backbone, asked.fit, asked.joined) == (
            spec.plan,
            spec.backbone,
            spec.fit,
            spec.joined,
        )


def test_recipes_are_distinct(context):
    chosen = list(parameters(context).values())
    assert len(chosen) > 12
    assert all(one not in chosen[:place] for place, one in enumerate(chosen))


def test_every_backbone_has_its_best_recipe_before_anyones_second(context):
    names = list(parameters(context, most=4))
    assert names == [
        "ridge on the best tap (source_mlp)",
        "ridge on the best tap (twin)",
        "linear probe (source_mlp)",
        "linear probe (twin)",
    ]


def test_recipes_are_for_the_backbones_that_are_named_in_their_order(context):
    assert list(parameters(context, most=2, backbones=("twin", "source_mlp"))) == [
        "ridge on the best tap (twin)",
        "ridge on the best tap (source_mlp)",
    ]
    assert all(name.endswith("(twin)") for name in parameters(context, backbones=("twin",)))
    assert parameters(context, backbones=()) == {}


def test_probes_of_all_backbones_come_before_trainings_of_the_best(context):
    groups = context.backbones["source_mlp"]
    host = context.host
    several = {f"twin{number}": replace(host.backbones["twin"], name=f"twin{number}") for number in range(4)}
    many = replace(
        context,
        host=replace(host, backbones={**host.backbones, **several}),
        backbones=dict.fromkeys(several, groups),
    )
    specs = [spec for _, spec, _ in recipe_parameters(default_space, many, 99, tuple(several))]
    trains = [spec.fit == "descent" for spec in specs]
    assert trains == sorted(trains)
    assert {spec.backbone for spec, train in zip(specs, trains, strict=True) if not train} == set(several)
    assert {spec.backbone for spec, train in zip(specs, trains, strict=True) if train} == {"twin0", "twin1"}


def test_a_backbone_of_one_group_has_fewer(context):
    one = replace(context, backbones={"source_mlp": context.backbones["source_mlp"][:1]})
    for chosen in parameters(one).values():
        assert len(spec_of(chosen, one).plan) == 1


def test_only_strategies_that_are_searched(alone):
    some = replace(alone, strategies=("linear_probe", "last_k"))
    assert list(parameters(some)) == ["linear probe (source_mlp)", "last two (source_mlp)"]
    assert parameters(replace(alone, strategies=("gradual_unfreezing",))) == {}


def test_what_the_user_fixed_is_kept(alone):
    fixed = replace(alone, overrides={"strategy": "last_k", "head": "mlp", "learning_rate": 0.01, "dropout": 0.3})
    [(name, chosen)] = parameters(fixed).items()
    assert name == "last two (source_mlp)"
    assert not {"strategy", "head", "adam.learning_rate", "dropout"} & chosen.keys()
    spec = spec_of(chosen, fixed)
    assert (spec.head, spec.optimization.learning_rate, spec.regularization.dropout) == ("mlp", 0.01, 0.3)


def test_what_the_user_narrowed_is_respected(alone):
    narrowed = replace(
        alone,
        overrides={
            "adam.learning_rate": Range(low=1e-5, high=1e-4, log=True),
            "optimizer": ("adam", "sgd"),
            "suffix.tap": Range(low=3, high=3),
            "last_k.k": Range(low=1, high=1),
            "strategy": ("suffix", "last_k"),
        },
    )
    found = parameters(narrowed)
    names = [
        *("ridge on the best tap", "logistic on the best tap", "best tap, tune 2", "best tap, tune all"),
        *("best tap, tune 1", "last two", "best tap, last one anew"),
    ]
    assert list(found) == [f"{name} (source_mlp)" for name in names]
    for chosen in found.values():
        assert 1e-5 <= chosen["adam.learning_rate"] <= 1e-4  # the nearest to what the recipe says
        assert "optimizer" not in chosen  # adamw is not among them: left to the sampler
        spec = spec_of(chosen, narrowed)
        assert spec.optimization.optimizer in ("adam", "sgd")
        assert "drop" not in actions(spec)


def test_a_space_of_ones_own_gets_the_values_that_it_asks_for(alone):
    def space(trial, context):
        spec = default_space(trial, context)
        count = trial.suggest_int("frozen", 0, 3)
        planned = (
            GroupPlan(group=group.group, action="freeze" if place < count else "tune")
            for place, group in enumerate(spec.plan)
        )
        return replace(spec, plan=TransferPlan(tuple(planned)), strategy=None, fit="descent", joined=())

    for name, chosen in parameters(alone, most=3, space=space).items():
        assert name.endswith("(source_mlp)")
        assert "frozen" not in chosen
        assert spec_of(chosen, alone, space).regularization.dropout == 0.1


TRAINS = {"tune", "reinit"}


@pytest.mark.parametrize("taps", [{}, {"source_mlp": (2, 1, 3)}])
def test_what_is_like_a_recipe_trains_layer_groups_and_stays_in_the_space(alone, taps):
    """A study takes every value as it is, and the spec that comes of it is the one that was drawn."""
    context = replace(alone, taps=taps)
    seen = []
    for seed in range(25):
        chosen = like_a_recipe(default_space, context, "source_mlp", np.random.default_rng(seed))
        spec = spec_of(chosen, context)
        assert (spec.backbone, spec.fit) == ("source_mlp", "descent")
        assert TRAINS & set(actions(spec))
        assert chosen == like_a_recipe(default_space, context, "source_mlp", np.random.default_rng(seed))
        seen.append(chosen)
    assert all(one not in seen[:place] for place, one in enumerate(seen))
    assert len({chosen["strategy"] for chosen in seen}) > 2
    assert len({len([action for action in actions(spec_of(each, context)) if action in TRAINS]) for each in seen}) > 1


def test_what_is_like_a_recipe_respects_what_the_user_said(alone):
    overrides = {
        "adam.learning_rate": Range(low=1e-5, high=1e-4, log=True),
        "strategy": ("suffix", "last_k"),
        "suffix.tap": Range(low=3, high=3),
        "dropout": 0.3,
        "batch_size": (16, 32),
    }
    narrowed = replace(alone, overrides=overrides)
    for seed in range(25):
        chosen = like_a_recipe(default_space, narrowed, "source_mlp", np.random.default_rng(seed))
        assert "dropout" not in chosen
        assert 1e-5 <= chosen.get("adam.learning_rate", 1e-5) <= 1e-4
        assert chosen.get("batch_size", 16) in (16, 32)
        spec = spec_of(chosen, narrowed)
        assert spec.strategy in ("suffix", "last_k")
        assert "drop" not in actions(spec)
        assert spec.regularization.dropout == 0.3


def test_of_few_samples_a_class_few_layer_groups_are_expected_to_be_worth_training(alone):
    groups = alone.backbones["source_mlp"]
    deep = replace(alone, backbones={"source_mlp": groups}, strategies=("suffix",))

    def trained(n_train):
        found = 0
        for seed in range(60):
            chosen = like_a_recipe(
                default_space, replace(deep, n_train=n_train), "source_mlp", np.random.default_rng(seed)
            )
            found += chosen["suffix@source_mlp.n_train"]
        return found / 60

    assert trained(6) < trained(60_000)


@pytest.mark.parametrize(("strategies", "overrides"), [(("linear_probe",), {}), (("suffix",), {"backbone": "twin"})])
def test_where_no_recipe_fits_none_is_imitated(context, strategies, overrides):
    narrowed = replace(context, strategies=strategies, overrides=overrides)
    assert like_a_recipe(default_space, narrowed, "source_mlp", np.random.default_rng(0)) == {}


def test_without_a_favorite_any_backbone_is_imitated(context):
    generator = np.random.default_rng(0)
    drawn = [like_a_recipe(default_space, context, None, generator) for _ in range(12)]
    assert {chosen["backbone"] for chosen in drawn} == {"source_mlp", "twin"}


def test_no_more_than_asked_for(context):
    assert len(parameters(context, most=5)) == 5
    assert parameters(context, most=0) == {}
