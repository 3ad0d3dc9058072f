from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from automl_tl.errors import PluginError, RunError
from automl_tl.model.assemble import Interface, assemble, assemble_head, trained_state
from automl_tl.model.checkpoint import load_tensors, save_tensors
from automl_tl.model.plan import cut
from automl_tl.model.pooling import pool
from automl_tl.model.spec import TrialSpec
from automl_tl.plugin import Backbone, GroupPlan, TabularInput, TextInput, Tokens, TransferPlan, Weights
from automl_tl_builtins.heads import mlp as mlp_head

BOTH = pytest.mark.parametrize("name", ["source_cnn", "source_mlp"])


def snapshot(group):
    return {name: tensor.clone() for name, tensor in group.state_dict().items()}


def spec_of(plan, backbone="source_cnn", **settings):
    return TrialSpec(backbone=backbone, plan=plan, max_epochs=3, **settings)


def trained_names(group, plan):
    """What the plan's part lets train; in the source networks every layer 1 of a group is its normalization."""
    names = {name for name, _ in group.named_parameters()}
    if plan.part == "norm":
        return {name for name in names if name.startswith("1.")}
    return {name for name in names if name.endswith("bias")} if plan.part == "bias" else names


@BOTH
@given(data=st.data(), norm=st.sampled_from(("eval", "train")))
@settings(deadline=None, max_examples=25)
def test_training_changes_what_the_plan_says_and_nothing_else(subjects, plans, name, data, norm):
    subject = subjects[name]
    plan = data.draw(plans(subject.backbone.layer_groups))
    model = subject.model(spec_of(plan, name, norm=norm))
    optimizer = torch.optim.SGD([parameter for _, _, parameter in model.trained_parameters()], lr=0.01)
    for epoch in range(3):
        before = {group: snapshot(module) for group, module in model.groups.items()}
        model.begin_epoch(epoch)
        for _ in range(2):
            subject.step(model, optimizer)
        for group_plan in model.plans:
            module = model.groups[group_plan.group]
            after = snapshot(module)
            trains = group_plan.action != "freeze" and epoch >= group_plan.unfreeze_epoch
            expected = trained_names(module, group_plan) if trains else set()
            assert {n for n, p in module.named_parameters() if p.requires_grad} == expected
            changed = {n for n, old in before[group_plan.group].items() if not torch.equal(old, after[n])}
            if trains and (norm == "train" or group_plan.action == "reinit"):
                expected |= {n for n, _ in module.named_buffers()}  # statistics
            assert changed == expected


@BOTH
@given(data=st.data())
@settings(deadline=None, max_examples=25)
def test_groups_are_transferred_or_drawn_anew_or_absent(subjects, plans, name, data):
    subject = subjects[name]
    plan = data.draw(plans(subject.backbone.layer_groups))
    model = subject.model(spec_of(plan, name))
    source = load_tensors(subject.source)
    present = [group.group for group in plan if group.action != "drop"]
    assert list(model.groups) == present
    assert {key.split(".")[1] for key in model.state_dict() if key.startswith("groups.")} == set(present)
    for group in model.plans:
        for key, tensor in model.groups[group.group].state_dict().items():
            same = torch.equal(tensor, source[f"groups.{group.group}.{key}"])
            assert same == (group.action != "reinit" or key.endswith("num_batches_tracked"))


@BOTH
@given(data=st.data())
@settings(deadline=None, max_examples=25)
def test_the_prefix_and_the_rest_make_the_whole(subjects, plans, name, data):
    subject = subjects[name]
    model = subject.model(spec_of(data.draw(plans(subject.backbone.layer_groups)), name)).eval()
    prefix = model.prefix(subject.batch)
    assert not prefix.requires_grad
    assert torch.equal(model(prefix, model.cut), model(subject.batch))
    assert model(subject.batch).shape == (len(subject.labels), subject.interface.n_outputs)
    assert model.head.in_features == model.features(prefix, model.cut).shape[1] == len(model.feature_shift)


