from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from automl_tl.model.pooling import pool
from automl_tl.plugin import Tokens


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_maps_are_averaged_over_pixels():
    maps = drawn(3, 5, 2, 4)
    torch.testing.assert_close(pool(maps), maps.flatten(2).mean(2))


@pytest.mark.parametrize("pooling", ["mean", "mean_std"])
def test_features_stay_as_they_are(pooling):
    features = drawn(3, 5)
    assert pool(features, pooling) is features


def test_hidden_states_are_averaged_over_real_tokens():
    hidden = drawn(2, 4, 5)
    mask = torch.tensor([[True, True, False, True], [True, False, False, False]])
    expected = torch.stack([hidden[0, [0, 1, 3]].mean(0), hidden[1, 0]])
    torch.testing.assert_close(pool(Tokens(hidden, mask)), expected)


@pytest.mark.parametrize(("pooling", "width"), [("mean", 5), ("mean_std", 10)])
def test_a_text_without_tokens_is_zero(pooling, width):
    pooled = pool(Tokens(drawn(1, 4, 5), torch.zeros(1, 4, dtype=torch.bool)), pooling)
    torch.testing.assert_close(pooled, torch.zeros(1, width), atol=1e-5, rtol=0)


@given(seed=st.integers(0, 999), n=st.integers(1, 4), c=st.integers(1, 5), h=st.integers(1, 4), w=st.integers(1, 4))
@settings(deadline=None, max_examples=25)
def test_mean_and_spread_of_maps_are_numpys(seed, n, c, h, w):
    maps = drawn(n, c, h, w, seed=seed)
    flat = maps.numpy().reshape(n, c, h * w)
    expected = np.concatenate([flat.mean(2), flat.std(2)], 1)
    np.testing.assert_allclose(pool(maps, "mean_std"), expected, atol=1e-5)
    channels_last = maps.contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(pool(channels_last, "mean_std"), expected, atol=1e-5)


@given(seed=st.integers(0, 999), lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4))
@settings(deadline=None, max_examples=25)
def test_mean_and_spread_of_real_tokens_are_numpys(seed, lengths):
    hidden = drawn(len(lengths), 6, 3, seed=seed)
    mask = torch.arange(6) < torch.tensor(lengths).unsqueeze(1)
    texts = [text[:length] for text, length in zip(hidden.numpy(), lengths, strict=True)]
    expected = np.stack([np.concatenate([text.mean(0), text.std(0)]) for text in texts])
    np.testing.assert_allclose(pool(Tokens(hidden, mask), "mean_std"), expected, atol=1e-5)


def test_the_spread_of_a_constant_map_has_a_finite_gradient():
    maps = torch.ones(2, 3, 4, 4, requires_grad=True)
    pool(maps, "mean_std").sum().backward()
    assert torch.isfinite(maps.grad).all()
