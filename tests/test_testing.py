"""The conformance kit itself. For every check there is a plugin with one fault, which that check finds and no other."""

import hashlib
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from optuna.trial import FixedTrial
from torch import nn

from automl_tl.errors import PluginError
from automl_tl.plugin import (
    Backbone,
    FreezingStrategy,
    GroupPlan,
    Head,
    ImageInput,
    TabularInput,
    TextInput,
    Tokens,
    TransferPlan,
    Weights,
)
from automl_tl.testing import CheckSkipped, Nonconformance, conformance_test, iter_checks
from automl_tl.testing.draws import Draw, draws
from automl_tl.testing.parameters import search_parameters

EXAMPLE = Path(__file__).parents[1] / "plugins" / "example_surgical" / "automl_tl_surgical.py"


def failing(item):
    """Names of the checks that an item fails; any exception but a skip is a failure."""
    failed = []
    for check in iter_checks([item]):
        try:
            check.run()
        except CheckSkipped:
            pass
        except Exception:
            failed.append(check.name)
    return failed


# --- freezing strategies


def strategy(plan):
    return FreezingStrategy(name="mutant", description="", plan=plan)


def plan_of(groups, actions, **changes):
    pairs = zip(groups, actions, strict=True)
    return TransferPlan(tuple(GroupPlan(group=group.name, action=action, **changes) for group, action in pairs))


def sound_plan(trial, groups, context):
    """Uses all that is allowed: freeze, tune, re-initialize, drop, unfreezing and rates."""
    kept = trial.suggest_int("kept", 1, len(groups))
    frozen = trial.suggest_int("frozen", 0, len(groups))
    scale = trial.suggest_float("scale", 1e-3, 1, log=True)
    part = trial.suggest_categorical("part", ["all", "norm", "bias"])
    plans = []
    for depth, group in enumerate(groups):
        action = "drop" if depth >= kept else "freeze" if depth < frozen else "tune" if depth < kept - 1 else "reinit"
        epoch = min(depth, context.max_epochs - 1)
        plans.append(
            GroupPlan(
                group=group.name,
                action=action,
                unfreeze_epoch=epoch,
                lr_scale=scale,
                part="all" if action == "reinit" else part,
            )
        )
    return TransferPlan(tuple(plans))


def plan_backwards(trial, groups, context):
    return plan_of(groups[::-1], ["tune"] * len(groups))


def plan_without_wrapper(trial, groups, context):
    return plan_of(groups, ["tune"] * len(groups)).groups


def plan_unknown_action(trial, groups, context):
    return plan_of(groups, ["thaw"] * len(groups))


def plan_unknown_part(trial, groups, context):
    return plan_of(groups, ["tune"] * len(groups), part="head")


def plan_dropping_the_first(trial, groups, context):
    return plan_of(groups, (["drop"] + ["tune"] * len(groups))[: len(groups)])


def plan_dropping_all(trial, groups, context):
    return plan_of(groups, ["drop"] * len(groups))


def plan_tuning_after_the_end(trial, groups, context):
    return plan_of(groups, ["tune"] * len(groups), unfreeze_epoch=5)


def plan_tuning_before_the_start(trial, groups, context):
    return plan_of(groups, ["tune"] * len(groups), unfreeze_epoch=-1)


def plan_random_and_frozen(trial, groups, context):
    return plan_of(groups, ["reinit"] * len(groups), unfreeze_epoch=context.max_epochs)


def plan_random_in_part(trial, groups, context):
    return plan_of(groups, ["reinit"] * len(groups), part="bias")


def plan_without_learning(trial, groups, context):
    return plan_of(groups, ["tune"] * len(groups), lr_scale=0.0)


def plan_by_chance(trial, groups, context):
    return plan_of(groups, ["tune"] * len(groups), lr_scale=random.uniform(0.1, 1))


def plan_with_a_conditional_space(trial, groups, context):
    if trial.suggest_categorical("probe", [True, False]):
        return plan_of(groups, ["freeze"] * len(groups))
    return plan_of(groups, ["tune"] * len(groups), lr_scale=trial.suggest_float("scale", 0.1, 1))


def plan_with_a_moving_range(trial, groups, context):
    k = trial.suggest_int("k", 0, 9)
    return plan_of(groups, ["tune"] * len(groups), lr_scale=1 + trial.suggest_int("more", 0, k))


