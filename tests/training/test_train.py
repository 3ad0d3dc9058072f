from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import get_args

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from automl_tl.features.rows import ArrayValues, Rows, TokenRows
from automl_tl.metrics.scores import log_loss, validation_score
from automl_tl.model.assemble import Interface, assemble
from automl_tl.model.spec import ClassWeight, TrialSpec
from automl_tl.plugin import Backbone, GroupPlan, TextInput, Tokens, TransferPlan
from automl_tl.training import train as module
from automl_tl.training.train import Labelled, SourceTask, Stage, TrainingData, predict_probabilities, train


def tuned(*groups, **settings):
    return tuple(GroupPlan(group=group, action="tune", **settings) for group in groups)


def same_states(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture
def scripted(monkeypatch, few_steps):
    """Return a function that lets the epochs have these scores, validation losses and losses of the stopping rows."""
    plain = module.judge

    def write(scores, losses, stopping=()):
        scores, losses, stopping = iter(scores), iter(losses), iter(stopping)

        def judge(logits, labels, kind):
            return plain(logits, labels, kind)[0], next(losses if len(labels) == 32 else stopping)

        monkeypatch.setattr(module, "judge", judge)
        monkeypatch.setattr(module, "validation_score", lambda *everything: next(scores))

    return write


def states_of(model, into):
    """A rung that prunes nothing and copies the weights after each epoch."""

    def look(epoch, score):
        into.append({key: value.clone() for key, value in model.state_dict().items()})
        return False

    return look


@dataclass(frozen=True)
class CountedRows:
    """Rows that write down how many of them go through the model at once where gradients are needed."""

    rows: Rows
    sizes: list[int] = field(default_factory=list)
    lengths = None

    def __len__(self):
        return len(self.rows)

    def batch(self, indices, device):
        if torch.is_grad_enabled():
            self.sizes.append(len(indices))
        return self.rows.batch(indices, device)


# What is learned


def test_a_network_learns_the_wines_as_well_as_a_linear_model(wine):
    model, outcome = wine.train(wine.spec(weights="random", max_epochs=7, learning_rate=3e-3))
    data = wine.data()
    linear = LogisticRegression().fit(data.train.rows.values.values, data.train.labels)
    rival = validation_score(
        data.validation.labels, linear.predict_proba(data.validation.rows.values.values), "multiclass", "f1_macro"
    )
    assert outcome.score >= rival - 0.03
    assert outcome.ending == "stage"
    assert len(outcome.curve) == outcome.epochs == 7
    said = predict_probabilities(model, data.validation, "multiclass", "cpu")
    assert validation_score(data.validation.labels, said, "multiclass", "f1_macro") == outcome.score
    assert np.array_equal(outcome.validation, said)


def test_several_labels_a_sample_are_learned(wine):
    labels = np.stack([wine.labels != 0, wine.labels == 1, wine.labels == 2], 1).astype(np.float32)
    subject = replace(wine, labels=labels, kind="multilabel")
    for class_weight in get_args(ClassWeight):
        spec = subject.spec(weights="random", max_epochs=4, learning_rate=3e-3, class_weight=class_weight)
        _, outcome = subject.train(spec)
        assert outcome.score > 0.9


def test_training_with_everything_that_regularizes(digits):
    spec = digits.spec(
        *tuned("conv3", "conv4"),
        weights="transferred",
        norm="train",
        max_epochs=3,
        learning_rate=3e-3,
        dropout=0.1,
        weight_decay=0.01,
        label_smoothing=0.1,
        l2_sp=1e-3,
        class_weight="balanced",
        augmentation="light",
    )
    _, outcome = digits.train(spec)
    assert outcome.score > 0.4  # a tenth would be chance


# What stays


@pytest.mark.parametrize("name", ["digits", "wine"])
@pytest.mark.parametrize("norm", ["eval", "train"])
@pytest.mark.parametrize("optimizer", ["sgd", "sgd_momentum", "adam", "adamw"])
def test_frozen_groups_stay_bit_for_bit_and_tuned_ones_move(request, few_steps, name, norm, optimizer):
    subject = request.getfixturevalue(name)
    first, second, third = subject.backbone.layer_groups[-3:]
    plans = (
        GroupPlan(group=first, action="tune"),
        GroupPlan(group=second, action="freeze"),
        GroupPlan(group=third, action="tune", unfreeze_epoch=1),
    )
    spec = subject.spec(*plans, norm=norm, optimizer=optimizer, weight_decay=0.1, l2_sp=0.01)
    model = subject.model(spec)
    start = {key: value.clone() for key, value in model.groups.state_dict().items()}
    moved = []

    def look(epoch, score):
        groups = model.groups.state_dict()
        moved.append({key.split(".")[0] for key in groups if not torch.equal(groups[key], start[key])})
        return False

    train(model, subject.data(), spec, device="cpu", seed=0, rung=look)
    assert moved == [{first}, {first, third}]


def test_l2_sp_before_anything_is_unfrozen(digits, few_steps):
    _, outcome = digits.train(digits.spec(*tuned("conv4", unfreeze_epoch=1), l2_sp=0.01))
    assert outcome.ending == "stage"


def test_l2_sp_holds_tuned_groups_back(digits):
    def distance(strength):
        spec = digits.spec(*tuned("conv4"), l2_sp=strength, max_epochs=2, optimizer="sgd", learning_rate=0.05)
        model = digits.model(spec)
        start = model.groups.conv4[0].weight.detach().clone()
        train(model, digits.data(), spec, device="cpu", seed=0)
        return float((model.groups.conv4[0].weight.detach() - start).norm())

    assert distance(10.0) < 0.5 * distance(0.0)


def test_random_weights_are_not_pulled_to_where_they_started(digits, few_steps):
    states = [digits.train(digits.spec(weights="random", l2_sp=strength))[0].state_dict() for strength in (0.0, 1.0)]
    assert same_states(*states)


# Batches


def test_micro_batches_give_the_gradients_of_the_whole_batch(digits, few_steps):
    plans = tuned("conv2", "conv3", "conv4")
    settings = {"clip_norm": 0.0, "warm_up": 0, "averaging": 0.0}  # what would hide a wrong scale
    spec = digits.spec(*plans, max_epochs=1, optimizer="sgd", class_weight="balanced", label_smoothing=0.1, **settings)
    whole = digits.train(spec)[0].state_dict()
    for micro_batch in (16, 5, 1):
        parts = digits.train(spec, micro_batch=micro_batch)[0].state_dict()
        torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-4)


