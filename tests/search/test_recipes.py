"""The known-good recipes: real plans, distinct, within what the user allows."""

from dataclasses import replace

import optuna
import pytest

from automl_tl.config import Range
from automl_tl.plugin import GroupPlan, TransferPlan
from automl_tl.search.recipes import recipe_parameters, recipes_for
from automl_tl.search.space import default_space, suggest_spec


@pytest.fixture
def alone(context):
    return replace(context, backbones={"source_mlp": context.backbones["source_mlp"]})


def parameters(context, most=99, space=default_space):
    return dict(recipe_parameters(space, context, most))


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
    assert list(specs) == [recipe.name.partition(" (")[0] for recipe in recipes_for("source_mlp", 3)]
    assert actions(specs["linear probe"]) == ["freeze", "freeze", "freeze"]
    assert actions(specs["tap 2/3, tune 2"]) == ["tune", "tune", "drop"]
    assert actions(specs["tap 2/3, frozen"]) == ["freeze", "freeze", "drop"]
    assert actions(specs["full fine-tuning"]) == ["tune", "tune", "tune"]
    assert actions(specs["last two"]) == ["freeze", "tune", "tune"]
    assert [group.lr_scale for group in specs["layer-wise decay"].plan] == [0.75**2, 0.75, 1.0]
    assert {group.unfreeze_epoch for group in specs["LP-FT"].plan} == {2}
    assert all(spec.head == "linear" and spec.optimization.optimizer == "adamw" for spec in specs.values())
    assert specs["linear probe"].optimization.learning_rate == pytest.approx(3e-3)
    assert specs["full fine-tuning"].optimization.learning_rate == pytest.approx(3e-4)


def test_recipes_are_distinct(context):
    chosen = list(parameters(context).values())
    assert len(chosen) == 16
    assert all(one not in chosen[:place] for place, one in enumerate(chosen))


def test_every_backbone_has_its_best_recipe_before_anyones_second(context):
    names = list(parameters(context, most=4))
    assert names == [
        "linear probe (source_mlp)",
        "linear probe (twin)",
        "tap 2/3, tune 2 (source_mlp)",
        "tap 2/3, tune 2 (twin)",
    ]


def test_a_backbone_of_one_group_has_fewer(context):
    one = replace(context, backbones={"source_mlp": context.backbones["source_mlp"][:1]})
    for chosen in parameters(one).values():
        assert len(spec_of(chosen, one).plan) == 1


def test_only_strategies_that_are_searched(alone):
    some = replace(alone, strategies=("linear_probe", "lp_ft"))
    assert list(parameters(some)) == ["linear probe (source_mlp)", "LP-FT (source_mlp)"]
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
    names = ["tap 2/3, tune 2", "tap 2/3, frozen", "tap 2/3, tune all", "last two"]
    assert list(found) == [f"{name} (source_mlp)" for name in names]
    for chosen in found.values():
        assert chosen["adam.learning_rate"] == 1e-4
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
        return replace(spec, plan=TransferPlan(tuple(planned)), strategy=None)

    for name, chosen in parameters(alone, most=3, space=space).items():
        assert name.endswith("(source_mlp)")
        assert "frozen" not in chosen
        assert spec_of(chosen, alone, space).regularization.dropout == 0.1


def test_no_more_than_asked_for(context):
    assert len(parameters(context, most=5)) == 5
    assert parameters(context, most=0) == {}
