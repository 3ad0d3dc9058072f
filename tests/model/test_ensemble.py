"""Members of one backbone pass what is frozen in them once, and say what each would have said alone."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from automl_tl.errors import RunError
from automl_tl.model.assemble import Interface, assemble
from automl_tl.model.ensemble import UNADJUSTED, Adjustment, Member, cost_per_sample, share_frozen
from automl_tl.model.flops import FlopCounter
from automl_tl.model.groups import describe_groups
from automl_tl.model.spec import Regularization, TrialSpec
from automl_tl.plugin import GroupPlan, Tokens, TransferPlan
from automl_tl_builtins.heads import linear

BOTH = pytest.mark.parametrize("name", ["source_cnn", "source_mlp"])
(HEAD,) = linear.automl_tl_heads()
SHAKEN = Regularization(dropout=0.5)


def published(name):
    """Return a built-in backbone, or skip when its weights are not installed."""
    (backbone,) = import_module(f"automl_tl_builtins.backbones.{name}").automl_tl_backbones()
    for library in backbone.requires:
        pytest.importorskip(library)
    if backbone.weights.find() is None:
        pytest.skip(f"the weights of {name} are not installed")
    return backbone


def plan_of(backbone, last, *, tuned=None):
    """Freeze, fine-tune from group `tuned` on, and drop all after `last`."""
    names = backbone.layer_groups
    first = names.index(tuned) if tuned else len(names)
    last = names.index(last)
    actions = ["drop" if k > last else "tune" if k >= first else "freeze" for k in range(len(names))]
    return TransferPlan(tuple(GroupPlan(group=g, action=a) for g, a in zip(names, actions, strict=True)))


def trained(backbone, spec, interface, batch, seed):
    """A model as training would leave it: scaled, and all that trains moved."""
    model = assemble(spec, backbone, HEAD, interface, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for plan, _, parameter in model.trained_parameters():
            spread = 1.0 if plan is None else 0.1 * float(parameter.std(correction=0))
            parameter.add_(spread * torch.randn(parameter.shape, generator=generator))
        model.set_feature_scale(model.eval().features(batch))
    model.begin_epoch(0)  # as it is handed over: dropout on
    return model


def ensemble_of(backbone, specs, interface, batch):
    models = [trained(backbone, spec, interface, batch, seed) for seed, spec in enumerate(specs)]
    return [Member(model=model, weight=weight) for weight, model in enumerate(models, 1)]


def alone(members, batch):
    """The weighted mean of the members' own passes."""
    with torch.no_grad():
        said = [member.weight * member.model.eval()(batch).softmax(1) for member in members]
    return sum(said) / sum(member.weight for member in members)


def count_passes(members):
    """Count how often each frozen group is called, whichever copy of it."""
    passes = Counter()
    seen = set()
    for member in members:
        for name, group in list(member.model.groups.items())[: member.model.cut]:
            if id(group) not in seen:
                seen.add(id(group))
                group.register_forward_hook(lambda module, args, out, name=name: passes.update([name]))
    return passes


@pytest.fixture(scope="module")
def lite():
    """EfficientNet-Lite0 on digits: probes at two taps, one that joins three, two suffixes and a whole network."""
    backbone = published("efficientnet_lite0")
    pixels = torch.from_numpy(load_digits().images[:6]).float().unsqueeze(1) / 8 - 1
    batch = torch.nn.functional.interpolate(pixels, size=(64, 64), mode="bilinear").repeat(1, 3, 1, 1)
    plans = {
        "shallow": (plan_of(backbone, "stage3"), {}),
        "deep": (plan_of(backbone, "stage6"), {"pooling": "mean_std"}),
        "joined": (plan_of(backbone, "top"), {"joined": ("stage2", "stage6"), "pooling": "mean_std"}),
        "suffix": (plan_of(backbone, "stage6", tuned="stage6"), {}),
        "last": (plan_of(backbone, "top", tuned="stage7"), {"norm": "train"}),
        "whole": (plan_of(backbone, "top", tuned="stem"), {}),
    }
    specs = [
        TrialSpec(backbone=backbone.name, plan=plan, regularization=SHAKEN, **more) for plan, more in plans.values()
    ]
    return backbone, specs, Interface(input_shape=(3, 64, 64), n_outputs=4), batch


