from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import nn

from automl_tl.features.rows import ArrayValues, StoredRows
from automl_tl.metrics.scores import validation_score
from automl_tl.model.assemble import assemble_head
from automl_tl.model.spec import Optimization, Regularization, TrialSpec
from automl_tl.plugin import GroupPlan, Head, TransferPlan
from automl_tl.training import heads as module
from automl_tl.training.heads import batch_key, pays, train_heads
from automl_tl.training.train import Labelled, LinearStart, TrainingData, predict_probabilities, train
from automl_tl_builtins.heads import cosine, linear, mlp

PLUGINS = {name: found.automl_tl_heads()[0] for name, found in {"linear": linear, "mlp": mlp, "cosine": cosine}.items()}
SETTINGS = [
    ("adamw", 1e-2, 3.0, "balanced", 0.1, 0.1, 9),
    ("sgd", 1e-1, 1.0, "effective_number", 0.0, 0.0, 0),
    ("adam", 3e-3, 10.0, "none", 1e-3, 0.05, 9),
    ("sgd_momentum", 3e-2, 1.0, "logit_adjusted", 0.0, 0.3, 9),
    ("sgd", 1e-30, 1.0, "none", 0.0, 0.0, 1),  # learns nothing, and stops early
]


DESCENTS = {  # warm-up, clipping, averaging: those of every optimizer
    "adamw": (30, 1.0, 0.999),
    "sgd": (10, 0.0, 0.9),
    "adam": (0, 0.1, 0.0),
    "sgd_momentum": (50, 1.0, 0.99),
}


def spec_of(head="linear", setting=SETTINGS[0], *, dropout=0.0, mixup=0.0, noise=0.0, max_epochs=3, **rest):
    optimizer, rate, scale, class_weight, decay, smoothing, patience = setting
    warm_up, clip_norm, averaging = DESCENTS[optimizer]
    batch_size, init_head = rest.get("batch_size", 32), rest.get("init_head", "random")
    return TrialSpec(
        backbone="none",
        plan=TransferPlan((GroupPlan(group="all", action="freeze"),)),
        head=head,
        head_parameters={"hidden": 128} if head == "mlp" else {},
        regularization=Regularization(
            dropout=dropout,
            weight_decay=decay,
            label_smoothing=smoothing,
            class_weight=class_weight,
            mixup=mixup,
            activation_noise=noise,
            patience=patience,
        ),
        optimization=Optimization(
            optimizer=optimizer,
            learning_rate=rate,
            head_lr_scale=scale,
            batch_size=batch_size,
            warm_up=warm_up,
            clip_norm=clip_norm,
            averaging=averaging,
        ),
        init_head=init_head,
        max_epochs=max_epochs,
    )


def model_of(spec, seed=0, plugin=None):
    return assemble_head(spec, plugin or PLUGINS[spec.head], in_features=64, n_outputs=10, seed=seed)


def models_of(head="linear", **options):
    """One model for each of the settings."""
    return [model_of(spec_of(head, setting, **options), seed) for seed, setting in enumerate(SETTINGS)]


@pytest.fixture(scope="module")
def data():
    """Return 300 digits to train on, 200 to validate by and 100 to stop by, as stored features."""
    pixels, labels = load_digits(return_X_y=True)
    features = (pixels / 16).astype(np.float32)
    parts = [
        Labelled(rows=StoredRows(ArrayValues(features[part]), "float32"), labels=labels[part], start=1)
        for part in (slice(0, 300), slice(300, 500), slice(500, 600))
    ]
    return TrainingData(
        train=parts[0],
        validation=parts[1],
        stopping=parts[2],
        kind="multiclass",
        metric="f1_macro",
        n_outputs=10,
    )


