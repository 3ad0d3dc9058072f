from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits, load_wine
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import nn

from automl_tl_builtins.backbones import source_cnn, source_mlp


def accuracy_after_training(network, x, y, *, epochs, batch=32):
    """Train network and a linear head from scratch; return the accuracy on a quarter left out."""
    train, test = train_test_split(torch.arange(len(y)), test_size=0.25, random_state=0, stratify=y)
    head = nn.LazyLinear(int(y.max()) + 1)

    def logits(rows):
        features = network(x[rows])
        return head(features.mean((2, 3)) if features.dim() == 4 else features)

    logits(train[:2])
    optimizer = torch.optim.AdamW([*network.parameters(), *head.parameters()], lr=2e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(train)).split(batch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(logits(train[rows]), y[train[rows]]).backward()
            optimizer.step()
    network.eval()
    with torch.no_grad():
        return (logits(test).argmax(1) == y[test]).float().mean().item()


def test_source_cnn_learns_digits():
    torch.manual_seed(0)
    (backbone,) = source_cnn.automl_tl_backbones()
    images, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(images).float().view(-1, 1, 8, 8) / 8 - 1
    x = nn.functional.interpolate(x, size=(16, 16), mode="bilinear").expand(-1, 3, -1, -1)[:900]
    network = backbone.build(input_shape=(3, 16, 16), weights=None)
    assert accuracy_after_training(network, x, torch.from_numpy(labels)[:900], epochs=4) > 0.93


def test_source_mlp_learns_wine():
    torch.manual_seed(0)
    (backbone,) = source_mlp.automl_tl_backbones()
    rows, labels = load_wine(return_X_y=True)
    x = torch.from_numpy(StandardScaler().fit_transform(rows)).float()
    network = backbone.build(input_shape=(13,), weights=None)
    assert accuracy_after_training(network, x, torch.from_numpy(labels), epochs=15) > 0.93


@pytest.mark.parametrize("size", [16, 28, 32, 48])
def test_source_cnn_takes_any_size_from_16_pixels(size):
    (backbone,) = source_cnn.automl_tl_backbones()
    network = backbone.build(input_shape=(3, size, size), weights=None)
    assert tuple(name for name, _ in network.named_children()) == backbone.layer_groups
    assert network(torch.randn(2, 3, size, size)).shape == (2, 128, size // 8, size // 8)
    assert 100_000 < sum(parameter.numel() for parameter in network.parameters()) < 300_000


def test_source_mlp_fits_its_rows():
    (backbone,) = source_mlp.automl_tl_backbones()
    networks = []
    for _ in range(2):
        torch.manual_seed(3)
        networks.append(backbone.build(input_shape=(7,), weights=None))
    first, same = networks
    assert tuple(name for name, _ in first.named_children()) == backbone.layer_groups
    rows = torch.randn(4, 7)
    assert first(rows).shape == (4, 256)
    assert torch.equal(first(rows), same(rows))
    torch.testing.assert_close(first(rows)[:1], first(rows[:1]))  # no sample depends on the others
    assert list(first.state_dict())[:2] == ["layer1.0.weight", "layer1.0.bias"]