def plan_with_numpy_numbers(trial, groups, context):
    return plan_of(groups, ["tune"] * len(groups), lr_scale=np.float32(0.5))


def plan_as_a_list(trial, groups, context):
    return TransferPlan([GroupPlan(group=group.name, action="tune") for group in groups])


STRATEGY_MUTANTS = [
    (plan_backwards, "plan_names_every_group"),
    (plan_unknown_action, "actions_and_parts_are_known"),
    (plan_unknown_part, "actions_and_parts_are_known"),
    (plan_dropping_the_first, "dropped_groups_form_the_tail"),
    (plan_dropping_all, "dropped_groups_form_the_tail"),
    (plan_tuning_after_the_end, "tuned_groups_train"),
    (plan_tuning_before_the_start, "tuned_groups_train"),
    (plan_random_and_frozen, "reinitialized_groups_train"),
    (plan_random_in_part, "reinitialized_groups_train"),
    (plan_without_learning, "learning_rate_scales_are_positive"),
    (plan_by_chance, "plan_is_a_pure_function"),
    (plan_with_a_conditional_space, "search_space_is_static"),
    (plan_with_a_moving_range, "search_space_is_static"),
    (plan_with_numpy_numbers, "plan_survives_json"),
    (plan_as_a_list, "plan_survives_json"),
]


@pytest.mark.parametrize(("plan", "check"), STRATEGY_MUTANTS)
def test_a_faulty_strategy_fails_one_check(plan, check):
    assert failing(strategy(plan)) == [check]


def test_a_failure_names_the_plugin_and_what_it_did():
    [check] = [check for check in iter_checks([strategy(plan_backwards)]) if check.name == "plan_names_every_group"]
    assert check.id == "strategy-mutant-plan_names_every_group"
    expected = r"mutant: the plan must name every layer group once, in the order \['group1', 'group2', 'group3'\]; got "
    with pytest.raises(Nonconformance, match=expected):
        check.run()


def test_a_sound_strategy_fails_none():
    assert failing(strategy(sound_plan)) == []


def test_a_bare_tuple_is_no_plan():
    assert "plan_names_every_group" in failing(strategy(plan_without_wrapper))


# --- heads


class Net(nn.Module):
    """A linear layer, and something done to its logits."""

    def __init__(self, in_features, n_outputs, before=None, after=None):
        super().__init__()
        self.layer = nn.Linear(in_features, n_outputs)
        self.before, self.after = before, after

    def forward(self, x):
        logits = self.layer(self.before(x) if self.before else x)
        return self.after(logits) if self.after else logits


def head(build):
    return Head(name="mutant", description="", build=build)


def doing(before=None, after=None):
    return lambda trial, *, in_features, n_outputs: Net(in_features, n_outputs, before, after)


def build_with_own_generator(trial, *, in_features, n_outputs):
    module = Net(in_features, n_outputs)
    generator = torch.Generator()
    generator.seed()
    nn.init.normal_(module.layer.weight, generator=generator)
    return module


def build_with_a_conditional_space(trial, *, in_features, n_outputs):
    if trial.suggest_categorical("dropout", [True, False]):
        return nn.Sequential(nn.Dropout(trial.suggest_float("rate", 0, 0.5)), nn.Linear(in_features, n_outputs))
    return nn.Linear(in_features, n_outputs)


def build_with_a_loose_tensor(trial, *, in_features, n_outputs):
    projection = torch.randn(in_features, in_features)
    return Net(in_features, n_outputs, before=lambda x: x @ projection)


def build_sound_head(trial, *, in_features, n_outputs):
    """Starts at zero, normalizes and drops: all of which is allowed."""
    width = trial.suggest_int("width", 4, 32, log=True)
    output = nn.Linear(width, n_outputs)
    nn.init.zeros_(output.weight)
    nn.init.zeros_(output.bias)
    dropout = nn.Dropout(trial.suggest_float("dropout", 0, 0.5))
    return nn.Sequential(nn.Linear(in_features, width), nn.BatchNorm1d(width), nn.ReLU(), dropout, output)


