from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from automl_tl.errors import TrialError
from automl_tl.features.rows import ArrayValues, TableRows
from automl_tl.model.assemble import assemble_head
from automl_tl.plugin import GroupPlan
from automl_tl.training.beginning import start_head
from automl_tl.training.train import LinearStart, Stage, train


def test_the_features_that_the_head_reads_are_scaled_by_training_rows(wine):
    plain = wine.rows.values.values
    values = np.concatenate([plain[: wine.n_train] * 100, plain[wine.n_train :]])
    subject = replace(wine, rows=TableRows(ArrayValues(values)))
    model, _ = subject.train(subject.spec(GroupPlan(group="layer3", action="freeze"), max_epochs=1))
    features = model.features(torch.from_numpy(values[: wine.n_train]))
    torch.testing.assert_close(model.feature_shift, features.mean(0), rtol=1e-4, atol=1e-4)


@given(seed=st.integers(0, 99), scale=st.floats(1e-3, 1e3), shift=st.floats(-10, 10))
@settings(deadline=None, max_examples=30)
def test_a_started_head_says_of_scaled_features_what_the_probe_says_of_them(wine, seed, scale, shift):
    draw = np.random.default_rng(seed)
    spec = wine.spec(GroupPlan(group="layer3", action="freeze"), init_head="probe")
    model = assemble_head(spec, wine.head, in_features=7, n_outputs=3, seed=0)
    features = torch.from_numpy(draw.normal(shift, scale, size=(30, 7))).float()
    model.set_feature_scale(features)
    start = LinearStart(draw.normal(0, 1 / scale, size=(7, 3)).astype(np.float32), draw.normal(size=3))
    start_head(model, start)
    said = model.eval().classify(features).detach().numpy()
    expected = features.numpy().astype(np.float64) @ start.weight + start.bias
    np.testing.assert_allclose(said, expected, rtol=1e-4, atol=1e-4 * max(1, abs(shift) / scale))


def test_a_training_begins_at_the_probe(wine):
    """Two steps at a rate of nothing leave what the head started from."""
    spec = wine.spec(GroupPlan(group="layer3", action="freeze"), init_head="probe", learning_rate=1e-30)
    model = wine.model(spec)
    features = model.eval().features(wine.rows.batch(np.arange(len(wine.labels)), "cpu")).detach().numpy()
    start = LinearStart(np.full((features.shape[1], 3), 0.01, np.float32), np.array([0.3, -0.2, 0.1], np.float32))
    data = replace(wine.data(), head_start=start)
    outcome = train(model, data, spec, device="cpu", seed=0, stage=Stage(until=1))
    logits = torch.from_numpy(features[wine.n_train :] @ start.weight + start.bias)
    np.testing.assert_allclose(outcome.validation, logits.softmax(1), atol=1e-5)


@pytest.mark.parametrize("other", [nn.Sequential(nn.Linear(4, 3)), nn.Linear(4, 3, bias=False)])
def test_a_head_that_is_not_linear_cannot_start_from_a_probe(wine, other):
    model = wine.model(wine.spec(init_head="probe"))
    model.head = other
    with pytest.raises(
        TrialError, match=r"head 'linear' cannot start from a probe: expected one nn\.Linear with a bias"
    ):
        start_head(model, LinearStart(np.zeros((4, 3), np.float32), np.zeros(3)))


@pytest.mark.parametrize(("weight", "bias"), [((5, 3), 3), ((4, 2), 2), ((4, 3), 2)])
def test_a_probe_of_other_features_or_classes_is_refused(wine, weight, bias):
    model = wine.model(wine.spec(init_head="probe"))
    model.head = nn.Linear(4, 3)
    with pytest.raises(TrialError, match=r"cannot start from a probe of shape .* expected \(4, 3\)"):
        start_head(model, LinearStart(np.zeros(weight, np.float32), np.zeros(bias)))