@given(data=st.data(), pooling=st.sampled_from(("mean", "mean_std")))
@settings(deadline=None, max_examples=25)
def test_the_head_reads_joined_groups_and_the_tap_in_order(cnn, data, pooling):
    names = cnn.backbone.layer_groups
    tap = data.draw(st.integers(1, len(names) - 1))
    joined = tuple(data.draw(st.lists(st.sampled_from(names[:tap]), unique=True)))
    actions = ["freeze" if number <= tap else "drop" for number in range(len(names))]
    plan = TransferPlan(tuple(GroupPlan(group=g, action=a) for g, a in zip(names, actions, strict=True)))
    model = cnn.model(spec_of(plan, joined=joined, pooling=pooling)).eval()
    activation, expected = cnn.batch, []
    with torch.no_grad():
        for name in names[: tap + 1]:
            activation = model.groups[name](activation)
            if name in (*joined, names[tap]):
                expected.append(pool(activation, pooling))
    features = model.features(cnn.batch)
    assert torch.equal(features, torch.cat(expected, 1))
    assert not features.requires_grad
    assert len(model.feature_shift) == model.head.in_features == features.shape[1]
    assert torch.equal(model(features, tap + 1), model(cnn.batch))


@pytest.mark.parametrize("name", ["linear", "mlp"])
@pytest.mark.parametrize("fit", ["descent", "ridge"])
def test_a_head_alone_is_the_whole_models_head(cnn, name, fit):
    (mlp,) = mlp_head.automl_tl_heads()
    head = mlp if name == "mlp" else cnn.head
    spec = spec_of(cnn.plan("freeze"), head=name, head_parameters={"hidden": 128} if name == "mlp" else {}, fit=fit)
    for seed in (0, 1):
        whole = assemble(spec, cnn.backbone, head, cnn.interface, source_weights=cnn.source, seed=seed)
        width = len(whole.feature_shift)
        alone = assemble_head(spec, head, in_features=width, n_outputs=cnn.interface.n_outputs, seed=seed)
        assert alone.state_dict().keys() == trained_state(alone).keys() == trained_state(whole).keys()
        for key, tensor in alone.state_dict().items():
            assert torch.equal(tensor, whole.state_dict()[key])
        features = whole.features(cnn.batch)
        whole.eval(), alone.eval()
        assert torch.equal(alone(features, len(cnn.backbone.layer_groups)), whole(cnn.batch))


@BOTH
@given(data=st.data())
@settings(deadline=None, max_examples=25)
def test_the_trained_state_is_all_that_another_model_of_the_spec_lacks(subjects, plans, name, data):
    subject = subjects[name]
    spec = spec_of(data.draw(plans(subject.backbone.layer_groups)), name, norm="train")
    model, other = subject.model(spec, seed=1), subject.model(spec, seed=2)
    optimizer = torch.optim.SGD([parameter for _, _, parameter in model.trained_parameters()], lr=0.01)
    for epoch in range(3):
        model.begin_epoch(epoch)
        subject.step(model, optimizer)
    state = trained_state(model)
    assert not any(key.startswith(f"groups.{group.group}.") for key in state for group in model.plans[: model.cut])
    other.load_state_dict(state, strict=False)
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in other.state_dict().items())


def test_dropping_nothing_gives_the_backbone_itself(cnn):
    model = cnn.model(spec_of(cnn.plan("freeze"))).eval()
    whole = cnn.backbone.build(input_shape=cnn.interface.input_shape, weights=None).eval()
    whole.load_state_dict({key.removeprefix("groups."): value for key, value in load_tensors(cnn.source).items()})
    with torch.no_grad():
        torch.testing.assert_close(model.prefix(cnn.batch), whole(cnn.batch))


@pytest.mark.parametrize(("weights", "norm", "learns"), [
    ("transferred", "eval", False),
    ("transferred", "train", True),
    ("random", "eval", True),
])  # fmt: skip
def test_statistics_of_tuned_groups_are_learned_when_wanted_or_when_weights_are_random(cnn, weights, norm, learns):
    model = cnn.model(spec_of(cnn.plan("tune"), weights=weights, norm=norm))
    assert all(group.training for group in model.groups.values())
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert {layer.training for layer in norms} == {learns}


def test_frozen_groups_stay_in_evaluation_mode_when_the_model_trains(cnn):
    model = cnn.model(spec_of(cnn.plan("freeze"), weights="random", norm="train"))
    model.eval()
    model.begin_epoch(0)
    assert model.training
    assert model.head.training
    assert not any(module.training for module in model.groups.modules() if module is not model.groups)


