from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_class_weight
from torch import nn

from automl_tl.model.spec import ClassWeight, Regularization
from automl_tl.training.losses import class_weights, label_tensor, probabilities, starting_point, task_loss, task_losses


def loss_of(kind, labels, n_outputs, label_smoothing=0.0, class_weight="none"):
    return task_loss(kind, labels, n_outputs, label_smoothing=label_smoothing, class_weight=class_weight, device="cpu")


@pytest.fixture
def logits():
    return torch.randn(40, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def labels():
    return np.array([0] * 25 + [1] * 12 + [2] * 3)


@pytest.fixture
def indicators(labels):
    return np.stack([labels == 0, labels > 0, labels == 2], 1).astype(np.float32)


def test_the_plain_loss_is_scikit_learns_log_loss(logits, labels, indicators):
    value = loss_of("multiclass", labels, 3)(logits, label_tensor(labels, "cpu"))
    assert float(value) == pytest.approx(log_loss(labels, probabilities(logits.double(), "multiclass")), rel=1e-5)
    value = loss_of("multilabel", indicators, 3)(logits, label_tensor(indicators, "cpu"))
    said = probabilities(logits.double(), "multilabel")
    assert float(value) == pytest.approx(np.mean([log_loss(indicators[:, k], said[:, k]) for k in range(3)]), rel=1e-5)


def test_label_smoothing_mixes_in_all_classes(logits, labels, indicators):
    said = probabilities(logits, "multiclass")
    target = 0.7 * np.eye(3)[labels] + 0.1
    expected = -(torch.from_numpy(target) * said.log()).sum(1).mean()
    assert float(loss_of("multiclass", labels, 3, 0.3)(logits, label_tensor(labels, "cpu"))) == pytest.approx(
        float(expected)
    )
    smooth = torch.from_numpy(0.7 * indicators + 0.15)
    said = probabilities(logits, "multilabel")
    expected = -(smooth * said.log() + (1 - smooth) * (1 - said).log()).mean()
    value = loss_of("multilabel", indicators, 3, 0.3)(logits, label_tensor(indicators, "cpu"))
    assert float(value) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_balanced_samples_weigh_what_scikit_learn_says(logits, labels, smoothing):
    weights = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    plain = loss_of("multiclass", labels, 3, smoothing)
    each = [float(plain(logits[i : i + 1], label_tensor(labels[i : i + 1], "cpu"))) for i in range(len(labels))]
    value = loss_of("multiclass", labels, 3, smoothing, "balanced")(logits, label_tensor(labels, "cpu"))
    assert float(value) == pytest.approx(np.mean(weights[labels] * each), rel=1e-5)


def test_balanced_positives_weigh_as_much_as_negatives(logits, indicators):
    loss = loss_of("multilabel", indicators, 3, class_weight="balanced")
    undecided = torch.zeros_like(logits, requires_grad=True)
    loss(undecided, label_tensor(indicators, "cpu")).backward()
    assert undecided.grad.sum(0).abs().max() < 1e-7


@pytest.mark.parametrize("way", get_args(ClassWeight))
def test_a_class_without_samples_or_without_counterexamples_has_a_finite_loss_that_teaches(way):
    labels = np.array([0, 0, 2])
    loss = loss_of("multiclass", labels, 4, class_weight=way)
    assert torch.isfinite(loss(torch.randn(3, 4), label_tensor(labels, "cpu")))
    always_never = np.tile(np.array([[1, 0]], dtype=np.float32), (5, 1))
    undecided = torch.zeros(5, 2, requires_grad=True)
    loss_of("multilabel", always_never, 2, class_weight=way)(undecided, label_tensor(always_never, "cpu")).backward()
    assert (undecided.grad[:, 0] < 0).all()
    assert (undecided.grad[:, 1] > 0).all()


@given(sizes=st.lists(st.integers(0, 5000), min_size=2, max_size=6).filter(sum))
@settings(deadline=None, max_examples=50)
def test_weights_are_of_mean_one_over_samples_and_fall_with_the_size_of_the_class(sizes):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    for way in ("balanced", "effective_number"):
        weights = class_weights("multiclass", labels, len(sizes), way).numpy()
        assert weights[labels].mean() == pytest.approx(1, rel=1e-4)
        order = np.argsort(np.maximum(sizes, 1), kind="stable")
        assert (np.diff(weights[order]) <= 1e-6).all()


def test_effective_numbers_are_those_of_the_paper():
    labels = np.array([0] * 4000 + [1] * 400 + [2] * 4)
    weights = class_weights("multiclass", labels, 3, "effective_number").numpy()
    expected = 0.001 / (1 - 0.999 ** np.array([4000, 400, 4]))
    np.testing.assert_allclose(weights / weights[0], expected / expected[0], rtol=1e-5)
    balanced = class_weights("multiclass", labels, 3, "balanced").numpy()
    assert weights[2] / weights[0] < balanced[2] / balanced[0]


def test_effective_positives_of_several_labels_weigh_less_than_balanced_ones():
    several = np.zeros((4000, 2), dtype=np.float32)
    several[:5, 0] = several[:2000, 1] = 1
    found = class_weights("multilabel", several, 2, "effective_number").numpy()
    number = (1 - 0.999 ** np.array([3995, 5])) / 0.001
    assert found[0] == pytest.approx(number[0] / number[1], rel=1e-5)
    assert 1 < found[0] < class_weights("multilabel", several, 2, "balanced")[0]
    assert found[1] == 1


def test_adjusted_logits_add_the_logarithm_of_the_classes_shares(logits, labels, indicators):
    value = loss_of("multiclass", labels, 3, 0.1, "logit_adjusted")(logits, label_tensor(labels, "cpu"))
    shares = torch.tensor([25, 12, 3]) / 40
    plain = loss_of("multiclass", labels, 3, 0.1)(logits + shares.log(), label_tensor(labels, "cpu"))
    assert float(value) == pytest.approx(float(plain), rel=1e-5)
    value = loss_of("multilabel", indicators, 3, 0.1, "logit_adjusted")(logits, label_tensor(indicators, "cpu"))
    odds = torch.tensor([25 / 15, 15 / 25, 3 / 37])
    plain = loss_of("multilabel", indicators, 3, 0.1)(logits + odds.log(), label_tensor(indicators, "cpu"))
    assert float(value) == pytest.approx(float(plain), rel=1e-5)


def test_undecided_logits_are_the_optimum_of_the_adjusted_loss_where_features_tell_nothing(labels, indicators):
    for kind, truth in (("multiclass", labels), ("multilabel", indicators)):
        undecided = torch.zeros(len(truth), 3, requires_grad=True)
        loss_of(kind, truth, 3, class_weight="logit_adjusted")(undecided, label_tensor(truth, "cpu")).backward()
        assert undecided.grad.sum(0).abs().max() < 1e-6


@given(
    kind=st.sampled_from(("multiclass", "multilabel")),
    class_weight=st.sampled_from(get_args(ClassWeight)),
    smoothing=st.sampled_from((0.0, 0.1)),
    parts=st.integers(1, 9),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=40)
def test_shares_of_parts_add_up_to_the_whole(kind, class_weight, smoothing, parts, seed):
    rng = np.random.default_rng(seed)
    labels = (rng.random((20, 3)) < 0.3).astype(np.float32) if kind == "multilabel" else rng.integers(0, 3, 20)
    loss = loss_of(kind, labels, 3, smoothing, class_weight)
    logits, target = torch.from_numpy(rng.normal(size=(20, 3))), label_tensor(labels, "cpu")
    shares = [
        len(part) / 20 * loss(logits[torch.from_numpy(part)], target[torch.from_numpy(part)])
        for part in np.array_split(np.arange(20), parts)
    ]
    assert float(sum(shares)) == pytest.approx(float(loss(logits, target)))


def test_label_tensors_have_the_types_of_their_losses(labels, indicators):
    assert label_tensor(labels.astype(np.int32), "cpu").dtype == torch.int64
    assert label_tensor(indicators.astype(np.int64), "cpu").dtype == torch.float32


def test_l2_sp_adds_the_gradient_of_half_the_squared_distance():
    parameters = [nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(4))]
    starts = [p.detach().clone() for p in parameters]
    pull = starting_point(parameters, 0.3)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn_like(parameter))
    for parameter in parameters:
        parameter.square().sum().backward()
    pull.add_gradient()
    copies = [p.detach().clone().requires_grad_() for p in parameters]
    total = sum(c.square().sum() for c in copies)
    total = total + 0.15 * sum((c - s).square().sum() for c, s in zip(copies, starts, strict=True))
    total.backward()
    for parameter, copy in zip(parameters, copies, strict=True):
        torch.testing.assert_close(parameter.grad, copy.grad)


