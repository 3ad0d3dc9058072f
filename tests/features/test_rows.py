from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from automl_tl.features.rows import ActivationRows, ImageRows, TableRows, TokenActivationRows, TokenRows, size_in_bytes

TEXTS = st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=9), min_size=1, max_size=8)


def offsets_of(texts):
    return np.concatenate([[0], np.cumsum([len(text) for text in texts])]).astype(np.int64)


def token_rows(texts, pad_id=0):
    return TokenRows(np.array([token for text in texts for token in text], dtype=np.int32), offsets_of(texts), pad_id)


def test_images_are_normalized_per_channel():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 4), dtype=np.uint8)
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    rows = ImageRows(pixels, mean, std)
    batch = rows.batch(np.array([3, 0]), "cpu")
    expected = (pixels[[3, 0]] / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    np.testing.assert_allclose(batch.numpy(), expected, atol=1e-5)
    assert batch.dtype == torch.float32
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert (len(rows), rows.lengths) == (5, None)


def test_a_batch_of_a_table_is_a_copy():
    values = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    rows = TableRows(values.copy())
    batch = rows.batch(np.array([2, 2, 1]), "cpu")
    assert np.array_equal(batch.numpy(), values[[2, 2, 1]])
    batch.zero_()
    assert np.array_equal(rows.values, values)
    assert (len(rows), rows.lengths) == (4, None)


@given(texts=TEXTS, data=st.data())
@settings(deadline=None, max_examples=50)
def test_texts_are_padded_to_the_longest_of_the_batch_and_no_further(texts, data):
    indices = data.draw(st.lists(st.integers(0, len(texts) - 1), min_size=1, max_size=6))
    rows = token_rows(texts, pad_id=777)
    values, mask = rows.batch(np.array(indices), "cpu")
    chosen = [texts[index] for index in indices]
    assert len(rows) == len(texts)
    assert rows.lengths.tolist() == [len(text) for text in texts]
    assert values.shape == mask.shape == (len(chosen), max(map(len, chosen)))
    assert values.dtype == torch.int64
    for row, text in enumerate(chosen):
        assert values[row][mask[row]].tolist() == text
        assert mask[row].tolist() == [True] * len(text) + [False] * (mask.shape[1] - len(text))
    assert (values[~mask] == 777).all()


@given(texts=TEXTS, data=st.data())
@settings(deadline=None, max_examples=25)
def test_kept_hidden_states_have_the_layout_of_their_tokens(texts, data):
    indices = np.array(data.draw(st.lists(st.integers(0, len(texts) - 1), min_size=1, max_size=6)))
    tokens = token_rows(texts)
    hidden = torch.from_numpy(tokens.ids).float().unsqueeze(1).repeat(1, 2)  # a token's state is its id, twice
    kept = TokenActivationRows(hidden, tokens.offsets)
    values, mask = tokens.batch(indices, "cpu")
    states, kept_mask = kept.batch(indices, "cpu")
    assert torch.equal(mask, kept_mask)
    assert torch.equal(states, values.unsqueeze(2).repeat(1, 1, 2).float())
    assert len(kept) == len(tokens)
    assert np.array_equal(kept.lengths, tokens.lengths)
    assert size_in_bytes(kept) == 4 * 2 * len(tokens.ids)


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 2, 3)])
def test_kept_activations_come_back_in_any_order(shape):
    values = torch.randn(shape)
    rows = ActivationRows(values)
    assert torch.equal(rows.batch(np.array([4, 0, 4]), "cpu"), values[[4, 0, 4]])
    assert (len(rows), rows.lengths) == (6, None)
    assert size_in_bytes(rows) == 4 * values.numel()