def assert_alike(outcome, other):
    assert (outcome.ending, outcome.epochs) == (other.ending, other.epochs)
    assert outcome.curve == pytest.approx(other.curve, abs=1e-6)
    assert outcome.score == pytest.approx(other.score, abs=1e-6)
    assert outcome.loss == pytest.approx(other.loss, rel=1e-4)
    assert (outcome.state, other.state) == (None, None)  # both were annealed
    np.testing.assert_allclose(outcome.validation, other.validation, atol=1e-4)


# What is learned


@pytest.mark.parametrize("head", PLUGINS)
@pytest.mark.parametrize(("mixup", "noise"), [(0.0, 0.0), (0.3, 0.2)])
def test_every_head_learns_what_train_teaches_it(data, head, mixup, noise):
    models, alone = (models_of(head, mixup=mixup, noise=noise) for _ in range(2))
    outcomes = train_heads(models, data, device="cpu", seed=3)
    for model, outcome, own in zip(models, outcomes, alone, strict=True):
        expected = train(own, data, own.spec, device="cpu", seed=3)
        assert_alike(outcome, expected)
        torch.testing.assert_close(model.state_dict(), own.state_dict(), atol=1e-4, rtol=1e-4)
    assert [outcome.ending for outcome in outcomes].count("early_stopping") == 1


@given(data_=st.data(), mixup=st.sampled_from((0.0, 0.3)))
@settings(deadline=None, max_examples=6)
def test_a_head_learns_the_same_whatever_trains_beside_it(data, data_, mixup):
    drawn = [
        spec_of(setting=data_.draw(st.sampled_from(SETTINGS)), dropout=data_.draw(st.floats(0, 0.8)), mixup=mixup)
        for _ in range(data_.draw(st.integers(2, 4)))
    ]
    drawn = [replace(spec, max_epochs=2) for spec in drawn]
    together = train_heads([model_of(spec, seed) for seed, spec in enumerate(drawn)], data, device="cpu", seed=1)
    for seed, (spec, outcome) in enumerate(zip(drawn, together, strict=True)):
        (alone,) = train_heads([model_of(spec, seed)], data, device="cpu", seed=1)
        assert_alike(outcome, alone)


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_dropout_works_as_well_as_in_train(data, head):
    spec = spec_of(head, ("adamw", 3e-3, 1.0, "none", 1e-3, 0.0, 9), dropout=0.5, max_epochs=4)
    at_once = [train_heads([model_of(spec, seed)], data, device="cpu", seed=seed)[0] for seed in range(4)]
    apart = [train(model_of(spec, seed), data, spec, device="cpu", seed=seed) for seed in range(4)]
    means = [np.mean([[outcome.score, outcome.loss] for outcome in some], axis=0) for some in (at_once, apart)]
    np.testing.assert_allclose(means[0], means[1], atol=0.03)


def test_each_head_drops_its_own_share(data):
    rates = (0.0, 0.25, 0.5)
    models = [model_of(spec_of(dropout=rate)) for rate in rates]
    stack = module.Stack([module._trainee(model, 30) for model in models], data, "cpu")
    features = torch.ones(32, 64)
    kept = stack._dropped(features, torch.Generator().manual_seed(0)).clone()
    assert kept.shape == (3, 32, 64)
    for rate, own in zip(rates, kept, strict=True):
        assert float((own == 0).float().mean()) == pytest.approx(rate, abs=0.03)
        assert float(own.mean()) == pytest.approx(1, abs=0.06)
        assert {round(value, 4) for value in own.unique().tolist()} <= {0.0, round(1 / (1 - rate), 4)}
    again = stack._dropped(features[:7], torch.Generator().manual_seed(0))
    assert again.shape == (3, 7, 64)


def test_several_labels_a_sample(data):
    def indicators(part):
        return replace(part, labels=np.eye(10, dtype=np.float32)[part.labels])

    parts = {name: indicators(getattr(data, name)) for name in ("train", "validation", "stopping")}
    several = replace(data, **parts, kind="multilabel")
    models, alone = models_of(), models_of()
    outcomes = train_heads(models, several, device="cpu", seed=0)
    for outcome, own in zip(outcomes, alone, strict=True):
        assert_alike(outcome, train(own, several, own.spec, device="cpu", seed=0))


