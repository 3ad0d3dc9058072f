from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from automl_tl.model.spec import Regularization
from automl_tl.plugin import Tokens
from automl_tl.training.mix import Mixing, draw_mixing, mixed, shortened, with_noise


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def texts(lengths, seed=0):
    """Hidden states with something else than zero at the padding."""
    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    return Tokens(normal(*mask.shape, 3, seed=seed), mask)


# What is drawn


@given(alpha=st.floats(0.05, 10), n=st.integers(1, 20), seed=st.integers(0, 999))
@settings(deadline=None, max_examples=50)
def test_rows_keep_at_least_half_of_themselves_and_each_is_a_partner_once(alpha, n, seed):
    torch.manual_seed(seed)
    mixing = draw_mixing(n, Regularization(mixup=alpha, activation_noise=0.1), "cpu")
    assert 0.5 <= mixing.share <= 1
    assert sorted(mixing.partners.tolist()) == list(range(n))
    assert mixing.noise == 0.1
    torch.manual_seed(seed)
    again = draw_mixing(n, Regularization(mixup=alpha), "cpu")
    assert again.share == mixing.share
    assert torch.equal(again.partners, mixing.partners)


def test_small_alphas_mix_little():
    def mean_share(alpha):
        return np.mean([draw_mixing(2, Regularization(mixup=alpha), "cpu").share for _ in range(300)])

    torch.manual_seed(0)
    assert mean_share(0.1) > 0.9
    assert mean_share(4) < 0.7


def test_without_mixup_and_noise_nothing_is_drawn_or_changed():
    state, maps = torch.get_rng_state(), normal(2, 3, 4, 4)
    mixing = draw_mixing(2, Regularization(), "cpu")
    assert mixing.change(maps) is maps
    assert torch.equal(torch.get_rng_state(), state)


# What is mixed


@pytest.mark.parametrize("shape", [(4, 5), (4, 3, 2, 2)])
def test_rows_are_mixed_with_their_partners(shape):
    rows, partners = normal(*shape), torch.tensor([2, 0, 1, 3])
    torch.testing.assert_close(mixed(rows, partners, 0.7), 0.7 * rows + 0.3 * rows[[2, 0, 1, 3]])


def test_texts_are_mixed_token_by_token_and_what_one_lacks_counts_as_zero():
    batch = texts([3, 1])
    result = mixed(batch, torch.tensor([1, 0]), 0.75)
    assert torch.equal(result.mask, torch.ones(2, 3, dtype=torch.bool))
    long, short = batch.values[0], batch.values[1, 0]
    torch.testing.assert_close(result.values[0, 0], 0.75 * long[0] + 0.25 * short)
    torch.testing.assert_close(result.values[0, 1:], 0.75 * long[1:])
    torch.testing.assert_close(result.values[1, 1:], 0.25 * long[1:])


def test_the_loss_is_mixed_as_the_rows_are():
    logits, labels, loss = normal(4, 3), torch.tensor([0, 1, 2, 1]), nn.CrossEntropyLoss()
    partners = torch.tensor([3, 2, 1, 0])
    mixing = Mixing(share=0.8, partners=partners)
    soft = 0.8 * nn.functional.one_hot(labels, 3) + 0.2 * nn.functional.one_hot(labels[partners], 3)
    torch.testing.assert_close(mixing.loss(loss, logits, labels), loss(logits, soft))
    assert torch.equal(Mixing().loss(loss, logits, labels), loss(logits, labels))


# Noise


@pytest.mark.parametrize("shape", [(400, 50), (20, 50, 6, 6)])
def test_noise_has_the_given_share_of_the_spread(shape):
    offsets = 100 * torch.arange(50.0).view(1, 50, *[1] * (len(shape) - 2))  # means of channels are no spread
    rows = 3 * normal(*shape) + offsets
    torch.manual_seed(0)
    noise = with_noise(rows, 0.1) - rows
    assert float(noise.std()) == pytest.approx(0.3, rel=0.05)
    assert abs(float(noise.mean())) < 0.01


def test_noise_is_the_same_whatever_the_layout_in_memory():
    maps = normal(4, 3, 5, 5)
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        results.append(with_noise(maps.contiguous(memory_format=layout), 0.5))
    torch.testing.assert_close(*results)


def test_noise_leaves_padding_at_zero_and_ignores_what_is_there():
    batch = texts([3, 1])
    results = []
    for values in (batch.values, batch.values.masked_fill(~batch.mask.unsqueeze(-1), 99.0)):
        torch.manual_seed(0)
        results.append(with_noise(Tokens(values, batch.mask), 0.5))
    assert torch.equal(results[0].values, results[1].values)
    assert torch.equal(results[0].mask, batch.mask)
    assert not results[0].values[~batch.mask].any()
    assert (results[0].values != batch.values)[batch.mask].all()


def test_a_single_row_has_no_spread_and_so_no_noise():
    row = normal(1, 5)
    assert torch.equal(with_noise(row, 0.5), row)


def test_the_size_of_the_noise_has_no_gradient():
    rows = normal(6, 4).requires_grad_()
    with_noise(rows, 0.5).sum().backward()
    assert torch.equal(rows.grad, torch.ones(6, 4))


# Shorter texts


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5), tokens=st.integers(0, 12))
@settings(deadline=None, max_examples=50)
def test_texts_lose_what_comes_after_so_many_tokens(lengths, tokens):
    batch, most = texts(lengths), tokens or max(lengths)
    for shorter in (shortened(batch, tokens), Mixing(tokens=tokens).change(batch)):
        assert shorter.mask.sum(1).tolist() == [min(length, most) for length in lengths]
        assert torch.equal(shorter.values, batch.values[:, :most])


def test_what_is_no_text_is_not_shortened():
    images = normal(2, 3, 8, 8)
    assert shortened(images, 4) is images
