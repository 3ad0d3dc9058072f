from __future__ import annotations

import numpy as np
import pytest
import torch

from automl_tl.features.rows import ArrayValues, StoredRows
from automl_tl.metrics.scores import log_loss
from automl_tl.training import evaluation as module
from automl_tl.training.evaluation import judge, predict_probabilities


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


def test_a_verdict_is_the_log_loss_of_the_labels():
    logits, labels = torch.randn(9, 3, generator=torch.Generator().manual_seed(0)), np.arange(9) % 3
    said, loss = judge(logits, labels, "multiclass")
    assert np.array_equal(said, logits.softmax(1).numpy())
    assert loss == log_loss(labels, said)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_what_is_not_finite_has_an_infinite_loss(value, kind):
    labels = np.arange(3) if kind == "multiclass" else np.eye(3, dtype=np.float32)
    logits = torch.zeros(3, 3)
    logits[1, 2] = value
    assert judge(logits, labels, kind)[1] == float("inf")