def test_no_more_rows_than_a_micro_batch_go_through_at_once(digits, few_steps):
    spec = digits.spec(max_epochs=1, joint_source_weight=0.5)
    data, source = digits.data(), source_of(digits)
    counted, counted_source = CountedRows(data.train.rows), CountedRows(source.data.rows)
    data = replace(
        data,
        train=replace(data.train, rows=counted),
        source=replace(source, data=replace(source.data, rows=counted_source)),
    )
    train(digits.model(spec), data, spec, device="cpu", seed=0, micro_batch=6)
    assert max(counted.sizes) <= 6
    assert sum(counted.sizes) == 48
    assert counted_source.sizes == counted.sizes  # as many source rows as rows


# Mixing and noise


@pytest.mark.parametrize("norm", ["eval", "train"])
@pytest.mark.parametrize("plans", [tuned("conv3", "conv4"), (GroupPlan(group="conv4", action="freeze"),)])
@pytest.mark.parametrize("pooling", ["mean", "mean_std"])
def test_mixing_is_the_same_from_stored_activations(digits, few_steps, plans, norm, pooling):
    spec = digits.spec(
        *plans,
        norm=norm,
        pooling=pooling,
        mixup=0.5,
        activation_noise=0.2,
        dropout=0.2,
        max_epochs=3,
        learning_rate=0.01,
    )
    model, outcome = digits.train(spec)
    stored_model = digits.model(spec)
    stored = train(stored_model, digits.stored(digits.model(spec)), spec, device="cpu", seed=0)
    assert outcome.curve == pytest.approx(stored.curve, abs=1e-6)
    torch.testing.assert_close(stored_model.state_dict(), model.state_dict(), atol=1e-4, rtol=1e-4)
    plain = digits.train(replace(spec, regularization=replace(spec.regularization, mixup=0.0)))[0]
    silent = digits.train(replace(spec, regularization=replace(spec.regularization, activation_noise=0.0)))[0]
    for other in (plain, silent):
        assert not torch.allclose(other.head.weight, model.head.weight)


