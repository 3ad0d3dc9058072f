from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from automl_tl.features.rows import (
    ActivationRows,
    ArrayValues,
    ImageRows,
    StoredRows,
    StoredTokenRows,
    TableRows,
    TokenActivationRows,
    TokenRows,
    ViewRows,
    as_array,
    as_tensor,
)
from automl_tl.features.store import EntryKey

TEXTS = st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=9), min_size=1, max_size=8)
TYPES = pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])


def offsets_of(texts):
    return np.concatenate([[0], np.cumsum([len(text) for text in texts])]).astype(np.int64)


def token_rows(texts, pad_id=0):
    ids = np.array([token for text in texts for token in text], dtype=np.int32)
    return TokenRows(ArrayValues(ids, offsets_of(texts)), pad_id)


def some_of(data, n):
    return np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=6)))


def drawn(seed, rows, indices):
    torch.manual_seed(seed)
    return rows.batch(indices, "cpu")


def stored(store, values, dtype="float32", lengths=None):
    """Put rows into the store, in two shards, and open them in order."""
    digests = np.array([[row] * 16 for row in range(len(values) if lengths is None else len(lengths))], dtype=np.uint8)
    entry = store.entry(EntryKey(kind="activations", inputs="x", dtype=dtype))
    offsets = None if lengths is None else np.concatenate([[0], np.cumsum(lengths)])
    with entry.building():
        for part in (np.arange(2, len(digests)), np.arange(2)):
            if offsets is None:
                rows, widths = values[part[0] : part[-1] + 1], None
            else:
                rows, widths = values[offsets[part[0]] : offsets[part[-1] + 1]], lengths[part]
            with entry.shard(len(part), row_shape=rows.shape[1:], lengths=widths) as shard:
                shard.write(digests[part], as_array(rows, dtype))
    return entry.open(digests)


def test_images_are_normalized_per_channel():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 4), dtype=np.uint8)
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    rows = ImageRows(ArrayValues(pixels), mean, std)
    batch = rows.batch(np.array([3, 0]), "cpu")
    expected = (pixels[[3, 0]] / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    np.testing.assert_allclose(batch.numpy(), expected, atol=1e-5)
    assert batch.dtype == torch.float32
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert (len(rows), rows.lengths) == (5, None)


def test_a_batch_of_a_table_is_a_copy():
    values = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    kept = values.copy()
    rows = TableRows(ArrayValues(kept))
    batch = rows.batch(np.array([2, 2, 1]), "cpu")
    assert np.array_equal(batch.numpy(), values[[2, 2, 1]])
    batch.zero_()
    assert np.array_equal(kept, values)
    assert (len(rows), rows.lengths) == (4, None)


@given(texts=TEXTS, data=st.data())
@settings(deadline=None, max_examples=50)
def test_texts_are_padded_to_the_longest_of_the_batch_and_no_further(texts, data):
    indices = some_of(data, len(texts))
    rows = token_rows(texts, pad_id=777)
    values, mask = rows.batch(indices, "cpu")
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
    indices = some_of(data, len(texts))
    tokens, offsets = token_rows(texts), offsets_of(texts)
    ids = np.array([token for text in texts for token in text], dtype=np.float32)
    hidden = np.stack([ids, ids], 1)  # a token's state is its id, twice
    values, mask = tokens.batch(indices, "cpu")
    in_memory = TokenActivationRows(torch.from_numpy(hidden), offsets)
    in_store = StoredTokenRows(ArrayValues(hidden, offsets), "float32")
    for kept in (in_memory, in_store):
        states, kept_mask = kept.batch(indices, "cpu")
        assert torch.equal(mask, kept_mask)
        assert torch.equal(states, values.unsqueeze(2).repeat(1, 1, 2).float())
        assert len(kept) == len(tokens)
        assert np.array_equal(kept.lengths, tokens.lengths)


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 2, 3)])
def test_kept_activations_come_back_in_any_order(shape):
    values = torch.randn(shape)
    rows = ActivationRows(values)
    assert torch.equal(rows.batch(np.array([4, 0, 4]), "cpu"), values[[4, 0, 4]])
    assert (len(rows), rows.lengths) == (6, None)


@TYPES
def test_what_is_stored_is_what_was_computed_rounded(dtype):
    values = torch.randn(40, 3) * 10
    array = as_array(values, dtype)
    assert array.dtype == {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}[dtype]
    assert torch.equal(as_tensor(array, dtype), values.to(getattr(torch, dtype)))