def test_l2_sp_leaves_alone_what_does_not_train_yet():
    asleep, awake = nn.Parameter(torch.ones(2), requires_grad=False), nn.Parameter(torch.ones(2))
    pull = starting_point([asleep, awake], 0.3)
    awake.sum().backward()
    pull.add_gradient()
    assert asleep.grad is None
    assert awake.grad.tolist() == [1, 1]


def test_without_strength_or_parameters_nothing_pulls():
    assert starting_point([nn.Parameter(torch.ones(2))], 0.0) is None
    assert starting_point([], 0.3) is None


@given(
    seed=st.integers(0, 99),
    kind=st.sampled_from(("multiclass", "multilabel")),
    settings_of_all=st.lists(
        st.tuples(st.sampled_from((0.0, 0.05, 0.3)), st.sampled_from(get_args(ClassWeight))), min_size=1, max_size=4
    ),
)
@settings(deadline=None, max_examples=50)
def test_the_losses_of_many_models_are_those_of_each(seed, kind, settings_of_all):
    draw = np.random.default_rng(seed)
    classes = draw.choice(3, 30, p=[0.7, 0.2, 0.1])
    labels = classes if kind == "multiclass" else np.eye(3, dtype=np.float32)[classes]
    logits = torch.from_numpy(draw.normal(size=(len(settings_of_all), 12, 3))).float().requires_grad_()
    target = label_tensor(labels[:12], "cpu")
    all_settings = [Regularization(label_smoothing=s, class_weight=w) for s, w in settings_of_all]
    losses = task_losses(kind, labels, 3, all_settings, "cpu")(logits, target)
    each = [loss_of(kind, labels, 3, *one)(own, target) for one, own in zip(settings_of_all, logits, strict=True)]
    torch.testing.assert_close(losses, torch.stack(each))
    (gradient,), (expected,) = (torch.autograd.grad(value, logits) for value in (losses.sum(), sum(each)))
    torch.testing.assert_close(gradient, expected)