def test_only_training_steps_are_mixed(digits, few_steps, monkeypatch):
    drawn, draw_mixing = [], module.draw_mixing
    monkeypatch.setattr(
        module, "draw_mixing", lambda n, *rest, **more: drawn.append(n) or draw_mixing(n, *rest, **more)
    )
    spec = digits.spec(*tuned("conv4"), mixup=1.0, activation_noise=1.0, max_epochs=2)
    model, outcome = digits.train(spec)
    assert drawn == [16] * 6
    said = predict_probabilities(model, digits.data().validation, "multiclass", "cpu")
    assert np.array_equal(said, outcome.validation)


def test_mixing_goes_with_micro_batches(digits, few_steps):
    spec = digits.spec(*tuned("conv3", "conv4"), mixup=0.4, activation_noise=0.1, max_epochs=6, learning_rate=3e-3)
    for micro_batch in (5, 1):
        _, outcome = digits.train(spec, micro_batch=micro_batch)
        assert outcome.ending == "stage"
        assert outcome.score > 0.3  # a tenth would be chance


def test_mixed_labels_are_learned_several_a_sample(wine):
    labels = np.stack([wine.labels != 0, wine.labels == 1, wine.labels == 2], 1).astype(np.float32)
    subject = replace(wine, labels=labels, kind="multilabel")
    spec = subject.spec(weights="random", max_epochs=4, learning_rate=3e-3, mixup=0.2, class_weight="balanced")
    assert subject.train(spec)[1].score > 0.9


# Texts


class EachToken(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, tokens):
        return Tokens(self.inner(tokens.values), tokens.mask)


@pytest.mark.parametrize("actions", [("tune", "tune"), ("freeze", "tune")])
def test_texts_are_shortened_for_steps_and_judged_whole(head, few_steps, actions):
    ids = np.random.default_rng(0).integers(1, 20, (24, 10)).astype(np.int32)
    backbone = Backbone(
        name="words",
        description="an embedding and a linear layer",
        input=TextInput(tokenizer=lambda: None, identity="words"),
        layer_groups=("words", "changed"),
        build=lambda *, input_shape, weights: nn.Sequential(
            OrderedDict(words=EachToken(nn.Embedding(20, 4)), changed=EachToken(nn.Linear(4, 4)))
        ),
    )
    pairs = zip(backbone.layer_groups, actions, strict=True)
    plan = TransferPlan(tuple(GroupPlan(group=group, action=action) for group, action in pairs))
    whole = TrialSpec(backbone="words", plan=plan, max_epochs=2)
    labels = np.arange(24) % 2

    def outcome(spec, length):
        shown = np.ascontiguousarray(ids[:, :length])
        rows = TokenRows(ArrayValues(shown.ravel(), np.arange(25) * length), pad_id=0)
        model = assemble(spec, backbone, head, Interface(input_shape=(), n_outputs=2), seed=0)
        validation = Labelled(rows=TokenRows(ArrayValues(ids.ravel(), np.arange(25) * 10), pad_id=0), labels=labels)
        data = TrainingData(
            train=Labelled(rows=rows, labels=labels),
            validation=validation,
            kind="multiclass",
            metric="f1_macro",
            n_outputs=2,
        )
        # What the head reads is centered by whole texts, in any case.
        model.set_feature_scale = lambda features: None
        return train(model, data, spec, device="cpu", seed=0)

    shortened, by_hand, not_at_all = outcome(replace(whole, tokens=4), 10), outcome(whole, 4), outcome(whole, 10)
    assert np.array_equal(shortened.validation, by_hand.validation)
    assert not np.array_equal(shortened.validation, not_at_all.validation)


# Precision