HEAD_MUTANTS = [
    (doing(after=lambda y: torch.cat([y, y], 1)), "logits_have_one_column_an_output"),
    (doing(after=lambda y: y.double()), "logits_have_one_column_an_output"),
    (doing(after=lambda y: y.squeeze(0)), "samples_do_not_mix"),
    (doing(after=lambda y: y - y.mean(0)), "samples_do_not_mix"),
    (doing(after=lambda y: y.softmax(1)), "outputs_are_raw_logits"),
    (doing(after=lambda y: y.log_softmax(1)), "outputs_are_raw_logits"),
    (doing(after=lambda y: y.sigmoid()), "outputs_are_raw_logits"),
    (doing(before=lambda x: x.detach()), "gradients_reach_the_features"),
    (doing(after=lambda y: y.detach()), "gradients_reach_the_features"),
    (build_with_own_generator, "build_is_a_pure_function"),
    (build_with_a_conditional_space, "search_space_is_static"),
    (build_with_a_loose_tensor, "state_dict_holds_all"),
]


@pytest.mark.parametrize(("build", "check"), HEAD_MUTANTS)
def test_a_faulty_head_fails_one_check(build, check):
    assert failing(head(build)) == [check]


def test_a_sound_head_fails_none():
    assert failing(head(build_sound_head)) == []


# --- backbones


class Do(nn.Module):
    """A linear layer with a function after it; as a layer group, one fault at a time."""

    def __init__(self, width, function=torch.tanh):
        super().__init__()
        self.layer = nn.Linear(width, 6)
        self.function = function

    def forward(self, x):
        return self.function(self.layer(x))


class TwoGroups(nn.Module):
    def __init__(self, first, second, extra=None, after=None):
        super().__init__()
        self.first, self.second, self.after = first, second, after
        if extra:
            self.extra = extra

    def forward(self, x):
        y = self.second(self.first(x))
        return self.after(y) if self.after else y


def backbone(build, **changes):
    fields = {"name": "mutant", "description": "", "input": TabularInput(), "layer_groups": ("first", "second")}
    return Backbone(**fields | changes, build=build)


def network(first=torch.tanh, second=torch.tanh, **changes):
    return lambda *, input_shape, weights: TwoGroups(Do(*input_shape, first), Do(6, second), **changes)


def build_with_shared_weights(*, input_shape, weights):
    first, second = Do(*input_shape), Do(6)
    second.layer.bias = first.layer.bias
    return TwoGroups(first, second)


def build_from_own_generator(*, input_shape, weights):
    module = network()(input_shape=input_shape, weights=None)
    generator = torch.Generator()
    generator.seed()
    nn.init.normal_(module.first.layer.weight, generator=generator)
    return module


def plus_noise(x):
    return x + torch.rand(())


def only_nan(x):
    return x * float("nan")


BACKBONE_MUTANTS = [
    (network(after=torch.relu), "groups_compose_to_the_forward_pass"),
    (network(extra=nn.Linear(2, 2)), "every_parameter_is_in_one_group"),
    (build_with_shared_weights, "every_parameter_is_in_one_group"),
    (network(second=lambda x: x[:, None, :]), "activations_are_valid"),
    (network(second=lambda x: x.double()), "activations_are_valid"),
    (network(second=only_nan), "activations_are_valid"),
    (build_from_own_generator, "same_seed_gives_same_weights"),
    (network(first=plus_noise), "forward_is_deterministic_in_eval"),
    (network(first=lambda x: x - x.mean(0)), "samples_do_not_mix"),
    (network(first=torch.detach), "gradients_reach_the_first_group"),
    (network(second=torch.detach), "gradients_reach_the_first_group"),
]


@pytest.mark.parametrize(("build", "check"), BACKBONE_MUTANTS)
def test_a_faulty_backbone_fails_one_check(build, check):
    assert failing(backbone(build)) == [check]


def build_sound_cnn(*, input_shape, weights):
    return TwoGroups(
        nn.Sequential(nn.Conv2d(input_shape[0], 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU()),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)),
    )


def test_a_sound_backbone_fails_none():
    assert failing(backbone(network())) == []
    assert failing(backbone(build_sound_cnn, input=ImageInput(size=224))) == []


def build_and_load(*, input_shape, weights, strict=True):
    module = network()(input_shape=input_shape, weights=None)
    if weights:
        module.load_state_dict(torch.load(weights), strict=strict)
    return module


