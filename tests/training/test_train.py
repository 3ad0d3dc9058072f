from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from automl_tl.features.rows import ArrayValues, Rows, StoredRows, TableRows
from automl_tl.metrics.scores import validation_score
from automl_tl.plugin import GroupPlan
from automl_tl.training import train as module
from automl_tl.training.train import Labelled, SourceTask, predict_probabilities, train


def tuned(*groups, **settings):
    return tuple(GroupPlan(group=group, action="tune", **settings) for group in groups)


def same_states(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture
def scripted(monkeypatch, few_steps):
    """Return a function that lets validation give these (score, loss) pairs, one an epoch."""
    plain = module.task_loss

    def write(*results):
        scores, losses = map(iter, zip(*results, strict=True))

        def task_loss(*arguments, **options):
            loss = plain(*arguments, **options)
            return lambda logits, target: (
                loss(logits, target) if logits.requires_grad else torch.tensor(next(losses), dtype=torch.float64)
            )

        monkeypatch.setattr(module, "task_loss", task_loss)
        monkeypatch.setattr(module, "validation_score", lambda *everything: next(scores))

    return write


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
    model, outcome = wine.train(wine.spec(weights="random", max_epochs=5, learning_rate=3e-3))
    data = wine.data()
    linear = LogisticRegression().fit(data.train.rows.values.values, data.train.labels)
    rival = validation_score(
        data.validation.labels, linear.predict_proba(data.validation.rows.values.values), "multiclass", "f1_macro"
    )
    assert outcome.score >= rival - 0.03
    assert outcome.ending == "finished"
    assert len(outcome.curve) == 5
    said = predict_probabilities(model, data.validation, "multiclass", "cpu")
    assert validation_score(data.validation.labels, said, "multiclass", "f1_macro") == outcome.score
    assert np.array_equal(outcome.validation, said)


def test_several_labels_a_sample_are_learned(wine):
    labels = np.stack([wine.labels != 0, wine.labels == 1, wine.labels == 2], 1).astype(np.float32)
    subject = replace(wine, labels=labels, kind="multilabel")
    for class_weight in ("none", "balanced"):
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


def test_predictions_are_probabilities_without_dropout(digits):
    model = digits.model(digits.spec(dropout=0.5))
    data, heard = digits.data().train, []
    said = predict_probabilities(model, data, "multiclass", "cpu", tick=heard.append)
    assert said.shape == (48, 10)
    assert said.dtype == np.float32
    np.testing.assert_allclose(said.sum(1), 1, atol=1e-5)
    assert heard[-1] == 48
    model.begin_epoch(0)
    assert np.array_equal(predict_probabilities(model, data.rows, "multiclass", "cpu"), said)


def test_predictions_are_in_the_order_of_the_rows(wine, monkeypatch):
    model, values = wine.model(wine.spec()), wine.rows.values.values
    at_once = predict_probabilities(model, wine.rows, "multiclass", "cpu")
    monkeypatch.setattr(module, "EVALUATION_BATCH", 7)
    by_length = StoredRows(ArrayValues(values), "float32", lengths=np.arange(len(values)) * 37 % 11)
    np.testing.assert_allclose(predict_probabilities(model, by_length, "multiclass", "cpu"), at_once, atol=1e-5)


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
    assert outcome.ending == "finished"


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


def test_micro_batches_give_the_gradients_of_the_whole_batch(digits, few_steps, monkeypatch):
    monkeypatch.setattr(module, "CLIP_NORM", 1e9)  # clipping would hide a wrong scale
    plans = tuned("conv2", "conv3", "conv4")
    spec = digits.spec(*plans, max_epochs=1, optimizer="sgd", class_weight="balanced", label_smoothing=0.1)
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
    monkeypatch.setattr(module, "draw_mixing", lambda n, *rest: drawn.append(n) or draw_mixing(n, *rest))
    spec = digits.spec(*tuned("conv4"), mixup=1.0, activation_noise=1.0, max_epochs=2)
    model, outcome = digits.train(spec)
    assert drawn == [16] * 6
    said = predict_probabilities(model, digits.data().validation, "multiclass", "cpu")
    assert np.array_equal(said, outcome.validation)


def test_mixing_goes_with_micro_batches(digits, few_steps):
    spec = digits.spec(*tuned("conv3", "conv4"), mixup=0.4, activation_noise=0.1, max_epochs=6, learning_rate=3e-3)
    for micro_batch in (5, 1):
        _, outcome = digits.train(spec, micro_batch=micro_batch)
        assert outcome.ending == "finished"
        assert outcome.score > 0.3  # a tenth would be chance


def test_mixed_labels_are_learned_several_a_sample(wine):
    labels = np.stack([wine.labels != 0, wine.labels == 1, wine.labels == 2], 1).astype(np.float32)
    subject = replace(wine, labels=labels, kind="multilabel")
    spec = subject.spec(weights="random", max_epochs=4, learning_rate=3e-3, mixup=0.2, class_weight="balanced")
    assert subject.train(spec)[1].score > 0.9


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


def test_the_best_epochs_state_is_kept(digits, scripted):
    scripted((0.4, 1.0), (0.8, 1.0), (0.8, 0.9), (0.7, 0.1))
    spec = digits.spec(*tuned("conv4"), max_epochs=4, patience=9)
    model, states = digits.model(spec), []

    def look(epoch, best):
        states.append({key: value.clone() for key, value in model.state_dict().items()})
        return False

    outcome = train(model, digits.data(), spec, device="cpu", seed=0, rung=look)
    assert (outcome.score, outcome.loss, outcome.epoch) == (0.8, 0.9, 2)
    assert outcome.curve == [0.4, 0.8, 0.8, 0.7]
    assert same_states(model.state_dict(), states[2])
    assert not same_states(states[2], states[3])


@pytest.mark.parametrize(
    ("results", "patience", "min_delta", "epochs"),
    [
        ([(0.5, 1.0)] * 9, 0, 0.0, 2),  # the first epoch without progress is one too many
        ([(0.5, 1.0)] * 9, 3, 0.0, 5),
        ([(0.5, 1.0), (0.5, 1.0), (0.6, 1.0), *[(0.6, 1.0)] * 6], 2, 0.0, 6),  # progress starts the count anew
        ([(0.5 + 0.01 * k, 1.0) for k in range(9)], 2, 0.02, 4),  # too little is no progress
        ([(0.5 + 0.03 * k, 1.0) for k in range(9)], 2, 0.02, 9),
        ([(0.5, 1.0 - 0.1 * k) for k in range(9)], 2, 0.0, 9),  # a lower loss is progress
        ([(0.5 - 0.01 * k, 1.0 + k) for k in range(9)], 2, 0.0, 4),
    ],
)
def test_patience(digits, scripted, results, patience, min_delta, epochs):
    scripted(*results)
    spec = digits.spec(*tuned("conv4"), max_epochs=9, patience=patience, min_delta=min_delta)
    _, outcome = digits.train(spec)
    assert len(outcome.curve) == epochs
    assert outcome.ending == ("early_stopping" if epochs < 9 else "finished")
    assert outcome.score == max(outcome.curve)


def test_patience_is_not_counted_before_all_groups_train(digits, scripted):
    scripted(*[(0.5, 1.0)] * 9)
    late = (*tuned("conv3", unfreeze_epoch=2), *tuned("conv4", unfreeze_epoch=4))
    _, outcome = digits.train(digits.spec(*late, max_epochs=9, patience=1))
    assert len(outcome.curve) == 6  # epochs 4 and 5 are waited for


def test_an_unfreeze_epoch_of_a_frozen_group_does_not_delay_the_count(digits, scripted):
    scripted(*[(0.5, 1.0)] * 9)
    frozen = GroupPlan(group="conv4", action="freeze", unfreeze_epoch=8)
    _, outcome = digits.train(digits.spec(*tuned("conv3"), frozen, max_epochs=9, patience=1))
    assert len(outcome.curve) == 3


def test_a_pruned_trial_stops_and_keeps_its_best(digits, scripted):
    scripted((0.6, 1.0), (0.5, 1.0), (0.9, 1.0))
    heard = []

    def behind(epoch, best):
        heard.append((epoch, best))
        return epoch == 1

    _, outcome = digits.train(digits.spec(max_epochs=9), rung=behind)
    assert outcome.ending == "pruned"
    assert heard == [(0, 0.6), (1, 0.6)]
    assert (outcome.score, outcome.epoch) == (0.6, 0)


def test_a_deadline_that_is_over_ends_before_the_first_step(digits):
    spec = digits.spec()
    model, outcome = digits.train(spec, deadline=time.time() - 1)
    assert (outcome.ending, outcome.score, outcome.curve) == ("deadline", None, [])
    assert torch.equal(model.head.weight, digits.model(spec).head.weight)


def test_a_deadline_within_an_epoch_keeps_the_best_epoch(digits, few_steps, monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(module.time, "time", lambda: next(clock))
    spec = digits.spec(max_epochs=9)  # 3 steps an epoch, one look at the clock each
    model, states = digits.model(spec), []

    def look(epoch, best):
        states.append({key: value.clone() for key, value in model.state_dict().items()})
        return False

    outcome = train(model, digits.data(), spec, device="cpu", seed=0, rung=look, deadline=4)
    assert outcome.ending == "deadline"
    assert (len(outcome.curve), outcome.epoch) == (1, 0)
    assert same_states(model.state_dict(), states[0])


def test_a_loss_that_is_not_finite_ends_the_training_with_the_best_so_far(digits, scripted):
    scripted((0.4, 1.0), (0.3, float("nan")))
    _, outcome = digits.train(digits.spec(max_epochs=9))
    assert (outcome.ending, outcome.score, outcome.epoch, outcome.curve) == ("diverged", 0.4, 0, [0.4])
    assert all(torch.isfinite(value).all() for value in outcome.state.values())
    scripted((0.4, float("inf")))
    _, outcome = digits.train(digits.spec(max_epochs=9))
    assert (outcome.ending, outcome.score, outcome.state) == ("diverged", None, {})


@pytest.mark.parametrize("optimizer", ["sgd", "sgd_momentum", "adam", "adamw"])
def test_an_absurd_learning_rate_is_survived(wine, few_steps, optimizer):
    model, outcome = wine.train(wine.spec(learning_rate=1e6, optimizer=optimizer, max_epochs=3))
    assert outcome.ending in ("diverged", "finished")
    if outcome.score is not None:
        assert 0 <= outcome.score <= 1
        assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_weights_that_overflow_are_a_divergence(wine, few_steps):
    _, outcome = wine.train(wine.spec(learning_rate=1e38, max_epochs=3))
    assert (outcome.ending, outcome.score) == ("diverged", None)


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


def test_the_features_that_the_head_reads_are_scaled_by_training_rows(wine):
    plain = wine.rows.values.values
    values = np.concatenate([plain[: wine.n_train] * 100, plain[wine.n_train :]])
    subject = replace(wine, rows=TableRows(ArrayValues(values)))
    model, _ = subject.train(subject.spec(GroupPlan(group="layer3", action="freeze"), max_epochs=1))
    features = model.features(torch.from_numpy(values[: wine.n_train]))
    torch.testing.assert_close(model.feature_shift, features.mean(0), rtol=1e-4, atol=1e-4)
