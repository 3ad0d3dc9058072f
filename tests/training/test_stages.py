"""A training that goes on in stages is the one that was never interrupted, and trains no epoch twice."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from torch import nn

from automl_tl.errors import TrialError
from automl_tl.features.rows import ArrayValues, Rows, TableRows, ViewRows
from automl_tl.model.assemble import trained_state
from automl_tl.plugin import GroupPlan
from automl_tl.training import train as module
from automl_tl.training.state import load_state, save_state
from automl_tl.training.train import Labelled, LinearStart, SourceTask, Stage, train

OPTIMIZERS = ("adamw", "adam", "sgd_momentum", "sgd")
STOPS = (1, 3, 9)


@dataclass(frozen=True)
class CountedRows:
    """Rows that write down which of them are trained on."""

    rows: Rows
    drawn: list[np.ndarray] = field(default_factory=list)
    lengths = None

    def __len__(self):
        return len(self.rows)

    def batch(self, indices, device):
        if torch.is_grad_enabled():
            self.drawn.append(indices)
        return self.rows.batch(indices, device)


def plans(*, gradual=False):
    """Fine-tune the last two groups; where gradual, the head alone first, then one group after the other."""
    epochs = (4, 2) if gradual else (0, 0)
    return tuple(
        GroupPlan(group=group, action="tune", unfreeze_epoch=epoch)
        for group, epoch in zip(("conv3", "conv4"), epochs, strict=True)
    )


def in_stages(subject, spec, data, directory, *, anneal=False, seed=5):
    """Train to each of the stops, every time with a new model, by what the stage before left on the disk."""
    model, outcome = None, None
    for until in STOPS:
        torch.manual_seed(until)  # what went on before is of no account
        resumed = load_state(directory / "state") if outcome else None
        model = subject.model(spec)
        stage = Stage(until=until, anneal=anneal and until == STOPS[-1])
        outcome = train(model, data(), spec, device="cpu", seed=seed, stage=stage, resumed=resumed)
        if outcome.state:
            save_state(outcome.state, directory / "state")
    return model, outcome


def at_once(subject, spec, data, *, anneal=False, seed=5):
    model = subject.model(spec)
    return model, train(model, data(), spec, device="cpu", seed=seed, stage=Stage(until=STOPS[-1], anneal=anneal))


def assert_equal(ours, theirs):
    """Models and outcomes are equal, bit for bit."""
    (model, outcome), (other_model, other) = ours, theirs
    assert outcome.curve == other.curve
    assert (outcome.score, outcome.loss, outcome.epochs) == (other.score, other.loss, other.epochs)
    assert np.array_equal(outcome.validation, other.validation)
    assert_same(model.state_dict(), other_model.state_dict())
    assert (outcome.state is None) == (other.state is None)
    if outcome.state is not None:
        for name in ("weights", "averaged", "optimizer", "source_head", "random"):
            assert_same(getattr(outcome.state, name), getattr(other.state, name))
        assert outcome.state.generator == other.state.generator
        assert (outcome.state.epoch, outcome.state.step) == (other.state.epoch, other.state.step)
        assert (outcome.state.lowest, outcome.state.waited) == (other.state.lowest, other.state.waited)


def assert_same(first, second):
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different


@pytest.mark.parametrize("anneal", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_stages_are_one_training(digits, few_steps, tmp_path, optimizer, anneal):
    spec = digits.spec(*plans(), optimizer=optimizer, learning_rate=0.01, dropout=0.3, mixup=0.3, label_smoothing=0.1)
    ours, theirs = (
        in_stages(digits, spec, digits.data, tmp_path, anneal=anneal),
        at_once(digits, spec, digits.data, anneal=anneal),
    )
    assert_equal(ours, theirs)
    assert (ours[1].state is None) == anneal


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_stages_of_gradual_unfreezing_with_statistics_that_are_learned(digits, few_steps, tmp_path, optimizer):
    settings = {"dropout": 0.2, "augmentation": "light", "l2_sp": 0.01, "weight_decay": 0.1, "class_weight": "balanced"}
    spec = digits.spec(
        *plans(gradual=True),
        optimizer=optimizer,
        norm="train",
        learning_rate=0.01,
        activation_noise=0.1,
        max_epochs=9,
        **settings,
    )
    assert_equal(in_stages(digits, spec, digits.data, tmp_path), at_once(digits, spec, digits.data))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_stages_beside_a_source_task_and_with_rows_to_stop_by(wine, few_steps, tmp_path, optimizer):
    spec = wine.spec(
        weights="random",
        joint_source_weight=0.5,
        optimizer=optimizer,
        dropout=0.2,
        patience=20,
        mixup=0.2,
        min_delta=9.0,
    )

    def data():
        found = wine.with_stopping()
        torch.manual_seed(1)
        head = nn.Linear(len(wine.model(spec).feature_shift), 2)
        source = SourceTask(data=replace(found.train, labels=found.train.labels % 2), kind="binary", head=head)
        return replace(found, source=source)

    assert_equal(in_stages(wine, spec, data, tmp_path), at_once(wine, spec, data))


def test_stages_of_rows_with_several_views_from_the_start_of_a_probe(wine, few_steps, tmp_path):
    spec = wine.spec(GroupPlan(group="layer3", action="tune"), dropout=0.2, mixup=0.2, init_head="probe")
    plain, draw = wine.data(), np.random.default_rng(0)
    values = plain.train.rows.values.values
    views = [TableRows(ArrayValues(values + 0.1 * draw.normal(size=values.shape).astype(np.float32))) for _ in range(3)]
    width = len(wine.model(spec).feature_shift)
    start = LinearStart(draw.normal(0, 0.1, size=(width, 3)).astype(np.float32), np.zeros(3, np.float32))

    def data():
        return replace(plain, train=Labelled(rows=ViewRows(views), labels=plain.train.labels), head_start=start)

    assert_equal(in_stages(wine, spec, data, tmp_path), at_once(wine, spec, data))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_stages_in_memory_go_on_with_the_same_model(digits, few_steps, precision):
    """A model that holds averaged weights is pulled to where it once started, not to where it is."""
    spec = digits.spec(*plans(), l2_sp=0.1, dropout=0.1)
    model, state = digits.model(spec), None
    for until in STOPS:
        outcome = train(
            model,
            digits.data(),
            spec,
            device="cpu",
            seed=5,
            stage=Stage(until=until),
            resumed=state,
            precision=precision,
        )
        state = outcome.state
    whole = digits.model(spec)
    stage = Stage(until=STOPS[-1])
    expected = train(whole, digits.data(), spec, device="cpu", seed=5, stage=stage, precision=precision)
    assert_equal((model, outcome), (whole, expected))


def test_no_epoch_is_trained_twice(digits, few_steps, tmp_path):
    spec, heard = digits.spec(*plans(), batch_size=16), []
    plain = digits.data()

    def counted():
        return CountedRows(plain.train.rows)

    whole, parts, state = counted(), counted(), None
    for rows, stops in ((whole, STOPS[-1:]), (parts, STOPS)):
        data = replace(plain, train=replace(plain.train, rows=rows))
        for until in stops:
            outcome = train(
                digits.model(spec),
                data,
                spec,
                device="cpu",
                seed=0,
                stage=Stage(until=until),
                resumed=state if until > stops[0] else None,
                rung=lambda epoch, score: bool(heard.append(epoch)),
            )
            state = outcome.state
    assert len(parts.drawn) == len(whole.drawn) == 9 * 3  # an epoch is three batches of 16
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(parts.drawn, whole.drawn, strict=True))
    assert heard == [*range(9), *range(9)]


def test_the_scale_of_the_features_is_not_fitted_again(wine, few_steps):
    spec = wine.spec(GroupPlan(group="layer3", action="freeze"))
    first, state = wine.train(spec, stage=Stage(until=1))
    other = replace(wine, rows=TableRows(ArrayValues(wine.rows.values.values * 100)))
    second, _ = other.train(spec, stage=Stage(until=2), resumed=state.state)
    assert torch.equal(first.feature_scale, second.feature_scale)
    assert torch.equal(first.feature_shift, second.feature_shift)


def test_what_was_annealed_does_not_go_on(digits, few_steps):
    spec = digits.spec(*plans())
    _, first = digits.train(spec, stage=Stage(until=2))
    _, second = digits.train(spec, stage=Stage(until=3, anneal=True), resumed=first.state)
    assert (second.ending, second.epochs, second.state) == ("stage", 3, None)
    assert second.curve[:2] == first.curve


def test_a_training_goes_on_with_more_samples_and_its_rate_falls_to_zero_at_the_end(digits, few_steps, monkeypatch):
    """The steps that were done were of fewer samples; how many are to come is of those that there are now."""
    spec, rates = digits.spec(*plans(), warm_up=0), []

    class Heard(module.Schedule):
        def set(self, optimizer, step):
            super().set(optimizer, step)
            rates.append(optimizer.param_groups[0]["lr"] / optimizer.param_groups[0]["peak"])

    _, first = replace(digits, n_train=32).train(spec, stage=Stage(until=4))
    monkeypatch.setattr(module, "Schedule", Heard)
    more = replace(digits, n_train=64)
    _, second = more.train(spec, stage=Stage(until=5, anneal=True), resumed=first.state)
    steps = len(more.labels[:64]) // 16
    assert (second.epochs, len(rates)) == (5, steps)
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < 0.5


@pytest.mark.parametrize("until", [1, 2])
def test_there_must_be_something_left_to_train(digits, few_steps, until):
    spec = digits.spec(*plans())
    _, first = digits.train(spec, stage=Stage(until=2))
    with pytest.raises(TrialError, match=f"has done 2 epochs cannot go on until epoch {until}"):
        digits.train(spec, stage=Stage(until=until), resumed=first.state)


def test_a_deadline_before_an_epoch_is_finished_leaves_what_was(digits, few_steps, monkeypatch):
    spec = digits.spec(*plans())
    before, first = digits.train(spec, stage=Stage(until=2))
    for when in ("at once", "within an epoch"):
        clock = iter(range(100))
        if when == "within an epoch":
            monkeypatch.setattr(module.time, "time", lambda clock=clock: next(clock))
        deadline = time.time() - 1 if when == "at once" else 2
        stage = Stage(until=3, anneal=True)
        model, outcome = digits.train(spec, stage=stage, resumed=first.state, deadline=deadline)
        assert (outcome.ending, outcome.score, outcome.validation) == ("deadline", None, None)
        assert (outcome.epochs, outcome.curve, outcome.state) == (2, first.curve, first.state)
        assert_same(trained_state(model), trained_state(before))


def test_what_a_deadline_cut_off_is_taken_up_again(digits, few_steps, monkeypatch):
    spec = digits.spec(*plans(), dropout=0.2)
    with monkeypatch.context() as patch:
        clock = iter(range(100))
        patch.setattr(module.time, "time", lambda: next(clock))
        _, cut_off = digits.train(spec, stage=Stage(until=9), deadline=10, seed=5)
    assert (cut_off.ending, cut_off.epochs) == ("deadline", 3)
    ours = digits.train(spec, stage=Stage(until=9), resumed=cut_off.state, seed=5)
    theirs = digits.train(spec, stage=Stage(until=9), seed=5)
    assert_equal(ours, theirs)


def test_what_diverges_at_once_keeps_the_weights_of_the_stage_before(digits, few_steps):
    spec = digits.spec(*plans())
    before, first = digits.train(spec, stage=Stage(until=2))
    wild = digits.spec(*plans(), learning_rate=1e38, warm_up=0)
    model, outcome = digits.train(wild, stage=Stage(until=3), resumed=first.state)
    assert (outcome.ending, outcome.score, outcome.epochs, outcome.state) == ("diverged", None, 2, None)
    assert_same(trained_state(model), trained_state(before))


def test_the_state_of_another_model_is_refused(digits, few_steps):
    _, first = digits.train(digits.spec(*plans()), stage=Stage(until=1))
    other = digits.spec(*plans()[1:])
    with pytest.raises(TrialError, match="after epoch 1 does not fit the model of its spec"):
        digits.train(other, stage=Stage(until=2), resumed=first.state)


def test_what_was_pruned_can_go_on(digits, few_steps):
    spec = digits.spec(*plans(), dropout=0.2)
    _, pruned = digits.train(spec, stage=Stage(until=9), rung=lambda epoch, score: epoch == 3, seed=5)
    assert (pruned.ending, pruned.epochs) == ("pruned", 4)
    ours = digits.train(spec, stage=Stage(until=9), resumed=pruned.state, seed=5)
    assert_equal(ours, digits.train(spec, stage=Stage(until=9), seed=5))