def test_the_model_holds_the_averaged_weights_of_the_last_epoch(data):
    models = models_of(dropout=0.3)
    for model, outcome in zip(models, train_heads(models, data, device="cpu", seed=0), strict=True):
        assert not model.head.training
        said = predict_probabilities(model, data.validation, "multiclass", "cpu")
        np.testing.assert_allclose(said, outcome.validation, atol=1e-5)
        assert validation_score(data.validation.labels, said, "multiclass", "f1_macro") == outcome.score
        assert outcome.curve[-1] == outcome.score
        assert len(outcome.curve) == outcome.epochs
        assert all(parameter.grad is None for parameter in model.head.parameters())


def test_parameters_leave_the_stack_in_the_end(data):
    models = models_of()
    train_heads(models, data, device="cpu", seed=0)
    storages = {parameter.untyped_storage().data_ptr() for model in models for parameter in model.head.parameters()}
    assert len(storages) == 2 * len(models)
    assert all(len(p.untyped_storage()) == 4 * p.numel() for model in models for p in model.head.parameters())


# How it ends


def test_heads_start_from_a_probe_together(data):
    draw = np.random.default_rng(0)
    start = LinearStart(draw.normal(size=(64, 10)).astype(np.float32), draw.normal(size=10).astype(np.float32))
    started = replace(data, head_start=start)
    models, alone = (models_of(init_head="probe") for _ in range(2))
    outcomes = train_heads(models, started, device="cpu", seed=0)
    for outcome, own in zip(outcomes, alone, strict=True):
        assert_alike(outcome, train(own, started, own.spec, device="cpu", seed=0))
    logits = data.validation.rows.features() @ start.weight + start.bias
    np.testing.assert_allclose(outcomes[4].validation, torch.from_numpy(logits).softmax(1), atol=1e-5)


def test_where_nothing_judges_all_epochs_are_trained(data):
    models, judged = models_of(), models_of()
    unjudged = train_heads(models, replace(data, validation=None), device="cpu", seed=0)
    outcomes = train_heads(judged, data, device="cpu", seed=0)
    for i, (outcome, other) in enumerate(zip(unjudged, outcomes, strict=True)):
        assert (outcome.score, outcome.validation, outcome.curve) == (None, None, [])
        assert (outcome.ending, outcome.epochs) == (other.ending, other.epochs)
        torch.testing.assert_close(models[i].state_dict(), judged[i].state_dict(), atol=0, rtol=0)


def test_the_others_go_on_when_one_diverges(data):
    wild = ("sgd", 1e38, 1.0, "none", 0.0, 0.0, 9)
    models = [model_of(spec_of(setting=setting)) for setting in (SETTINGS[0], wild, SETTINGS[1])]
    first, diverged, last = train_heads(models, data, device="cpu", seed=0)
    assert (diverged.ending, diverged.score) == ("diverged", None)
    for outcome, setting in ((first, SETTINGS[0]), (last, SETTINGS[1])):
        (alone,) = train_heads([model_of(spec_of(setting=setting))], data, device="cpu", seed=0)
        assert_alike(outcome, alone)


def test_training_ends_when_all_have_stopped(data):
    models = [model_of(spec_of(setting=SETTINGS[4], max_epochs=50), seed) for seed in range(2)]
    outcomes = train_heads(models, data, device="cpu", seed=0)
    assert [outcome.ending for outcome in outcomes] == ["early_stopping"] * 2
    assert [outcome.epochs for outcome in outcomes] == [2, 2]


def test_a_deadline_keeps_what_there_is(data, monkeypatch):
    late = train_heads(models_of(), data, device="cpu", seed=0, deadline=time.time() - 1)
    assert {(outcome.ending, outcome.score) for outcome in late} == {("deadline", None)}
    clock = iter(range(1000))
    monkeypatch.setattr(module.time, "time", lambda: next(clock))
    outcomes = train_heads(models_of()[:3], data, device="cpu", seed=0, deadline=45)  # 30 steps an epoch
    assert [(outcome.ending, len(outcome.curve)) for outcome in outcomes] == [("deadline", 1)] * 3