@pytest.mark.parametrize("name", ["digits", "wine"])
def test_every_precision_learns_the_same(request, name):
    subject = request.getfixturevalue(name)
    spec = subject.spec(weights="random", max_epochs=2, learning_rate=3e-3, optimizer="sgd_momentum")
    models, outcomes = zip(
        *(subject.train(spec, precision=each) for each in ("float32", "channels_last", "bfloat16")), strict=True
    )
    states = [model.state_dict() for model in models]
    torch.testing.assert_close(states[0], states[1], atol=1e-3, rtol=1e-3)
    assert outcomes[2].loss == pytest.approx(outcomes[0].loss, rel=0.05)
    assert {tensor.dtype for tensor in states[2].values()} <= {torch.float32, torch.int64}
    assert all(outcome.validation.dtype == np.float32 for outcome in outcomes)
    np.testing.assert_allclose(outcomes[2].validation.sum(1), 1, atol=1e-5)
    data = subject.data().validation
    said = predict_probabilities(models[2], data, "multiclass", "cpu", precision="bfloat16")
    assert np.array_equal(said, outcomes[2].validation)
    assert not np.array_equal(said, predict_probabilities(models[2], data, "multiclass", "cpu"))


# Two tasks at once


def source_of(subject, seed=1):
    """The subject's own rows with other labels, as a source task."""
    data = subject.data().train
    torch.manual_seed(seed)
    width = len(subject.model(subject.spec()).feature_shift)
    labels = (data.labels % 2).astype(np.int64)
    return SourceTask(data=Labelled(rows=data.rows, labels=labels), kind="binary", head=nn.Linear(width, 2))


def source_loss(model, source):
    with torch.no_grad():
        model.eval()
        rows = source.data.rows.batch(np.arange(len(source.data.labels)), "cpu")
        logits = model.classify(model.features(rows), source.head)
        return float(nn.functional.cross_entropy(logits, torch.from_numpy(source.data.labels)))


def train_beside(subject, weight, seed=0):
    spec = subject.spec(weights="random", joint_source_weight=weight, max_epochs=2)
    model, source = subject.model(spec), source_of(subject)
    before = source_loss(model, source)
    train(model, replace(subject.data(), source=source), spec, device="cpu", seed=seed)
    return model, source, before


def test_the_source_task_is_learned_beside_the_target_task(wine):
    model, source, before = train_beside(wine, 0.5)
    assert source_loss(model, source) < 0.5 * before


def test_without_weight_the_source_task_leaves_no_trace(wine):
    beside, source, _ = train_beside(wine, 0.0)
    alone = wine.model(wine.spec(weights="random"))
    train(alone, wine.data(), wine.spec(weights="random"), device="cpu", seed=0)
    assert same_states(beside.state_dict(), alone.state_dict())
    assert same_states(source.head.state_dict(), source_of(wine).head.state_dict())


def test_micro_batches_do_not_change_training_beside_the_source_task(wine, few_steps):
    states = []
    for micro_batch in (None, 5):
        spec = wine.spec(weights="random", joint_source_weight=0.5, max_epochs=1, optimizer="sgd")
        model = wine.model(spec)
        data = replace(wine.data(), source=source_of(wine))
        train(model, data, spec, device="cpu", seed=0, micro_batch=micro_batch)
        states.append(model.state_dict())
    torch.testing.assert_close(*states, atol=1e-5, rtol=1e-4)


# How it ends


def test_the_last_epoch_is_what_counts_and_what_is_kept(digits, scripted):
    scripted((0.4, 0.8, 0.7), (1.0, 0.1, 0.9))
    spec = digits.spec(*tuned("conv4"), max_epochs=3, averaging=0.0)
    model, states = digits.model(spec), []
    outcome = train(model, digits.data(), spec, device="cpu", seed=0, rung=states_of(model, states))
    assert (outcome.score, outcome.loss, outcome.epochs) == (0.7, 0.9, 3)
    assert outcome.curve == [0.4, 0.8, 0.7]
    assert same_states(model.state_dict(), states[2])
    assert not same_states(states[1], states[2])