def build_and_load_what_fits(*, input_shape, weights):
    return build_and_load(input_shape=input_shape, weights=weights, strict=False)


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(network()(input_shape=(7,), weights=None).state_dict(), path)
    return weights_at(path)


def weights_at(path):
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Weights(find=lambda: path, install="pip install zoo", origin="", license="", sha256=digest)


def test_sound_weights_fail_none(weights):
    checked = backbone(build_and_load, weights=weights)
    assert failing(checked) == []
    assert {check.name for check in iter_checks([checked])} >= {"weights_match_their_digest"}


def test_another_file_than_claimed_is_found(weights):
    claimed = replace(weights, sha256="0" * 64)
    assert failing(backbone(build_and_load, weights=claimed)) == ["weights_match_their_digest"]


def test_weights_that_fill_a_part_are_found(weights):
    path = weights.find()
    state = torch.load(path)
    del state["second.layer.bias"]
    torch.save(state, path)
    item = backbone(build_and_load_what_fits, weights=weights_at(path))
    assert failing(item) == ["weights_fill_every_parameter"]


def test_weights_that_are_not_finite_are_found(weights):
    path = weights.find()
    state = torch.load(path)
    state["second.layer.bias"] *= float("nan")
    torch.save(state, path)
    assert failing(backbone(build_and_load, weights=weights_at(path))) == ["weights_fill_every_parameter"]


def test_loading_unasked_is_found(weights):
    path = weights.find()

    def build(*, input_shape, weights):
        return build_and_load(input_shape=input_shape, weights=path)

    assert failing(backbone(build, weights=weights)) == ["weights_differ_from_random"]


class Words:
    """A tokenizer: one id a word, its length."""

    pad_id = 0

    def encode(self, texts):
        return [[len(word) for word in text.split()] for text in texts]


class Embed(nn.Module):
    def __init__(self, blind_to_padding=True):
        super().__init__()
        self.table = nn.Embedding(32, 6)
        self.blind_to_padding = blind_to_padding

    def forward(self, tokens):
        vectors = self.table(tokens.values)
        counted = tokens.mask if self.blind_to_padding else torch.ones_like(tokens.mask)
        mean = (vectors * counted[..., None]).sum(1, keepdim=True) / counted.sum(1)[:, None, None]
        return Tokens(vectors + mean, tokens.mask)


class Mix(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, tokens):
        return Tokens(self.layer(tokens.values), tokens.mask)


@pytest.mark.parametrize(("blind_to_padding", "failed"), [(True, []), (False, ["samples_do_not_mix"])])
def test_padding_must_not_count(blind_to_padding, failed):
    def build(*, input_shape, weights):
        assert input_shape == ()
        return TwoGroups(Embed(blind_to_padding), Mix())

    assert failing(backbone(build, input=TextInput(tokenizer=Words, identity="words"))) == failed


def test_what_is_missing_here_is_skipped_with_the_reason():
    absent = Weights(find=lambda: None, install="pip install zoo", origin="", license="", sha256="")
    needy = backbone(network(), requires=("no_such_library",), install="pip install such")
    textual = backbone(network(), input=TextInput(tokenizer=Words, identity="words"), weights=absent)
    reasons = {"needs no_such_library: pip install such": needy, "weights not installed: pip install zoo": textual}
    for reason, item in reasons.items():
        for check in iter_checks([item]):
            with pytest.raises(CheckSkipped, match=reason):
                check.run()


def test_random_weights_are_checked_without_the_transferred_ones():
    absent = Weights(find=lambda: None, install="pip install zoo", origin="", license="", sha256="")
    results = {}
    for check in iter_checks([backbone(network(), weights=absent)]):
        try:
            check.run()
        except CheckSkipped as skipped:
            results[check.name] = str(skipped)
    assert set(results) == {"weights_match_their_digest", "weights_fill_every_parameter", "weights_differ_from_random"}
    assert set(results.values()) == {"weights not installed: pip install zoo"}


# --- the kit's surface


def test_every_check_has_a_mutant(weights):
    items = [strategy(sound_plan), head(build_sound_head), backbone(build_and_load, weights=weights)]
    mutants = [*STRATEGY_MUTANTS, *HEAD_MUTANTS, *BACKBONE_MUTANTS]
    tested_alone = {"weights_match_their_digest", "weights_fill_every_parameter", "weights_differ_from_random"}
    assert {check.name for check in iter_checks(items)} == {check for _, check in mutants} | tested_alone


