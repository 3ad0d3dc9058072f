"""The default space: every spec it gives can be carried out, and its names never change from trial to trial."""

from dataclasses import replace

import optuna
import pytest

from automl_tl.config import Range
from automl_tl.errors import ConfigError, PluginError, TrialError
from automl_tl.host import load_host
from automl_tl.model.groups import describe_groups
from automl_tl.model.plan import check_plan
from automl_tl.model.spec import spec_from_json
from automl_tl.plugin import FreezingStrategy, GroupPlan, TransferPlan
from automl_tl.search.recipes import RecipeTrial
from automl_tl.search.space import (
    CLASS_WEIGHTS,
    TRAINED_TOKENS,
    default_space,
    suggest_plan,
    suggest_regularization,
    suggest_spec,
)
from automl_tl.testing.draws import Draw, draws
from automl_tl.training.stopping import STOPPING_ROWS

IMAGE, TEXT = (3, 32, 32), ()


def with_backbones(context, *names, shape):
    host = load_host()
    groups = {name: describe_groups(host.backbone(name), shape) for name in names}
    return replace(context, host=host, backbones=groups, modality=host.backbone(names[0]).input.modality)


def test_every_backbone_and_strategy_gives_a_valid_plan(context):
    for backbone in context.backbones:
        for strategy in context.strategies:
            for draw in draws(12):
                plan = suggest_plan(draw, context, backbone=backbone, strategy=strategy)
                names = [group.name for group in context.backbones[backbone]]
                check_plan(plan, names, max_epochs=context.max_epochs, owner=strategy)


@pytest.mark.parametrize("max_epochs", [1, 2, 30])
def test_every_spec_can_be_stored_and_carried_out(context, max_epochs):
    context = replace(context, max_epochs=max_epochs)
    for draw in draws(40):
        spec = suggest_spec(default_space, draw, context)
        assert spec_from_json(spec.to_json()) == spec
        assert spec.max_epochs == max_epochs
        assert spec.strategy in context.strategies
        names = [group.name for group in context.backbones[spec.backbone]]
        check_plan(spec.plan, names, max_epochs=max_epochs, owner="space")


def test_the_same_name_always_has_the_same_domain(context):
    """Optuna refuses a name whose choices change, and can learn nothing from one whose range does."""
    space = {}
    for draw in draws(200):
        default_space(draw, context)
        for name, domain in draw.space.items():
            assert space.setdefault(name, domain) == domain
    assert {"backbone", "strategy", "head", "dropout", "adam.learning_rate", "sgd.learning_rate"} <= space.keys()
    assert {"last_k@source_mlp.k", "last_k@twin.k", "mlp.hidden"} <= space.keys()


def test_all_but_what_depends_on_a_choice_is_asked_in_every_trial(context):
    always = {
        "backbone", "strategy", "head", "dropout", "weight_decay", "label_smoothing", "augmentation",
        "min_delta", "optimizer", "head_lr_scale", "batch_size",
    }  # fmt: skip
    for draw in draws(20):
        default_space(draw, context)
        assert always <= draw.space.keys()


def test_a_real_study_can_sample_it(context):
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=5), direction="maximize")
    for _ in range(15):
        trial = study.ask()
        spec = suggest_spec(default_space, trial, context)
        study.tell(trial, spec.regularization.dropout)
    assert len(study.trials) == 15


def test_overrides_reach_every_part(context):
    overrides = {
        "backbone": "twin",
        "strategy": "last_k",
        "last_k.k": 2,
        "head": "mlp",
        "mlp.hidden": 32,
        "dropout": 0.25,
        "optimizer": "sgd",
        "learning_rate": 0.5,
        "batch_size": 8.0,
        "norm": "train",
        "label_smoothing": Range(low=0.2, high=0.2),
    }
    spec = suggest_spec(default_space, Draw(), replace(context, overrides=overrides))
    assert (spec.backbone, spec.strategy, spec.head, spec.norm) == ("twin", "last_k", "mlp", "train")
    assert [group.action for group in spec.plan] == ["freeze", "tune", "tune"]
    assert spec.head_parameters == {"hidden": 32}
    assert (spec.optimization.optimizer, spec.optimization.learning_rate) == ("sgd", 0.5)
    assert (spec.optimization.batch_size, type(spec.optimization.batch_size)) == (8, int)
    assert (spec.regularization.dropout, spec.regularization.label_smoothing) == (0.25, 0.2)