def test_every_epoch_is_judged_by_the_averaged_weights_while_the_weights_go_on(digits, few_steps):
    spec, plain = (digits.spec(*tuned("conv4"), max_epochs=3, averaging=decay) for decay in (0.999, 0.0))
    model, states, plain_model, plain_states = digits.model(spec), [], digits.model(plain), []
    outcome = train(model, digits.data(), spec, device="cpu", seed=0, rung=states_of(model, states))
    train(plain_model, digits.data(), plain, device="cpu", seed=0, rung=states_of(plain_model, plain_states))
    assert all(same_states(ours, theirs) for ours, theirs in zip(states, plain_states, strict=True))
    assert not same_states(model.state_dict(), states[-1])
    said = predict_probabilities(model, digits.data().validation, "multiclass", "cpu")
    assert np.array_equal(said, outcome.validation)
    assert outcome.loss == log_loss(digits.data().validation.labels, said)


@pytest.mark.parametrize(
    ("losses", "patience", "min_delta", "epochs"),
    [
        ([1.0] * 9, 1, 0.0, 2),
        ([1.0] * 9, 3, 0.0, 4),
        ([1.0, 1.0, 0.9, *[0.9] * 6], 2, 0.0, 5),  # a lower loss starts the count anew
        ([1.0 - 0.03 * k for k in range(9)], 2, 0.05, 9),  # small falls add up to one
        ([1.0 - 0.001 * k for k in range(9)], 2, 0.05, 3),  # too little is none
        ([1.0 + 0.1 * k for k in range(9)], 0, 0.0, 9),  # nothing is waited for
    ],
)
def test_patience_looks_at_the_stopping_rows(digits, scripted, losses, patience, min_delta, epochs):
    scripted([0.1 * k for k in range(9)], [1 / (1 + k) for k in range(9)], losses)  # validation gets ever better
    spec = digits.spec(*tuned("conv4"), max_epochs=9, patience=patience, min_delta=min_delta)
    outcome = train(digits.model(spec), digits.with_stopping(), spec, device="cpu", seed=0)
    assert len(outcome.curve) == outcome.epochs == epochs
    assert outcome.ending == ("early_stopping" if epochs < 9 else "stage")
    assert outcome.score == outcome.curve[-1]
    assert outcome.state is None


def test_without_stopping_rows_nothing_stops_early(digits, scripted):
    scripted([0.9 - 0.1 * k for k in range(9)], [1.0 + k for k in range(9)])
    spec = digits.spec(*tuned("conv4"), max_epochs=9, patience=1)
    _, outcome = digits.train(spec)
    assert (outcome.ending, outcome.epochs) == ("stage", 9)


def test_patience_is_not_counted_before_all_groups_train(digits, scripted):
    scripted([0.5] * 9, [1.0] * 9, [1.0] * 9)
    late = (*tuned("conv3", unfreeze_epoch=2), *tuned("conv4", unfreeze_epoch=4))
    spec = digits.spec(*late, max_epochs=9, patience=2)
    outcome = train(digits.model(spec), digits.with_stopping(), spec, device="cpu", seed=0)
    assert len(outcome.curve) == 6  # epochs 4 and 5 are waited for


def test_an_unfreeze_epoch_of_a_frozen_group_does_not_delay_the_count(digits, scripted):
    scripted([0.5] * 9, [1.0] * 9, [1.0] * 9)
    frozen = GroupPlan(group="conv4", action="freeze", unfreeze_epoch=8)
    spec = digits.spec(*tuned("conv3"), frozen, max_epochs=9, patience=2)
    outcome = train(digits.model(spec), digits.with_stopping(), spec, device="cpu", seed=0)
    assert len(outcome.curve) == 3


def test_a_pruned_trial_stops_where_it_is(digits, scripted):
    scripted((0.6, 0.5, 0.9), (1.0, 1.1, 1.0))
    heard = []

    def behind(epoch, score):
        heard.append((epoch, score))
        return epoch == 1

    _, outcome = digits.train(digits.spec(max_epochs=9), rung=behind)
    assert outcome.ending == "pruned"
    assert heard == [(0, 0.6), (1, 0.5)]
    assert (outcome.score, outcome.epochs) == (0.5, 2)
    assert outcome.state.epoch == 2


