from __future__ import annotations

import numpy as np
import pytest
import torch

from automl_tl.features import resident as module
from automl_tl.features.frozen import pooled_rows, rows_at, store_outputs
from automl_tl.features.resident import resident
from automl_tl.features.rows import ActivationRows, ArrayValues, StoredRows, StoredTokenRows, TokenActivationRows

PLENTY = 1 << 30


@pytest.fixture
def small_chunks(monkeypatch):
    """Let rows be copied in several parts."""
    monkeypatch.setattr(module, "CHUNK", 3)


def stored(subject, store, cut):
    assert store_outputs(subject.network(store), subject.samples, cut, subject.source())
    if cut is None:
        return pooled_rows(subject.network(store), subject.samples, [1, 2], "mean")
    return rows_at(subject.network(store), subject.samples, cut)


def in_device_memory(rows):
    """The rows where a device has plenty; `cpu` stands for the device."""
    return resident(rows, "cpu", share=0.5, free=lambda device: PLENTY)


def assert_same_batches(rows, others):
    rng = np.random.default_rng(0)
    for indices in (np.arange(len(rows)), rng.integers(0, len(rows), 5)):
        one, other = rows.batch(indices, "cpu"), others.batch(indices, "cpu")
        for part, other_part in zip(
            *([batch] if torch.is_tensor(batch) else batch for batch in (one, other)), strict=True
        ):
            assert part.dtype == other_part.dtype
            assert torch.equal(part, other_part)


@pytest.mark.parametrize(
    ("name", "cut"), [("images", None), ("images", 2), ("reviews", None), ("reviews", 2), ("table", 1)]
)
def test_copied_rows_give_the_same_batches(request, store, small_chunks, name, cut):
    subject = request.getfixturevalue(name)
    rows = stored(subject, store, cut)
    copied = in_device_memory(rows)
    assert type(copied) is (TokenActivationRows if isinstance(rows, StoredTokenRows) else ActivationRows)
    assert copied.values.dtype == torch.float16  # as it is stored, half the size
    assert len(copied) == len(rows)
    assert np.array_equal(copied.lengths, rows.lengths) if rows.lengths is not None else copied.lengths is None
    assert_same_batches(copied, rows)


def test_copied_maps_lie_as_convolutions_want_them(images, store, small_chunks):
    copied = in_device_memory(stored(images, store, 2))
    assert copied.values.is_contiguous(memory_format=torch.channels_last)
    assert copied.batch(np.array([4, 1]), "cpu").is_contiguous(memory_format=torch.channels_last)


def test_on_a_cpu_rows_stay_mapped(images, store):
    """All slots share one copy in the page cache."""
    rows = stored(images, store, 2)
    assert resident(rows, "cpu", share=1.0) is rows


def test_samples_are_left_where_they_are(images):
    assert in_device_memory(images.rows) is images.rows


@pytest.mark.parametrize(
    ("name", "cut", "needed"), [("images", 2, 20 * 64 * 4 * 4 * 2), ("images", None, 20 * (32 + 64) * 2)]
)
def test_a_share_of_the_free_memory_is_taken_and_no_more(request, store, monkeypatch, name, cut, needed):
    rows, asked = stored(request.getfixturevalue(name), store, cut), []
    copied = []
    monkeypatch.setattr(module, "_copied", lambda rows, place, *, pinned: copied.append((place, pinned)))

    def free(device):
        asked.append(device)
        return 2 * needed

    resident(rows, "cuda:0", share=0.5, free=free)
    resident(rows, "cuda:0", share=0.49, free=free)
    assert copied == [("cuda:0", False), ("cpu", True)]  # in the device's memory, or in pinned memory
    assert asked == ["cuda:0", "cuda:0"]


def test_the_size_of_texts_is_that_of_their_tokens(reviews, store, monkeypatch):
    rows, copied = stored(reviews, store, 2), []
    monkeypatch.setattr(module, "_copied", lambda rows, place, *, pinned: copied.append(place))
    needed = int(rows.lengths.sum()) * 384 * 2
    for free in (needed, needed - 1):
        resident(rows, "cuda:0", share=1.0, free=lambda device, free=free: free)
    assert copied == ["cuda:0", "cpu"]


def test_a_text_without_tokens_is_no_obstacle(small_chunks):
    lengths = np.array([0, 2, 0, 3])
    hidden = ArrayValues(np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32), np.array([0, 0, 2, 2, 5]))
    copied = in_device_memory(StoredTokenRows(hidden, "float32"))
    assert copied.lengths.tolist() == lengths.tolist()
    assert torch.equal(copied.values, torch.from_numpy(hidden.values))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_stored_type_is_kept(small_chunks, dtype):
    table = torch.randn(7, 3).to(getattr(torch, dtype))
    array = table.numpy() if dtype == "float32" else table.view(torch.uint16).numpy()
    rows = StoredRows(ArrayValues(array), dtype)
    copied = in_device_memory(rows)
    assert copied.values.dtype == getattr(torch, dtype)
    assert_same_batches(copied, rows)