def test_warm_up_clipping_and_averaging_are_a_question_where_the_user_makes_them_one(context):
    usual = suggest_spec(default_space, Draw(), context).optimization
    assert (usual.warm_up, usual.clip_norm, usual.averaging) == (30, 1.0, 0.999)
    asked = {"warm_up": (0, 100), "clip_norm": 0, "averaging": Range(low=0.9, high=0.9)}
    made = suggest_spec(default_space, Draw(), replace(context, overrides=asked)).optimization
    assert made.warm_up in (0, 100)
    assert (made.clip_norm, made.averaging) == (0.0, 0.9)


def test_a_strategy_that_is_not_searched_can_be_named(context):
    few = replace(context, strategies=("linear_probe",), overrides={"strategy": "full_finetune"})
    assert suggest_spec(default_space, Draw(), few).strategy == "full_finetune"


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ({"backbone": "twinn"}, ConfigError, r"no backbone in this search named 'twinn'.*Did you mean 'twin'\?"),
        ({"strategy": "last_kk"}, PluginError, r"no freezing strategy named 'last_kk'.*Did you mean 'last_k'\?"),
        ({"head": "liner"}, PluginError, r"no head named 'liner'.*Did you mean 'linear'\?"),
        ({"optimizer": "adamm"}, ConfigError, r"optimization\.optimizer: .*'adamw', got 'adamm'"),
        ({"augmentation": "wild"}, ConfigError, r"regularization\.augmentation: .*got 'wild'"),
        ({"batch_size": "big"}, ConfigError, r"batch_size is a number, got 'big'"),
    ],
)
def test_values_that_cannot_be(context, overrides, error, message):
    with pytest.raises(error, match=message):
        suggest_spec(default_space, Draw(), replace(context, overrides=overrides))


def test_weights_are_called_transferred_only_where_there_are_some(context):
    one = replace(context, overrides={"backbone": "source_mlp"})
    assert default_space(Draw(), one).weights == "random"
    assert default_space(Draw(), replace(one, joint_with="source_mlp")).weights == "transferred"
    assert default_space(Draw(), replace(one, joint_with="source_mlp", weights="random")).weights == "random"

    pretrained = with_backbones(context, "mobilenet_v2", shape=IMAGE)
    assert default_space(Draw(), pretrained).weights == "transferred"
    assert default_space(Draw(), replace(pretrained, weights="random")).weights == "random"


def test_training_on_both_tasks_is_for_the_source_backbone_only(context):
    joint = replace(context, joint_with="source_mlp")
    for draw in draws(20):
        spec = default_space(draw, joint)
        assert ("joint_source_weight" in draw.space) == (spec.backbone == "source_mlp")
        assert spec.joint_source_weight in (0.0, 0.1, 0.3, 1.0)
    draw = Draw()
    default_space(draw, replace(joint, weights="random"))
    assert "joint_source_weight" not in draw.space


@pytest.mark.parametrize(("imbalance", "asked"), [(1.0, False), (1.5, False), (1.6, True), (50.0, True)])
def test_imbalance_adds_class_weights(context, imbalance, asked):
    draw = Draw("high")
    kept = suggest_regularization(draw, replace(context, imbalance=imbalance))
    assert ("class_weight" in draw.space) == asked
    assert kept.class_weight == ("logit_adjusted" if asked else "none")
    assert not asked or draw.space["class_weight"].choices == CLASS_WEIGHTS


@pytest.mark.parametrize(("n_train", "asked"), [(STOPPING_ROWS - 1, False), (STOPPING_ROWS, True)])
def test_few_samples_have_none_to_spare_for_ending_a_training_early(context, n_train, asked):
    draw = Draw("high")
    kept = suggest_regularization(draw, replace(context, n_train=n_train))
    assert ("patience" in draw.space) == asked
    assert (kept.patience > 0) == asked


@pytest.mark.parametrize(
    ("head", "weights", "asked"),
    [("linear", "transferred", True), ("linear", "random", False), ("mlp", "transferred", False)],
)
def test_a_linear_head_may_start_where_a_probe_ends(context, head, weights, asked):
    """Of weights that mean something."""
    draw = Draw("low")
    one = replace(with_backbones(context, "source_cnn", shape=IMAGE), joint_with="source_cnn", weights=weights)
    spec = suggest_spec(default_space, draw, replace(one, overrides={"head": head}))
    assert ("init_head" in draw.space) == asked
    assert spec.init_head == ("probe" if asked else "random")