class Shaking(nn.Module):
    """Two groups that drop out half of what they see."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5))
        self.second = nn.Sequential(nn.Linear(64, 64), nn.Dropout(0.5))


@pytest.fixture
def shaking():
    return Backbone(
        name="shaking",
        description="dropout in every group",
        input=TabularInput(),
        layer_groups=("first", "second"),
        build=lambda *, input_shape, weights: Shaking(),
    )


def test_dropout_is_off_in_frozen_groups_and_on_in_tuned_ones(shaking, mlp):
    plan = TransferPlan((GroupPlan(group="first", action="freeze"), GroupPlan(group="second", action="tune")))
    model = assemble(spec_of(plan, "shaking"), shaking, mlp.head, Interface(input_shape=(4,), n_outputs=2), seed=0)
    rows = torch.randn(5, 4)
    assert torch.equal(model.prefix(rows), model.prefix(rows))
    assert not torch.equal(model.features(rows), model.features(rows))
    model.eval()
    assert torch.equal(model(rows), model(rows))


def doubled(seen):
    """Return a change that doubles what it is given and writes down what that was."""

    def change(activation):
        seen.append(activation)
        if isinstance(activation, Tokens):
            return Tokens(2 * activation.values, activation.mask)
        return 2 * activation

    return change


@BOTH
@given(data=st.data())
@settings(deadline=None, max_examples=25)
def test_a_change_acts_where_training_begins(subjects, plans, name, data):
    subject = subjects[name]
    model = subject.model(spec_of(data.draw(plans(subject.backbone.layer_groups)), name)).eval()
    passed, seen = model.prefix(subject.batch), []
    changed = model.features(subject.batch, 0, doubled(seen))
    if model.cut == len(model.plans):  # only the head trains: its features are changed
        assert torch.equal(seen[0], model.features(subject.batch))
        assert torch.equal(changed, 2 * seen[0])
        passed = seen[0]
    else:
        assert torch.equal(seen[0], passed)
        assert torch.equal(changed, model.features(2 * passed, model.cut))
    assert torch.equal(model.features(passed, model.cut, doubled(seen)), changed)  # from stored activations too
    assert len(seen) == 2


class OnTokens(nn.Module):
    """A layer for the values of tokens."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, tokens):
        return Tokens(self.layer(tokens.values), tokens.mask)


@pytest.mark.parametrize("trained", ["words", "widen"])
def test_token_ids_are_not_changed_but_the_features_are(mlp, trained):
    def build(*, input_shape, weights):
        return nn.Sequential(OrderedDict(words=OnTokens(nn.Embedding(4, 6)), widen=OnTokens(nn.Linear(6, 8))))

    backbone = Backbone(
        name="reader",
        description="reads four words",
        input=TextInput(tokenizer=lambda: None, identity="four"),
        layer_groups=("words", "widen"),
        build=build,
    )
    actions = {"words": ("tune", "tune"), "widen": ("freeze", "tune")}[trained]
    plan = TransferPlan(tuple(GroupPlan(group=g, action=a) for g, a in zip(("words", "widen"), actions, strict=True)))
    model = assemble(spec_of(plan, "reader"), backbone, mlp.head, Interface(input_shape=(), n_outputs=2), seed=0)
    batch, seen = Tokens(torch.tensor([[0, 1], [2, 3]]), torch.tensor([[True, True], [True, False]])), []
    changed = model.features(batch, 0, doubled(seen))
    assert cut(plan) == {"words": 0, "widen": 1}[trained]
    assert isinstance(seen[0], Tokens) == (trained == "widen")
    if trained == "words":
        assert torch.equal(changed, 2 * model.features(batch))