@TYPES
def test_stored_maps_come_back_as_maps(store, dtype):
    maps = torch.randn(7, 4, 5, 3)
    rows = StoredRows(stored(store, maps.permute(0, 2, 3, 1).contiguous(), dtype), dtype)
    indices = np.array([6, 0, 3, 3])
    batch = rows.batch(indices, "cpu")
    assert torch.equal(batch, maps[indices].to(getattr(torch, dtype)).float())
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert rows.native(indices).dtype == getattr(torch, dtype)
    assert (len(rows), rows.lengths) == (7, None)


@given(data=st.data())
@settings(deadline=None, max_examples=25)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_columns_are_chosen_in_their_order(dtype, data):
    table = torch.randn(5, 12).to(getattr(torch, dtype)).float()
    columns = data.draw(
        st.lists(st.tuples(st.integers(0, 11), st.integers(0, 12)).filter(lambda c: c[0] < c[1]), min_size=1)
    )
    indices = some_of(data, 5)
    rows = StoredRows(ArrayValues(as_array(table, dtype)), dtype, tuple(slice(*c) for c in columns))
    expected = torch.cat([table[:, slice(*c)] for c in columns], 1)
    assert torch.equal(rows.batch(indices, "cpu"), expected[indices])
    assert np.array_equal(rows.features(), expected.numpy())


def test_many_stored_features_come_at_once(store):
    table = torch.randn(9000, 2)
    rows = StoredRows(ArrayValues(table.numpy()), "float32", (slice(1, 2),))
    assert np.array_equal(rows.features(), table.numpy()[:, 1:])


@TYPES
def test_stored_hidden_states_come_back_from_several_shards(store, dtype):
    lengths = np.array([3, 1, 4, 2])
    hidden = torch.randn(10, 5).to(getattr(torch, dtype)).float()
    rows = StoredTokenRows(stored(store, hidden, dtype, lengths), dtype)
    values, mask = rows.batch(np.array([2, 0]), "cpu")
    assert torch.equal(values[0], hidden[4:8])
    assert torch.equal(values[1, :3], hidden[0:3])
    assert (values[~mask] == 0).all()
    assert mask.sum(1).tolist() == [4, 3]
    assert rows.lengths.tolist() == lengths.tolist()


@given(seed=st.integers(0, 999), data=st.data())
@settings(deadline=None, max_examples=50)
def test_every_row_of_a_batch_comes_from_one_of_its_own_views(seed, data):
    n_views = data.draw(st.integers(1, 4))
    rows = ViewRows([ActivationRows(torch.arange(6.0)[:, None] + 100 * number) for number in range(n_views)])
    indices = some_of(data, 6)
    batch = drawn(seed, rows, indices)
    assert torch.equal(batch, drawn(seed, rows, indices))  # the draw is torch's, and nothing else decides it
    assert (batch[:, 0] % 100).tolist() == indices.tolist()
    assert (batch[:, 0] // 100 < n_views).all()
    assert (len(rows), rows.lengths) == (6, None)


def test_all_views_are_drawn():
    rows = ViewRows([ActivationRows(torch.full((5, 1), float(number))) for number in range(4)])
    torch.manual_seed(0)
    seen = torch.cat([rows.batch(np.arange(5), "cpu")[:, 0] for _ in range(40)])
    assert torch.bincount(seen.long()).min() > 30


@given(texts=TEXTS, seed=st.integers(0, 99), data=st.data())
@settings(deadline=None, max_examples=25)
def test_views_of_texts_are_padded_together(texts, seed, data):
    ids = torch.tensor([float(token) for text in texts for token in text])[:, None]
    rows = ViewRows([TokenActivationRows(ids + 1000 * number, offsets_of(texts)) for number in range(3)])
    indices = some_of(data, len(texts))
    values, mask = drawn(seed, rows, indices)
    assert mask.sum(1).tolist() == [len(texts[index]) for index in indices]
    assert mask.shape[1] == max(len(texts[index]) for index in indices)
    assert (values[~mask] == 0).all()
    for row, index in enumerate(indices):
        states = values[row][mask[row], 0]
        assert (states % 1000).tolist() == texts[index]
        assert len(set((states // 1000).tolist())) == 1  # a text comes from one view
    assert np.array_equal(rows.lengths, [len(text) for text in texts])