@pytest.mark.parametrize(
    ("modality", "choices"),
    [("image", ("none", "light", "strong")), ("text", ("none", "light")), ("tabular", ("none", "light"))],
)
def test_augmentations_suit_the_modality(context, modality, choices):
    draw = Draw()
    suggest_regularization(draw, replace(context, modality=modality))
    assert draw.space["augmentation"].choices == choices


@pytest.mark.parametrize(
    ("strategy", "head", "asked"),
    [("linear_probe", "linear", True), ("linear_probe", "mlp", False), ("full_finetune", "linear", False)],
)
def test_a_linear_head_that_trains_alone_may_be_solved_for(context, strategy, head, asked):
    fixed = replace(context, overrides={"strategy": strategy, "head": head})
    for draw in draws(10):
        spec = suggest_spec(default_space, draw, fixed)
        assert ("fit" in draw.space) == asked
        assert asked or spec.fit == "descent"
        assert spec.joined == ()  # no tap has a score


def test_a_head_that_is_solved_for_by_regression_may_read_the_best_taps(context):
    scored = replace(context, taps={"source_mlp": (3, 1, 2)}, overrides={"backbone": "source_mlp", "head": "linear"})
    found = set()
    for draw in draws(150):
        spec = suggest_spec(default_space, draw, replace(scored, strategies=("linear_probe",)))
        assert ("joined_taps" in draw.space) == (spec.fit in ("ridge", "logistic"))
        if spec.joined:
            assert [group.action for group in spec.plan] == ["freeze"] * 3
        found.add((spec.fit, spec.joined))
    several = {("layer1",), ("layer1", "layer2")}  # beside the third, the best two of three taps, or all
    assert found == {
        *((fit, joined) for fit in ("ridge", "logistic") for joined in ((), *several)),
        ("prototypes", ()),
        ("descent", ()),
    }


def test_what_lies_behind_the_deepest_joined_tap_is_dropped(context):
    """Whatever the strategy kept."""
    overrides = {"backbone": "twin", "head": "linear", "fit": "ridge", "joined_taps": 2}
    scored = replace(context, taps={"twin": (2, 1, 3)}, strategies=("linear_probe",), overrides=overrides)
    spec = suggest_spec(default_space, Draw(), scored)
    assert [group.action for group in spec.plan] == ["freeze", "freeze", "drop"]
    assert spec.joined == ("layer1",)


def test_a_table_has_nothing_to_be_pooled_over(context):
    draw = Draw("high")
    assert suggest_spec(default_space, draw, context).pooling == "mean"
    assert "pooling" not in draw.space
    images = with_backbones(context, "source_cnn", shape=IMAGE)
    assert suggest_spec(default_space, Draw("high"), images).pooling == "mean_std"


def test_random_weights_have_nothing_to_pull_towards(context):
    draw = Draw()
    kept = suggest_regularization(draw, replace(context, weights="random"))
    assert kept.l2_sp == 0.0
    assert "l2_sp" not in draw.space


@pytest.mark.parametrize(("n_train", "sizes"), [(256, (16, 32, 64)), (10_000, (16, 32, 64, 128))])
def test_batches_are_never_larger_than_a_quarter_of_the_samples(context, n_train, sizes):
    draw = Draw()
    default_space(draw, replace(context, n_train=n_train))
    assert draw.space["batch_size"].choices == sizes


@pytest.mark.parametrize("n_train", [10, 64, 120])
def test_few_samples_leave_one_batch_size(context, n_train):
    draw = Draw()
    spec = default_space(draw, replace(context, n_train=n_train))
    assert spec.optimization.batch_size == 16
    assert "batch_size" not in draw.space


def test_image_and_text_backbones(context):
    for name, shape in (("source_cnn", IMAGE), ("mobilenet_v2", IMAGE), ("minilm_l6", TEXT)):
        one = with_backbones(context, name, shape=shape)
        for draw in draws(10):
            spec = suggest_spec(default_space, draw, one)
            assert len(spec.plan) == len(one.backbones[name])