def test_probes_and_suffixes_of_one_network_say_what_they_say_alone(lite):
    members = ensemble_of(*lite)
    batch = lite[-1]
    expected = alone(members, batch)
    said = [member.model.eval()(batch).detach() for member in members]
    (family,) = share_frozen(members)
    got = family.probabilities(batch, "multiclass")
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    assert not got.requires_grad
    by_model = {id(member.model): logits for member, logits in zip(members, said, strict=True)}
    for member, logits in zip(family.members, family.logits(batch), strict=True):
        torch.testing.assert_close(logits, by_model[id(member.model)], atol=1e-4, rtol=1e-4)
    assert expected.std(0).max() > 0.01  # they have something to say


def test_a_frozen_group_is_passed_once_a_batch(lite):
    members = ensemble_of(*lite)
    (family,) = share_frozen(members)
    passes = count_passes(members)
    family.probabilities(lite[-1], "multiclass")
    assert passes == dict.fromkeys(lite[0].layer_groups, 1)
    family.probabilities(lite[-1], "multiclass")
    assert set(passes.values()) == {2}


def test_the_trunk_ends_at_the_deepest_cut(lite):
    backbone, specs, interface, batch = lite
    members = ensemble_of(backbone, [specs[0], specs[3]], interface, batch)  # stage3's probe, the suffix from stage6
    (family,) = share_frozen(members)
    passes = count_passes(members)
    family.probabilities(batch, "multiclass")
    assert passes == dict.fromkeys(backbone.layer_groups[:6], 1)
    assert len(family.trunk) == 6


def test_frozen_groups_are_held_once(lite):
    members = ensemble_of(*lite)
    deepest = max((member.model for member in members), key=lambda model: model.cut)
    before = sum(p.numel() for member in members for p in member.model.parameters())
    own = sum(p.numel() for member in members for p in tensors_that_train(member.model))
    frozen = sum(p.numel() for group in deepest.groups.values() for p in group.parameters())
    share_frozen(members)
    held = {id(p): p.numel() for member in members for p in member.model.parameters()}
    assert sum(held.values()) == own + frozen < before
    for member in members:
        assert list(member.model.groups) == [plan.group for plan in member.model.plans]
        for name in list(member.model.groups)[: member.model.cut]:
            assert member.model.groups[name] is deepest.groups[name]


def tensors_that_train(model):
    trained = {id(p) for _, _, p in model.trained_parameters()}
    return [p for p in model.parameters() if id(p) in trained]


def test_members_of_a_text_encoder_share_it_too():
    backbone = published("minilm_l6")
    pytest.importorskip("tokenizers")
    texts = ("a kitten sleeps", "the committee will meet again next Thursday to discuss the budget", "tax law!")
    ids = backbone.input.tokenizer().encode(texts)
    longest = max(map(len, ids))
    batch = Tokens(
        torch.tensor([row + [0] * (longest - len(row)) for row in ids]),
        torch.tensor([[True] * len(row) + [False] * (longest - len(row)) for row in ids]),
    )
    specs = [
        TrialSpec(backbone=backbone.name, plan=plan_of(backbone, "layer3")),
        TrialSpec(backbone=backbone.name, plan=plan_of(backbone, "layer6"), joined=("layer1", "layer4")),
        TrialSpec(backbone=backbone.name, plan=plan_of(backbone, "layer6", tuned="layer6"), regularization=SHAKEN),
    ]
    members = ensemble_of(backbone, specs, Interface(input_shape=(), n_outputs=3), batch)
    expected = alone(members, batch)
    (family,) = share_frozen(members)
    passes = count_passes(members)
    torch.testing.assert_close(family.probabilities(batch, "multiclass"), expected, atol=1e-5, rtol=1e-4)
    assert passes == dict.fromkeys(backbone.layer_groups, 1)