@BOTH
def test_a_seed_fixes_all_that_is_drawn(subjects, name):
    subject = subjects[name]
    spec = spec_of(subject.plan("reinit"), name)
    torch.manual_seed(5)
    expected_next = torch.rand(3)
    torch.manual_seed(5)
    first, same, other = (subject.model(spec, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected_next)  # the caller's stream is untouched
    assert all(torch.equal(first[key], same[key]) for key in first)
    drawn = [key for key in first if key.endswith("0.weight") or key == "head.weight"]
    assert drawn
    assert not any(torch.equal(first[key], other[key]) for key in drawn)


def test_the_head_is_the_same_whatever_is_transferred(cnn):
    heads = [cnn.model(spec_of(cnn.plan(action))).head.weight for action in ("freeze", "tune")]
    assert torch.equal(*heads)


def test_random_weights_ignore_the_source(cnn):
    spec = spec_of(cnn.plan("tune"), weights="random")
    with_source = assemble(spec, cnn.backbone, cnn.head, cnn.interface, source_weights=cnn.source, seed=0)
    assert torch.equal(with_source.groups.conv1[0].weight, cnn.model(spec, source=False).groups.conv1[0].weight)


def test_slow_statistics_are_sped_up_and_fast_ones_kept(mlp):
    def build(*, input_shape, weights):
        slow, fast = nn.BatchNorm1d(4, momentum=0.01), nn.BatchNorm1d(4, momentum=0.3)
        return nn.Sequential(OrderedDict(slow=slow, fast=fast))

    groups = ("slow", "fast")
    backbone = Backbone(name="b", description="b", input=TabularInput(), layer_groups=groups, build=build)
    plan = TransferPlan(tuple(GroupPlan(group=group, action="tune") for group in groups))
    model = assemble(spec_of(plan, "b"), backbone, mlp.head, Interface(input_shape=(4,), n_outputs=2), seed=0)
    assert [group.momentum for group in model.groups.values()] == [0.1, 0.3]


@BOTH
def test_scaled_features_are_centered_and_of_unit_spread(subjects, name):
    subject = subjects[name]
    model = subject.model(spec_of(subject.plan("freeze"), name)).eval()
    features = model.features(subject.batch)
    model.set_feature_scale(features)
    scaled = (features - model.feature_shift) / model.feature_scale
    torch.testing.assert_close(scaled.mean(0), torch.zeros(features.shape[1]), atol=1e-5, rtol=0)
    torch.testing.assert_close(scaled.square().mean(), torch.ones(()))


def test_constant_features_are_not_divided_by_zero(mlp):
    model = mlp.model(spec_of(mlp.plan("freeze"), "source_mlp")).eval()
    model.set_feature_scale(torch.ones(4, 256))
    assert torch.isfinite(model.classify(torch.ones(4, 256))).all()


def test_a_plan_for_other_groups_is_refused(cnn, mlp):
    with pytest.raises(PluginError, match="strategy None: expected one entry per layer group in order"):
        cnn.model(spec_of(mlp.plan("freeze")))


def test_weights_that_are_not_installed_are_named_with_their_command(mlp):
    weights = Weights(find=lambda: None, install="pip install x", origin="here", license="MIT", sha256="0")
    backbone = replace(mlp.backbone, weights=weights)
    spec = spec_of(mlp.plan("freeze"), "source_mlp")
    with pytest.raises(PluginError, match="'source_mlp': its weights are not installed; run: pip install x"):
        assemble(spec, backbone, mlp.head, mlp.interface, seed=0)
    for given_otherwise in (replace(spec, weights="random"), spec):
        source = mlp.source if given_otherwise.weights == "transferred" else None
        assemble(given_otherwise, backbone, mlp.head, mlp.interface, source_weights=source, seed=0)


def test_a_missing_source_checkpoint_is_named(mlp, tmp_path):
    spec = spec_of(mlp.plan("freeze"), "source_mlp")
    with pytest.raises(RunError, match=r"the checkpoint .*gone\.safetensors is missing"):
        assemble(spec, mlp.backbone, mlp.head, mlp.interface, source_weights=tmp_path / "gone.safetensors", seed=0)


def test_a_model_can_be_the_source_of_the_next(mlp, tmp_path):
    first = mlp.model(spec_of(mlp.plan("tune"), "source_mlp", weights="random"), seed=3)
    save_tensors(first.state_dict(), tmp_path / "first.safetensors")
    spec = spec_of(mlp.plan("freeze"), "source_mlp")
    second = assemble(
        spec, mlp.backbone, mlp.head, mlp.interface, source_weights=tmp_path / "first.safetensors", seed=4
    )
    assert torch.equal(first.groups.layer2[0].weight, second.groups.layer2[0].weight)
    assert not torch.equal(first.head.weight, second.head.weight)


def test_outputs_of_a_shape_that_cannot_be_pooled_are_refused(mlp):
    unpooled = Backbone(
        name="odd",
        description="puts out (N, 2, 2)",
        input=TabularInput(),
        layer_groups=("only",),
        build=lambda *, input_shape, weights: nn.Sequential(OrderedDict(only=nn.Unflatten(1, (2, 2)))),
    )
    plan = TransferPlan((GroupPlan(group="only", action="freeze"),))
    with pytest.raises(
        PluginError, match=r"'odd': expected layer group outputs .* got pooled features of shape \(1, 2, 2\)"
    ):
        assemble(spec_of(plan, "odd"), unpooled, mlp.head, Interface(input_shape=(4,), n_outputs=2), seed=0)