def frozen_and_rest(trial, context):
    """A space of one's own, as the documentation has it: the default one with another plan."""
    spec = default_space(trial, context)
    frozen = trial.suggest_int("frozen", 0, 3)
    actions = ["freeze"] * frozen + ["tune"] * (3 - frozen)
    groups = context.backbones[spec.backbone]
    plan = TransferPlan(tuple(GroupPlan(group=g.name, action=a) for g, a in zip(groups, actions, strict=True)))
    return replace(spec, plan=plan, strategy=None)


def test_another_plan_may_train_what_the_default_one_froze(context):
    """A head that was to be solved for is then trained, with the rest."""
    scored = replace(context, taps={"source_mlp": (2, 1, 3), "twin": (3, 2, 1)})
    for draw in draws(40):
        spec = suggest_spec(frozen_and_rest, draw, scored)
        if any(group.action == "tune" for group in spec.plan):
            assert (spec.fit, spec.joined) == ("descent", ())


def test_a_space_of_ones_own_replaces_parts(context):
    def space(trial, context):
        spec = default_space(trial, context)
        frozen = trial.suggest_int("frozen", 0, 3)
        actions = ["freeze"] * frozen + ["tune"] * (3 - frozen)
        groups = context.backbones[spec.backbone]
        plan = TransferPlan(tuple(GroupPlan(group=g.name, action=a) for g, a in zip(groups, actions, strict=True)))
        return replace(spec, plan=plan, strategy=None)

    draw = Draw("high")
    spec = suggest_spec(space, draw, context)
    assert [group.action for group in spec.plan] == ["freeze"] * 3
    assert draw.parameters["frozen"] == 3
    assert "dropout" in draw.space


@pytest.mark.parametrize(
    ("space", "error", "message"),
    [
        (
            lambda trial, context: {"backbone": "twin"},
            TrialError,
            r"must return a TrialSpec, got \{'backbone': 'twin'\}",
        ),
        (
            lambda trial, context: replace(default_space(trial, context), backbone="resnet"),
            ConfigError,
            "no backbone in this search named 'resnet'",
        ),
        (
            lambda trial, context: replace(default_space(trial, context), max_epochs="many"),
            ConfigError,
            "max_epochs: Input should be a valid integer.*got 'many'",
        ),
    ],
)
def test_a_space_of_ones_own_is_checked(context, space, error, message):
    with pytest.raises(error, match=message):
        suggest_spec(space, Draw(), context)


def test_a_strategy_that_breaks_the_rules_is_named_with_its_owner(context):
    host = load_host_with_bad_strategy()
    bad = replace(context, host=host, strategies=("hopeful",))
    with pytest.raises(
        PluginError, match=r"freezing strategy 'hopeful' \(passed in Python\): dropped layer groups must"
    ):
        suggest_plan(RecipeTrial({}), bad, backbone="source_mlp", strategy="hopeful")


def load_host_with_bad_strategy():
    from automl_tl.host import PluginSources

    def plan(trial, groups, context):
        first, *rest = groups
        return TransferPlan(
            (GroupPlan(group=first.name, action="drop"), *(GroupPlan(group=g.name, action="tune") for g in rest))
        )

    return load_host(PluginSources(objects=(FreezingStrategy(name="hopeful", description="", plan=plan),)))


def test_texts_are_shortened_where_layer_groups_train(context):
    text = with_backbones(context, "minilm_l6", shape=TEXT)
    tokens = {"full_finetune": set(), "linear_probe": set()}
    for strategy, found in tokens.items():
        one = replace(text, strategies=(strategy,))
        found |= {suggest_spec(default_space, draw, one).tokens for draw in draws(5)}
    assert tokens == {"full_finetune": {TRAINED_TOKENS}, "linear_probe": {0}}
    asked = replace(text, strategies=("full_finetune",), overrides={"tokens": 0})
    assert {suggest_spec(default_space, draw, asked).tokens for draw in draws(5)} == {0}
    assert {suggest_spec(default_space, draw, context).tokens for draw in draws(5)} == {0}
    less = replace(asked, overrides={"tokens": -3})
    with pytest.raises(ConfigError, match="tokens: Input should be greater than or equal to 0, got -3"):
        suggest_spec(default_space, Draw("low"), less)


def test_a_spec_is_the_same_when_it_is_read_again(context):
    def whole_numbers(trial, context):
        spec = default_space(trial, context)
        return replace(spec, regularization=replace(spec.regularization, dropout=0))

    spec = suggest_spec(whole_numbers, Draw("low"), context)
    assert spec_from_json(spec.to_json()).digest() == spec.digest()