def drawn_members(subject, plans, data, name):
    """Any few plans of a backbone, one of them perhaps as a probe that joins what lies before its tap."""
    groups = subject.backbone.layer_groups
    chosen = data.draw(st.lists(plans(groups), min_size=1, max_size=4))
    specs = [TrialSpec(backbone=name, plan=plan, max_epochs=3) for plan in chosen]
    if data.draw(st.booleans()):
        joined = TrialSpec(backbone=name, plan=subject.plan("freeze"), joined=groups[:-1], max_epochs=3)
        specs.append(joined)
    weights = data.draw(st.lists(st.floats(0.1, 9), min_size=len(specs), max_size=len(specs)))
    return [
        Member(model=subject.model(spec, seed=seed), weight=weight)
        for seed, (spec, weight) in enumerate(zip(specs, weights, strict=True))
    ]


@BOTH
@given(data=st.data())
@settings(deadline=None, max_examples=25)
def test_any_plans_together_say_what_they_say_alone(subjects, plans, name, data):
    subject = subjects[name]
    members = drawn_members(subject, plans, data, name)
    expected = alone(members, subject.batch)
    (family,) = share_frozen(members)
    passes = count_passes(members)
    torch.testing.assert_close(family.probabilities(subject.batch, "multiclass"), expected, atol=1e-5, rtol=1e-4)
    deepest = max(member.model.cut for member in members)
    assert passes == dict.fromkeys(subject.backbone.layer_groups[:deepest], 1)


@BOTH
@given(data=st.data())
@settings(deadline=None, max_examples=25)
def test_the_cost_is_what_a_pass_takes(subjects, plans, name, data):
    subject = subjects[name]
    members = drawn_members(subject, plans, data, name)
    described = describe_groups(subject.backbone, subject.interface.input_shape)
    backbone = subject.model(TrialSpec(backbone=name, plan=subject.plan("freeze")))
    whole = flops_of(lambda: backbone.prefix(subject.batch))
    heads = sum(2 * member.model.head.weight.numel() for member in members) * len(subject.batch)
    (family,) = share_frozen(members)
    cost = cost_per_sample([member.model.spec for member in members], {name: described}, {name: whole})
    assert cost == pytest.approx(flops_of(lambda: family.logits(subject.batch)) - heads, rel=1e-6)


def flops_of(call):
    with FlopCounter() as counter:
        call()
    return counter.total


def test_random_weights_and_other_sources_are_passed_alone(cnn):
    spec = TrialSpec(backbone="source_cnn", plan=cnn.plan("freeze"))
    drawn = replace(spec, weights="random")
    models = [cnn.model(spec), cnn.model(spec, seed=1), cnn.model(drawn, seed=1), cnn.model(drawn, seed=2)]
    families = share_frozen([Member(model=model) for model in models])
    assert [len(family.members) for family in families] == [2, 1, 1]
    described = {"source_cnn": describe_groups(cnn.backbone, cnn.interface.input_shape)}
    specs = [model.spec for model in models]
    assert cost_per_sample(specs, described, {"source_cnn": 10.0}) == pytest.approx(30)


def test_backbones_are_kept_apart(cnn, mlp):
    models = [s.model(TrialSpec(backbone=s.backbone.name, plan=s.plan("freeze"))) for s in (cnn, mlp, cnn)]
    families = share_frozen([Member(model=model, weight=weight) for weight, model in enumerate(models, 1)])
    assert sorted((family.members[0].model.spec.backbone, family.weight) for family in families) == [
        ("source_cnn", 4),
        ("source_mlp", 2),
    ]


def test_several_labels_a_sample_are_averaged_each_on_its_own(cnn):
    models = [cnn.model(TrialSpec(backbone="source_cnn", plan=cnn.plan("freeze")), seed=seed) for seed in (0, 1)]
    (family,) = share_frozen([Member(model=model) for model in models])
    expected = torch.stack([model.eval()(cnn.batch).sigmoid() for model in models]).mean(0)
    torch.testing.assert_close(family.probabilities(cnn.batch, "multilabel"), expected.detach())


