"""Every parameter of a space is found by asking, and keys that nothing answers to are reported."""

from dataclasses import replace

import pytest

from automl_tl.config import Range
from automl_tl.errors import ConfigError, PluginError
from automl_tl.search.parameters import check_overrides, parameters_of
from automl_tl.search.space import default_space
from automl_tl.testing.draws import draws


def check(context, **overrides):
    check_overrides(default_space, replace(context, overrides=overrides))


def test_every_parameter_is_found_whatever_it_depends_on(context):
    found = parameters_of(default_space, context)
    for draw in draws(100):
        default_space(draw, context)
        assert draw.space.keys() <= found.keys()


def test_what_is_asked_only_of_one_head_on_frozen_layers_is_found(context):
    """Whatever the first head and the first strategy are."""
    for heads in (("cosine", "linear"), ("linear", "cosine")):
        for strategies in (("full_finetune", "linear_probe"), ("linear_probe", "full_finetune")):
            few = replace(context, heads=heads, strategies=strategies, taps={"twin": (2, 3, 1)})
            found = parameters_of(default_space, few)
            assert found["fit"] == "ridge, logistic, prototypes, descent"
            assert found["joined_taps"] == "1, 2, 4"


def test_domains_are_for_people(context):
    found = parameters_of(default_space, context)
    assert found["backbone"] == "source_mlp, twin"
    assert found["dropout"] == "0 … 0.5"
    assert found["adam.learning_rate"] == "1e-05 … 0.01, log"
    assert found["last_k@twin.k"] == "1 … 3"
    assert found["mlp.hidden"] == "128, 256, 512"


def test_overrides_change_what_is_shown(context):
    found = parameters_of(
        default_space,
        replace(context, overrides={"dropout": 0.1, "patience": Range(low=2, high=4), "head": ("linear", "cosine")}),
    )
    assert "dropout" not in found
    assert found["patience"] == "2 … 4"
    assert found["head"] == "linear, cosine"
    assert "mlp.hidden" not in found


@pytest.mark.parametrize(
    "key",
    [
        "backbone", "strategy", "head", "norm", "dropout", "learning_rate", "adam.learning_rate", "sgd.learning_rate",
        "last_k.k", "last_k@twin.k", "suffix.tap", "class_weight", "l2_sp", "joint_source_weight", "fit", "pooling",
        "joined_taps", "views", "mixup", "activation_noise", "tokens",
    ],
)  # fmt: skip
def test_names_a_user_may_write(context, key):
    words = {"backbone": "twin", "strategy": "last_k", "head": "mlp", "norm": "train", "class_weight": "balanced"}
    words |= {"fit": "logistic", "pooling": "mean_std"}
    check(context, **{key: words.get(key, 1)})


def test_a_head_that_is_left_out_by_the_override_itself_keeps_its_parameters(context):
    check(context, **{"head": "linear", "mlp.hidden": 64})


def test_unknown_keys_are_all_reported_with_the_nearest_known_one(context):
    with pytest.raises(ConfigError) as caught:
        check(context, dropuot=0.1, **{"last_k.kk": 2, "lr": 0.1, "weight_decay": 0.1})
    first, second, third, known = str(caught.value).splitlines()
    assert first == "space.dropuot: no such parameter. Did you mean 'dropout'?"
    assert second == "space.last_k.kk: no such parameter. Did you mean 'last_k.k'?"
    assert third.startswith("space.lr: no such parameter.")
    assert known.startswith("Known: ")
    assert "weight_decay" in known


@pytest.mark.parametrize(
    ("overrides", "error"),
    [
        ({"optimizer": ("adam", "rmsprop")}, ConfigError),
        ({"augmentation": ("none", "wild")}, ConfigError),
        ({"dropout": "much"}, ConfigError),
        ({"batch_size": ("16", "big")}, ConfigError),
        ({"strategy": ("last_k", "first_k")}, PluginError),
        ({"head": ("linear", "liner")}, PluginError),
        ({"backbone": ("twin", "triplet")}, ConfigError),
    ],
)
def test_values_that_cannot_be_are_found_wherever_they_stand(context, overrides, error):
    with pytest.raises(error):
        check(context, **overrides)


def test_nothing_is_asked_when_nothing_is_overridden(context):
    def space(trial, context):
        raise AssertionError

    check_overrides(space, context)


@pytest.mark.parametrize("name", ["patience", "batch_size", "warm_up", "averaging"])
def test_what_is_no_question_for_a_small_task_may_still_be_answered(context, name):
    check(replace(context, n_train=12, imbalance=1.0), **{name: 1})