def test_a_seed_repeats_everything(data):
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(results))  # what went on before is of no account
        results.append(train_heads(models_of(dropout=0.3, mixup=0.2)[:2], data, device="cpu", seed=seed))
    for first, same, other in zip(*results, strict=True):
        assert first.curve == same.curve
        assert np.array_equal(first.validation, same.validation)
        assert first.loss != other.loss


# Which heads go together


def test_settings_of_the_descent_may_differ():
    assert len({batch_key(model) for model in models_of(dropout=0.1)}) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"head": "cosine"},
        {"mixup": 0.2},
        {"noise": 0.1},
        {"max_epochs": 4},
        {"batch_size": 8},
        {"init_head": "probe"},
    ],
)
def test_what_they_share_may_not(change):
    assert batch_key(model_of(spec_of())) != batch_key(model_of(spec_of(**change)))


def test_other_sizes_do_not_go_together():
    small, large = (replace(spec_of("mlp"), head_parameters={"hidden": hidden}) for hidden in (128, 256))
    assert batch_key(model_of(small)) != batch_key(model_of(large))
    wide = assemble_head(small, PLUGINS["mlp"], in_features=65, n_outputs=10, seed=0)
    assert batch_key(model_of(small)) != batch_key(wide)


class Deciding(nn.Linear):
    """A head that looks at its values, which no batched computation can."""

    def forward(self, features):
        return super().forward(features) * (1.0 if float(features.sum()) > 0 else 2.0)


@pytest.mark.parametrize(
    "build",
    [
        lambda trial, *, in_features, n_outputs: nn.Sequential(nn.BatchNorm1d(64), nn.Linear(64, 10)),
        lambda trial, *, in_features, n_outputs: Deciding(64, 10),
    ],
)
def test_heads_that_cannot_be_batched_have_no_key(build):
    plugin = Head(name="odd", description="odd", build=build)
    assert batch_key(model_of(spec_of(), plugin=plugin)) is None


def test_models_that_train_more_than_a_head_have_no_key(digits):
    assert batch_key(digits.model(digits.spec(GroupPlan(group="conv4", action="tune")))) is None
    assert batch_key(digits.model(digits.spec(GroupPlan(group="conv4", action="freeze")))) is not None


def test_dropout_within_a_head_is_for_training_only(data):
    def build(trial, *, in_features, n_outputs):
        return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 10))

    plugin = Head(name="dropping", description="drops out within", build=build)
    spec = spec_of(setting=("adamw", 1e-2, 1.0, "none", 0.0, 0.0, 9), max_epochs=4)
    models = [model_of(spec, seed, plugin) for seed in range(3)]
    assert len({batch_key(model) for model in models} - {None}) == 1
    outcomes = train_heads(models, data, device="cpu", seed=0)
    for model, outcome in zip(models, outcomes, strict=True):
        assert outcome.score > 0.6
        said = predict_probabilities(model, data.validation, "multiclass", "cpu")
        np.testing.assert_allclose(said, outcome.validation, atol=1e-5)
    alone = model_of(spec, 0, plugin)
    assert_alike(outcomes[0], train_heads([alone], data, device="cpu", seed=0)[0])


def test_many_small_heads_pay_and_few_or_large_ones_do_not():
    small, large = model_of(spec_of()), model_of(spec_of("mlp"))
    assert pays([small] * 4, "cpu")
    assert not pays([small] * 3, "cpu")
    wide = assemble_head(large.spec, PLUGINS["mlp"], in_features=2048, n_outputs=10, seed=0)
    assert not pays([wide] * 32, "cpu")
    assert pays([wide] * 2, "cuda:0")
    assert not pays([wide], "cuda:0")