@pytest.mark.parametrize("weight", [0, -1, float("nan")])
def test_a_member_weighs_something(cnn, weight):
    model = cnn.model(TrialSpec(backbone="source_cnn", plan=cnn.plan("freeze")))
    with pytest.raises(ValueError, match="must be > 0"):
        Member(model=model, weight=weight)


@st.composite
def probabilities(draw, kind):
    n_rows, n_classes = draw(st.integers(1, 6)), draw(st.integers(2, 5))
    logits = np.random.default_rng(draw(st.integers(0, 999))).normal(0, draw(st.floats(0.1, 20)), (n_rows, n_classes))
    if kind == "multilabel":
        return (1 / (1 + np.exp(-logits))).astype(np.float32)
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return (powers / powers.sum(1, keepdims=True)).astype(np.float32)


@st.composite
def adjustments(draw, n_classes):
    bias = draw(st.lists(st.floats(-5, 5), min_size=n_classes, max_size=n_classes)) if draw(st.booleans()) else ()
    return Adjustment(temperature=draw(st.floats(0.1, 10)), bias=tuple(bias))


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
@given(data=st.data())
@settings(deadline=None, max_examples=50)
def test_adjusted_probabilities_are_probabilities(kind, data):
    said = data.draw(probabilities(kind))
    adjustment = data.draw(adjustments(said.shape[1]))
    adjusted = adjustment.apply(said, kind)
    assert adjusted.dtype == np.float32
    assert adjusted.shape == said.shape
    assert ((adjusted >= 0) & (adjusted <= 1)).all()
    if kind == "multiclass":
        assert adjusted.sum(1) == pytest.approx(1, abs=1e-5)
    assert Adjustment.from_json(json.loads(json.dumps(adjustment.to_json()))) == adjustment


@given(data=st.data(), temperature=st.floats(0.2, 5))
@settings(deadline=None, max_examples=25)
def test_a_temperature_alone_decides_nothing(data, temperature):
    said = data.draw(probabilities("multiclass"))
    adjusted = Adjustment(temperature=temperature).apply(said, "multiclass")
    chosen = said.argmax(1)
    assert (adjusted[np.arange(len(said)), chosen] >= adjusted.max(1) - 1e-6).all()


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_what_an_adjustment_does_to_logits(kind):
    logits = torch.randn(7, 3, generator=torch.Generator().manual_seed(0)).double()
    bias = torch.tensor([0.5, -1.0, 2.0])
    squash = torch.sigmoid if kind == "multilabel" else torch.nn.Softmax(1)
    got = Adjustment(temperature=2.5, bias=tuple(bias.tolist())).apply(squash(logits).numpy(), kind)
    np.testing.assert_allclose(got, squash(logits / 2.5 + bias).numpy(), atol=1e-6)


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_certainty_stays_finite(kind):
    said = np.array([[1.0, 0.0], [0.0, 1.0]], dtype=np.float32)
    adjusted = Adjustment(temperature=3.0, bias=(1.0, -1.0)).apply(said, kind)
    assert np.isfinite(adjusted).all()
    assert (adjusted[0, 0] > 0.99) & (adjusted[0, 1] < 0.01)


def test_no_adjustment_changes_nothing():
    said = np.array([[1.0, 0.0], [0.3, 0.7]], dtype=np.float32)
    assert UNADJUSTED.apply(said, "multiclass") is said


def test_an_adjustment_fits_its_classes():
    with pytest.raises(ValueError, match="3 classes needs as many biases, got 2"):
        Adjustment(bias=(1.0, 2.0)).apply(np.full((2, 3), 1 / 3), "multiclass")
    with pytest.raises(ValueError, match="temperature of an adjustment must be > 0"):
        Adjustment(temperature=0.0)


@pytest.mark.parametrize("values", [{"temperature": "hot"}, {"temperature": 0}, {"bias": 3}, []])
def test_a_damaged_adjustment_is_named(values):
    with pytest.raises(RunError, match="a stored adjustment of probabilities is damaged"):
        Adjustment.from_json(values)