def test_a_deadline_that_is_over_ends_before_the_first_step(digits):
    spec = digits.spec()
    model, outcome = digits.train(spec, deadline=time.time() - 1)
    assert (outcome.ending, outcome.score, outcome.curve, outcome.state) == ("deadline", None, [], None)
    assert torch.equal(model.head.weight, digits.model(spec).head.weight)


def test_a_deadline_within_an_epoch_leaves_the_last_whole_one(digits, few_steps, monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(module.time, "time", lambda: next(clock))
    spec = digits.spec(max_epochs=9)  # 3 steps an epoch, one look at the clock each
    model = digits.model(spec)
    outcome = train(model, digits.data(), spec, device="cpu", seed=0, deadline=4)
    assert (outcome.ending, outcome.epochs, len(outcome.curve)) == ("deadline", 1, 1)
    expected, once = digits.train(spec, stage=Stage(until=1))
    assert same_states(model.state_dict(), expected.state_dict())
    assert outcome.score == once.score
    assert same_states(outcome.state.weights, once.state.weights)


def test_a_loss_that_is_not_finite_ends_the_training_with_the_last_that_was(digits, scripted):
    scripted((0.4, 0.3), (1.0, float("inf")))
    model, outcome = digits.train(digits.spec(max_epochs=9))
    assert (outcome.ending, outcome.score, outcome.epochs, outcome.curve) == ("diverged", 0.4, 1, [0.4])
    assert outcome.state is None
    said = predict_probabilities(model, digits.data().validation, "multiclass", "cpu")
    assert np.array_equal(said, outcome.validation)
    scripted((0.4,), (float("inf"),))
    _, outcome = digits.train(digits.spec(max_epochs=9))
    assert (outcome.ending, outcome.score, outcome.validation) == ("diverged", None, None)


def test_where_nothing_judges_all_epochs_are_trained(digits, few_steps):
    spec, heard = digits.spec(*tuned("conv4"), max_epochs=3), []
    model, judged = digits.model(spec), digits.model(spec)
    alone = train(
        model,
        replace(digits.data(), validation=None),
        spec,
        device="cpu",
        seed=0,
        rung=lambda *told: heard.append(told),
    )
    assert (alone.score, alone.validation, alone.curve) == (None, None, [])
    assert (alone.ending, alone.epochs, heard) == ("stage", 3, [])
    train(judged, digits.data(), spec, device="cpu", seed=0)
    assert same_states(model.state_dict(), judged.state_dict())


@pytest.mark.parametrize("optimizer", ["sgd", "sgd_momentum", "adam", "adamw"])
def test_an_absurd_learning_rate_is_survived(wine, few_steps, optimizer):
    model, outcome = wine.train(wine.spec(learning_rate=1e6, optimizer=optimizer, max_epochs=3))
    assert outcome.ending in ("diverged", "stage")
    if outcome.score is not None:
        assert 0 <= outcome.score <= 1
        assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_weights_that_overflow_are_a_divergence(wine, few_steps):
    spec = wine.spec(learning_rate=1e38, max_epochs=3, warm_up=0)
    for data in (wine.data(), replace(wine.data(), validation=None)):
        outcome = train(wine.model(spec), data, spec, device="cpu", seed=0)
        assert (outcome.ending, outcome.score, outcome.epochs) == ("diverged", None, 0)


# The same again


@pytest.mark.parametrize("name", ["digits", "wine"])
def test_a_seed_repeats_everything(request, few_steps, name):
    subject = request.getfixturevalue(name)
    spec = subject.spec(weights="random", dropout=0.3, augmentation="strong", max_epochs=2)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(results))  # what went on before is of no account
        model, outcome = subject.train(spec, seed=seed)
        results.append((outcome.curve, outcome.loss, model.state_dict()))
    assert results[0][:2] == results[1][:2]
    assert same_states(results[0][2], results[1][2])
    assert not same_states(results[0][2], results[2][2])


def test_augmentation_is_for_training_only(digits, few_steps, monkeypatch):
    seen = []
    augment = module.augment
    monkeypatch.setattr(module, "augment", lambda batch, how: seen.append((len(batch), how)) or augment(batch, how))
    digits.train(digits.spec(augmentation="light", max_epochs=2))
    assert seen == [(16, "light")] * 6