MUTANT = """
from automl_tl.plugin import FreezingStrategy, GroupPlan, TransferPlan, hookimpl

def plan(trial, groups, context):
    return TransferPlan(tuple(GroupPlan(group=group.name, action="tune", lr_scale=0) for group in groups))

@hookimpl
def automl_tl_freezing_strategies():
    return [FreezingStrategy(name="mutant", description="", plan=plan)]
"""
TEST = """
from automl_tl.testing import conformance_test

test_conforms = conformance_test({arguments})
"""
pytest_plugins = ["pytester"]


def outcomes_of(pytester, arguments):
    pytester.makepyfile(mutant_plugin=MUTANT, test_mutant=TEST.format(arguments=arguments))
    pytester.syspathinsert()
    return pytester.runpytest_inprocess("-p", "no:cacheprovider").parseoutcomes()


def test_a_plugin_gets_one_test_a_check(pytester):
    assert outcomes_of(pytester, "'mutant_plugin'") == {"passed": 8, "failed": 1}


def test_an_expected_failure_must_fail(pytester):
    expected = "{'learning_rate_scales_are_positive': 'frozen by other means'}"
    assert outcomes_of(pytester, f"'mutant_plugin', expected_failures={expected}") == {"passed": 8, "xfailed": 1}
    expected = "{'learning_rate_scales_are_positive': 'x', 'search_space_is_static': 'no longer so'}"
    outcomes = outcomes_of(pytester, f"'mutant_plugin.py', expected_failures={expected}")
    assert outcomes == {"passed": 7, "xfailed": 1, "failed": 1}


def test_an_expected_failure_of_no_check_is_an_error():
    with pytest.raises(ValueError, match=r"no check named 'plan_is_pure'.*Did you mean 'plan_is_a_pure_function'\?"):
        conformance_test(EXAMPLE, expected_failures={"plan_is_pure": "typing error"})


def test_an_invalid_plugin_is_an_error():
    with pytest.raises(PluginError, match="the name must be a Python identifier"):
        conformance_test(Path(__file__).parent / "broken_plugins" / "bad_name.py")


test_the_example_conforms = conformance_test(EXAMPLE)


# --- draws


def suggest_all(trial):
    return {
        "rate": trial.suggest_float("rate", 1e-5, 1e-1, log=True),
        "share": trial.suggest_float("share", 0, 1, step=0.25),
        "width": trial.suggest_int("width", 8, 64, log=True),
        "depth": trial.suggest_int("depth", 1, 9, step=4),
        "kind": trial.suggest_categorical("kind", ["a", None, 3]),
    }


def test_draws_cover_both_ends_and_are_valid_parameters():
    seen = [suggest_all(draw) for draw in draws(12)]
    assert seen[0] == {"rate": 1e-5, "share": 0, "width": 8, "depth": 1, "kind": "a"}
    assert seen[1] == {"rate": 1e-1, "share": 1, "width": 64, "depth": 9, "kind": 3}
    assert len({values["rate"] for values in seen}) == 12
    assert all(suggest_all(FixedTrial(values)) == values for values in seen)
    assert seen == [suggest_all(draw) for draw in draws(12)]


def test_one_name_means_one_thing_in_a_trial():
    draw = Draw()
    assert draw.suggest_int("k", 0, 9) == draw.suggest_int("k", 0, 9)
    with pytest.raises(ValueError, match="'k' is suggested as"):
        draw.suggest_int("k", 0, 8)


def test_search_parameters_tell_what_can_be_chosen():
    assert search_parameters(head(build_sound_head), depth=6) == {
        "width": {"low": 4, "high": 32, "log": True},
        "dropout": {"low": 0.0, "high": 0.5, "log": False},
    }
    assert search_parameters(strategy(sound_plan), depth=6)["kept"] == {"low": 1, "high": 6, "log": False}
    assert search_parameters(strategy(plan_with_a_conditional_space), depth=6) == {
        "probe": {"choices": [True, False]},
        "scale": {"low": 0.1, "high": 1.0, "log": False},
    }
