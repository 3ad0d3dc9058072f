from __future__ import annotations

from importlib import import_module

import pytest
import torch
from optuna.distributions import CategoricalDistribution
from optuna.trial import FixedTrial
from torch import nn

PARAMS = {"linear": {}, "mlp": {"hidden": 256}, "cosine": {}}


def build(name, *, in_features=20, n_outputs=5, params=None):
    (head,) = import_module(f"automl_tl_builtins.heads.{name}").automl_tl_heads()
    assert head.name == name
    torch.manual_seed(0)
    return head.build(FixedTrial(params or PARAMS[name]), in_features=in_features, n_outputs=n_outputs)


@pytest.mark.parametrize("name", PARAMS)
def test_head_maps_features_to_logits_and_learns(name):
    head = build(name)
    torch.manual_seed(1)
    labels = torch.arange(60) % 5
    features = torch.randn(5, 20)[labels] + 0.3 * torch.randn(60, 20)
    assert head(features).shape == (60, 5)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(features), labels).backward()
        optimizer.step()
    assert (head(features).argmax(1) == labels).float().mean() > 0.95


@pytest.mark.parametrize("name", PARAMS)
def test_head_is_reproducible_and_its_state_round_trips(name):
    head, same = build(name), build(name)
    assert all(torch.equal(a, b) for a, b in zip(head.state_dict().values(), same.state_dict().values(), strict=True))
    other = build(name)
    for parameter in other.parameters():
        nn.init.normal_(parameter)
    other.load_state_dict(head.state_dict(), strict=True)
    features = torch.randn(3, 20)
    assert torch.equal(head(features), other(features))


@pytest.mark.parametrize("name", ["linear", "mlp"])
def test_head_starts_undecided(name):
    probabilities = build(name)(torch.randn(50, 20)).softmax(1)
    assert (probabilities - 0.2).abs().max() < 0.05


def test_mlp_suggests_its_width():
    (head,) = import_module("automl_tl_builtins.heads.mlp").automl_tl_heads()
    trial = FixedTrial({"hidden": 128})
    network = head.build(trial, in_features=7, n_outputs=2)
    assert trial.distributions == {"hidden": CategoricalDistribution((128, 256, 512))}
    assert network[0].out_features == 128


def test_cosine_ignores_the_length_of_features_and_survives_zeros():
    head = build("cosine")
    features = torch.randn(4, 20)
    torch.testing.assert_close(head(features), head(features * 1000))
    assert head(features).abs().max() <= 10
    zeros = torch.zeros(2, 20, requires_grad=True)
    head(zeros).sum().backward()
    assert torch.isfinite(zeros.grad).all()
