from __future__ import annotations

import torch

from automl_tl.model.pooling import pool, to_device
from automl_tl.plugin import Tokens


def test_maps_are_averaged_over_pixels():
    maps = torch.randn(3, 5, 2, 4)
    torch.testing.assert_close(pool(maps), maps.flatten(2).mean(2))


def test_features_stay_as_they_are():
    features = torch.randn(3, 5)
    assert pool(features) is features


def test_hidden_states_are_averaged_over_real_tokens():
    hidden = torch.randn(2, 4, 5)
    mask = torch.tensor([[True, True, False, True], [True, False, False, False]])
    expected = torch.stack([hidden[0, [0, 1, 3]].mean(0), hidden[1, 0]])
    torch.testing.assert_close(pool(Tokens(hidden, mask)), expected)


def test_a_text_without_tokens_is_zero():
    pooled = pool(Tokens(torch.randn(1, 4, 5), torch.zeros(1, 4, dtype=torch.bool)))
    assert torch.equal(pooled, torch.zeros(1, 5))


def test_both_parts_of_tokens_move():
    moved = to_device(Tokens(torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool)), "meta")
    assert isinstance(moved, Tokens)
    assert {part.device.type for part in moved} == {"meta"}
    assert to_device(torch.zeros(1), "meta").device.type == "meta"
