from __future__ import annotations

import errno
import os
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from automl_tl.data import TextSamples
from automl_tl.data.digests import digest_samples
from automl_tl.features import frozen as module
from automl_tl.features import passes, shards
from automl_tl.features.augment import augment
from automl_tl.features.frozen import ChangedRows, Samples, change_of, nearest, pooled_rows, rows_at, store_outputs
from automl_tl.features.network import Network
from automl_tl.features.rows import ArrayValues, Rows, StoredRows, StoredTokenRows, TokenRows, ViewRows
from automl_tl.features.shards import shard_directories
from automl_tl.features.store import GIB, FeatureStore
from automl_tl.model.plan import cut as cut_of
from automl_tl.model.plan import kept, tap
from automl_tl.model.pooling import pool
from automl_tl.model.spec import Regularization, only_head_trains
from automl_tl.plugin import LayerGroup, Tokens
from automl_tl.training.train import Labelled, TrainingData, train

TOLERANCE = {"float32": 1e-4, "float16": 1e-2}  # of logits, in units of their spread
TYPES = pytest.mark.parametrize("dtype", list(TOLERANCE))
NAMES = {"images": 40, "photographs": 12, "reviews": 5, "table": 30}  # subjects, and how many plans are tried of each


@st.composite
def plans(draw, names):
    """Draw the actions of a plan that freezes something, and which taps are joined."""
    n_kept = draw(st.integers(1, len(names)))
    n_frozen = draw(st.integers(1, n_kept))
    actions = ["freeze"] * n_frozen
    if n_frozen < n_kept:
        actions.append(draw(st.sampled_from(["tune", "reinit"])))
    actions += [draw(st.sampled_from(["freeze", "tune", "reinit"])) for _ in range(n_kept - len(actions))]
    joined = draw(st.sets(st.sampled_from(names[: n_kept - 1]))) if 1 < n_kept == n_frozen else set()
    return (
        (*actions, *["drop"] * (len(names) - n_kept)),
        {
            "joined": tuple(name for name in names if name in joined),
            "pooling": draw(st.sampled_from(["mean", "mean_std"])),
        },
    )


def taps(spec):
    names = [group.group for group in spec.plan]
    return [*(names.index(name) + 1 for name in spec.joined), tap(spec.plan) + 1]


def stored_rows(subject, network, spec, source=None) -> tuple[Rows, int]:
    """What a trial of this spec reads from the store, and how many groups it has passed."""
    source = source or subject.source()
    if only_head_trains(spec):
        assert store_outputs(network, subject.samples, None, source)
        return pooled_rows(network, subject.samples, taps(spec), spec.pooling), len(kept(spec.plan))
    assert store_outputs(network, subject.samples, cut_of(spec.plan), source)
    return rows_at(network, subject.samples, cut_of(spec.plan)), cut_of(spec.plan)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Return a store for each type, which fills up as one plan after the other is tried."""
    return {dtype: FeatureStore(root=tmp_path_factory.mktemp("stores") / dtype, budget=4 * GIB) for dtype in TOLERANCE}


# Exactness.


@TYPES
@pytest.mark.parametrize("name", NAMES)
def test_logits_from_the_store_are_those_without_it(request, stores, name, dtype):
    subject = request.getfixturevalue(name)
    network, everything = subject.network(stores[dtype]), np.arange(len(subject.rows))

    @given(plan=plans(subject.names), seed=st.integers(0, 3))
    @settings(deadline=None, max_examples=NAMES[name])
    def check(plan, seed):
        actions, reading = plan
        spec = subject.spec(*actions, **reading)
        model = subject.model(spec, seed=seed).eval()
        rows, start = stored_rows(subject, network, spec)
        assert rows.dtype == dtype
        with torch.no_grad():
            expected = model(subject.rows.batch(everything, "cpu"))
            got = model(rows.batch(everything, "cpu"), start)
            if only_head_trains(spec):  # the layer groups are not even built
                alone = subject.head_model(spec, model.feature_shift.numel(), seed=seed).eval()
                assert torch.equal(alone(rows.batch(everything, "cpu"), start), got)
        spread = float(expected.max() - expected.min())
        assert float((got - expected).abs().max()) <= TOLERANCE[dtype] * spread

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TYPES", (dtype,))
        check()


def trained(subject, spec, rows, start):
    model = subject.model(spec)
    data = Labelled(rows=rows, labels=subject.labels, start=start)
    task = TrainingData(train=data, validation=data, kind="multiclass", metric="f1_macro", n_outputs=subject.n_outputs)
    losses = []

    def rung(epoch, score):
        model.eval()
        with torch.no_grad():
            logits = model(rows.batch(np.arange(len(rows)), "cpu"), start)
        losses.append(float(nn.functional.cross_entropy(logits, torch.from_numpy(subject.labels))))
        return False

    outcome = train(model, task, spec, device="cpu", seed=1, rung=rung)
    return outcome, losses, model


@TYPES
@pytest.mark.parametrize(
    ("name", "actions", "settings"),
    [
        ("images", ("tune", "freeze"), {}),
        ("images", ("reinit", "tune", "drop"), {"norm": "train"}),
        ("images", ("freeze",), {"joined": ("conv1", "conv3"), "pooling": "mean_std"}),
        ("photographs", ("tune", "drop", "drop"), {}),
        ("photographs", ("freeze", "drop"), {}),
        ("reviews", ("tune", "drop"), {}),
        ("table", ("tune",), {}),
    ],
)
def test_training_from_the_store_is_training_without_it(
    request, store, few_steps, monkeypatch, name, actions, settings, dtype
):
    monkeypatch.setattr(module, "TYPES", (dtype,))
    subject = request.getfixturevalue(name)
    mixed = Regularization(dropout=0.2, mixup=0.2, activation_noise=0.1, patience=9)
    spec = subject.spec(*actions, regularization=mixed, **{"max_epochs": 3, **settings})
    rows, start = stored_rows(subject, subject.network(store), spec)
    without, losses, model = trained(subject, spec, subject.rows, 0)
    with_store, same_losses, same_model = trained(subject, spec, rows, start)
    assert len(losses) == 3
    np.testing.assert_allclose(same_losses, losses, rtol=TOLERANCE[dtype])
    if dtype == "float32":
        assert with_store.curve == without.curve
        torch.testing.assert_close(same_model.state_dict(), model.state_dict(), atol=1e-4, rtol=1e-3)


# What passes, and what does not.


def test_a_second_run_passes_nothing(images, store):
    first, second = images.source(), images.source()
    for cut in (None, 2):
        assert store_outputs(images.network(store), images.samples, cut, first)
        assert store_outputs(images.network(store), images.samples, cut, second)
    assert first.passed == [20, 20]
    assert second.passed == []


@pytest.mark.parametrize("cut", [None, 2])
def test_of_samples_that_were_added_only_those_pass(images, store, cut):
    network, source = images.network(store), images.source()
    assert store_outputs(network, images.take(range(14)).samples, cut, source)
    assert store_outputs(network, images.samples, cut, source)
    assert source.passed == [14, 6]
    shuffled = images.take([19, 3, 7, 16])  # another split of the same samples
    assert store_outputs(network, shuffled.samples, cut, source)
    assert len(source.passed) == 2
    if cut is not None:
        rows = rows_at(network, shuffled.samples, cut)
        whole = rows_at(network, images.samples, cut)
        assert torch.equal(rows.batch(np.arange(4), "cpu"), whole.batch(np.array([19, 3, 7, 16]), "cpu"))


def test_equal_samples_pass_once(images, store):
    twice, source = images.take([0, 1, 0, 0]), images.source()
    assert store_outputs(images.network(store), twice.samples, 2, source)
    assert source.passed == [2]
    rows = rows_at(images.network(store), twice.samples, 2).batch(np.arange(4), "cpu")
    assert torch.equal(rows[0], rows[2])


@pytest.mark.parametrize("changed", [{"weights": "others"}, {"inputs": "image-64"}, {"compute": "bfloat16"}])
def test_nothing_is_shared_with_another_network(images, store, changed):
    network, other = images.network(store), images.network(store, **changed)
    for cut in (None, 2):
        assert store_outputs(network, images.samples, cut, images.source())
    assert pooled_rows(other, images.samples, [1], "mean") is None
    assert nearest(other, images.samples, 4) is None
    source = images.source()
    assert store_outputs(other, images.samples, 2, source)
    assert source.passed == [20]


def test_a_view_shares_nothing_with_another_view(images, store):
    network, source = images.network(store), images.source()
    for view in ("clean", "light-1", "light-2", "strong-1"):
        assert rows_at(network, images.samples, 2, view=view) is None
        assert store_outputs(network, images.samples, 2, source, view=view)
        assert store_outputs(network, images.samples, None, source, view=view)
    assert source.passed == [20] * 8
    views = [rows_at(network, images.samples, 2, view=view) for view in ("clean", "light-1", "light-2", "strong-1")]
    batches = [rows.batch(np.arange(20), "cpu") for rows in views]
    for place, batch in enumerate(batches):
        assert not any(torch.allclose(batch, other) for other in batches[:place])


def test_one_pass_stores_also_the_shallower_cuts_that_others_will_want(images, store):
    network, source = images.network(store), images.source(also=(1, 2, 3, 4))
    assert store_outputs(network, images.samples, 3, source)
    assert source.passed == [20]
    for cut in (1, 2, 3):
        assert rows_at(network, images.samples, cut) is not None
    assert rows_at(network, images.samples, 4) is None  # deeper than asked for, it would take a longer pass
    alone = rows_at(network, images.samples, 2).batch(np.arange(20), "cpu")
    expected = images.model(images.spec("tune", "tune")).prefix(images.rows.batch(np.arange(20), "cpu"))
    torch.testing.assert_close(alone, expected, atol=5e-3, rtol=5e-3)


def test_what_others_want_is_left_where_it_lacks_other_rows(images, store):
    network, source = images.network(store), images.source(also=(1,))
    assert store_outputs(network, images.take(range(5)).samples, 1, images.source())
    assert store_outputs(network, images.samples, 2, source)
    assert source.passed == [20]
    assert len(network.activations(1, "float16").missing(images.digests)) == 15


class Counting(nn.Module):
    """A layer group that counts the rows it saw."""

    def __init__(self, group):
        super().__init__()
        self.group, self.rows = group, 0

    def forward(self, inputs):
        self.rows += len(inputs.values if isinstance(inputs, Tokens) else inputs)
        return self.group(inputs)


def counted(subject):
    groups = tuple(Counting(group) for group in subject.groups)
    return replace(subject, groups=groups), groups


@pytest.mark.parametrize("name", ["images", "reviews"])
def test_a_pass_goes_on_from_the_nearest_shallower_cut(request, store, name):
    subject = request.getfixturevalue(name)
    network = subject.network(store)
    for cut in (1, 2):
        assert store_outputs(network, subject.samples, cut, subject.source())
    subject, groups = counted(subject)
    assert nearest(network, subject.samples, 3)[1] == 2
    assert store_outputs(network, subject.samples, 4, subject.source())
    assert [group.rows > 0 for group in groups[:4]] == [False, False, True, True]
    got = rows_at(network, subject.samples, 4).batch(np.arange(len(subject.rows)), "cpu")
    activation = subject.rows.batch(np.arange(len(subject.rows)), "cpu")
    with torch.no_grad():
        for group in subject.groups[:4]:
            activation = group(activation)
    torch.testing.assert_close(pool(got), pool(activation), atol=1e-2, rtol=1e-2)


def test_of_a_view_a_pass_goes_on_from_the_same_view(images, store):
    """And it is not changed a second time."""
    network = images.network(store)
    assert store_outputs(network, images.samples, 1, images.source())
    assert store_outputs(network, images.samples, 1, images.source(), view="strong-3")
    assert nearest(network, images.samples, 3, view="strong-3")[1] == 1
    assert nearest(network, images.samples, 3, view="strong-4") is None
    assert store_outputs(network, images.samples, 3, images.source(), view="strong-3")
    changed = change_of("strong-3")(images.rows.batch(np.arange(20), "cpu"), images.digests)
    with torch.no_grad():
        for group in images.groups[:3]:
            changed = group(changed)
    got = rows_at(network, images.samples, 3, view="strong-3").batch(np.arange(20), "cpu")
    torch.testing.assert_close(got, changed, atol=1e-2, rtol=1e-2)


# Types.


class Huge(nn.Module):
    def forward(self, inputs):
        return inputs * 1e6


@pytest.mark.parametrize("cut", [None, 2])
def test_outputs_too_large_for_float16_are_stored_in_float32(images, store, cut):
    first, *others = images.groups
    huge = replace(images, groups=(first, nn.Sequential(others[0], Huge()), *others[1:]))
    network, source = huge.network(store), huge.source()
    assert store_outputs(network, huge.samples, cut, source)
    assert source.passed == [20]
    assert network.entry(cut, "float16").open(huge.digests) is None
    assert network.entry(cut, "float32").open(huge.digests) is not None
    if cut is not None:
        rows = rows_at(network, huge.samples, cut)
        assert rows.dtype == "float32"
        with torch.no_grad():
            expected = huge.groups[1](huge.groups[0](huge.rows.batch(np.arange(20), "cpu")))
        torch.testing.assert_close(rows.batch(np.arange(20), "cpu"), expected)
    assert store_outputs(network, huge.samples, cut, source)
    assert len(source.passed) == 1


def test_outputs_that_are_no_numbers_are_not_stored(images, store):
    class Undefined(nn.Module):
        def forward(self, inputs):
            return images.groups[0](inputs) / 0

    broken = replace(images, groups=(Undefined(), *images.groups[1:]))
    source = broken.source()
    for cut in (None, 1):
        assert not store_outputs(broken.network(store), broken.samples, cut, source)
    assert source.passed == []


# Room, time and turns.


def test_without_room_nothing_is_stored(images, tmp_path):
    network = images.network(FeatureStore(root=tmp_path / "small", budget=100))
    for cut in (None, 2):
        source = images.source()
        assert not store_outputs(network, images.samples, cut, source)
        assert source.passed == []
    assert nearest(network, images.samples, 4) is None


def test_where_not_all_has_room_what_is_asked_for_comes_first(images, tmp_path):
    largest = 20 * 128 * 2 * 2 * 2  # cut 3, in float16
    network = images.network(FeatureStore(root=tmp_path / "small", budget=largest + 20 * 600))
    assert store_outputs(network, images.samples, 3, images.source(also=(1, 2)))
    assert rows_at(network, images.samples, 3) is not None
    assert rows_at(network, images.samples, 1) is None
    assert rows_at(network, images.samples, 2) is None


def test_a_full_disk_is_no_room(images, store, monkeypatch):
    def full(output, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shards._Output, "write", full)
    assert not store_outputs(images.network(store), images.samples, 2, images.source())
    monkeypatch.undo()
    assert store_outputs(images.network(store), images.samples, 2, images.source())


def test_a_deadline_ends_a_pass(images, store, monkeypatch):
    monkeypatch.setattr(passes, "BATCH", 4)
    monkeypatch.setattr(passes, "SHARD_ROWS", 8)
    network, source = images.network(store), images.source(deadline=time.time() + 3600)

    class Slow(nn.Module):
        def forward(self, inputs):
            slow.append(len(inputs))
            if sum(slow) > 12:
                monkeypatch.setattr(passes.time, "time", lambda: source.deadline + 1)
            return images.groups[0](inputs)

    slow = []
    late = replace(source, groups=(Slow(), *images.groups[1:]))
    assert not store_outputs(network, images.samples, None, late)
    monkeypatch.undo()
    again = images.source()
    assert store_outputs(network, images.samples, None, again)
    assert 0 < again.passed[0] < 20  # what was finished before is there


def test_while_another_stores_one_waits_and_then_reads(images, store):
    network, entry = images.network(store), images.network(store).activations(2, "float16")
    holding, go_on = threading.Event(), threading.Event()

    def store_it():
        with entry.building():
            holding.set()
            go_on.wait(10)
            with entry.shard(20, row_shape=(4, 4, 64)) as shard:
                shard.write(images.digests, np.ones((20, 4, 4, 64), dtype=np.float16))

    other = threading.Thread(target=store_it)
    other.start()
    holding.wait(10)
    assert not store_outputs(network, images.samples, 2, images.source(deadline=time.time() + 0.3))
    patient, results = images.source(), []
    waiting = threading.Thread(target=lambda: results.append(store_outputs(network, images.samples, 2, patient)))
    waiting.start()
    go_on.set()
    other.join(10)
    waiting.join(10)
    assert results == [True]
    assert patient.passed == []


def test_what_is_being_stored_by_another_is_not_waited_for_when_it_is_only_taken_along(images, store):
    network, source = images.network(store), images.source(also=(1,))
    with network.activations(1, "float16").building():
        assert store_outputs(network, images.samples, 2, source)
    assert rows_at(network, images.samples, 2) is not None
    assert rows_at(network, images.samples, 1) is None


def test_a_damaged_shard_is_computed_again(images, store, monkeypatch):
    monkeypatch.setattr(passes, "SHARD_ROWS", 8)
    network, source = images.network(store), images.source()
    assert store_outputs(network, images.samples, None, source)
    before = pooled_rows(network, images.samples, [4], "mean").features()
    damaged = shard_directories(network.pooled("float16").directory / "shards")[0]
    os.truncate(damaged / "values.npy", 100)
    assert pooled_rows(network, images.samples, [4], "mean") is None
    assert store_outputs(network, images.samples, None, source)
    assert source.passed[0] == 20
    assert source.passed[1] in (6, 7)
    np.testing.assert_allclose(pooled_rows(network, images.samples, [4], "mean").features(), before, atol=1e-3)


# Views.


BATCHES = {"images": (12, 3, 8, 8), "rows": (12, 5)}


def batch_of(kind):
    generator = torch.Generator().manual_seed(0)
    if kind != "texts":
        return torch.rand(BATCHES[kind], generator=generator)
    mask = torch.arange(20)[None, :] < torch.arange(3, 15)[:, None]
    return Tokens(torch.randint(1, 99, (12, 20), generator=generator) * mask, mask)


def some(batch, indices):
    """These rows, texts padded to the longest of them."""
    if not isinstance(batch, Tokens):
        return batch[indices]
    width = int(batch.mask[indices].sum(1).max())
    return Tokens(batch.values[indices, :width], batch.mask[indices, :width])


def content(batch, row):
    """What a row holds, without the padding."""
    if not isinstance(batch, Tokens):
        return batch[row]
    length = int((batch.values[row] > 0).sum())
    return torch.stack([batch.values[row, :length], batch.mask[row, :length].long()])


@pytest.mark.parametrize("kind", ["images", "rows", "texts"])
@pytest.mark.parametrize("how", ["light", "strong"])
def test_a_view_of_a_sample_is_the_same_in_any_batch(kind, how):
    batch = batch_of(kind)
    digests = np.random.default_rng(0).integers(0, 256, (12, 16), dtype=np.uint8)

    @given(indices=st.lists(st.integers(0, 11), min_size=1, max_size=6), number=st.integers(1, 4), noise=st.integers())
    @settings(deadline=None, max_examples=30)
    def check(indices, number, noise):
        torch.manual_seed(abs(noise) % 1000)
        state = torch.random.get_rng_state()
        change = change_of(f"{how}-{number}")
        whole = change(batch, digests)
        part = change(some(batch, indices), digests[indices])
        assert torch.equal(torch.random.get_rng_state(), state)  # a trial's own draws are left as they are
        for row, index in enumerate(indices):
            assert torch.equal(content(part, row), content(whole, index))

    check()


def test_changed_rows_are_the_rows_of_a_view(images, reviews):
    for subject in (images, reviews):
        indices = np.array([3, 1])
        rows = ChangedRows(subject.rows, subject.digests, "light-2")
        whole = change_of("light-2")(subject.rows.batch(indices, "cpu"), subject.digests[indices])
        torch.testing.assert_close(rows.batch(indices, "cpu"), whole, atol=0, rtol=0)
        assert len(rows) == len(subject.rows)
        assert rows.lengths is None or np.array_equal(rows.lengths, subject.rows.lengths)
        clean = ChangedRows(subject.rows, subject.digests, "clean")
        torch.testing.assert_close(clean.batch(indices, "cpu"), subject.rows.batch(indices, "cpu"))


def test_views_differ_from_each_other_and_from_the_clean_one():
    batch, digests = batch_of("images"), np.random.default_rng(0).integers(0, 256, (12, 16), dtype=np.uint8)
    assert change_of("clean") is None
    changed = [batch, *(change_of(view)(batch, digests) for view in ("light-1", "light-2", "strong-1"))]
    for place, one in enumerate(changed):
        assert not any(torch.equal(one, other) for other in changed[:place])
    torch.manual_seed(0)
    assert changed[1].shape == augment(batch, "light").shape


def test_equal_samples_have_equal_views_and_others_have_others():
    batch = torch.rand(1, 3, 8, 8).repeat(3, 1, 1, 1)
    digests = np.zeros((3, 16), dtype=np.uint8)
    digests[2, 0] = 1
    changed = change_of("strong-1")(batch, digests)
    assert torch.equal(changed[0], changed[1])
    assert not torch.equal(changed[0], changed[2])


def test_training_draws_from_stored_views(images, store, few_steps):
    spec = images.spec("tune", "tune")
    network = images.network(store)
    views = []
    for number in (1, 2):
        assert store_outputs(network, images.samples, 2, images.source(), view=f"light-{number}")
        views.append(rows_at(network, images.samples, 2, view=f"light-{number}"))
    outcome, losses, _ = trained(images, spec, ViewRows(views), 2)
    assert outcome.score is not None
    assert np.isfinite(losses).all()


# What is read.


@pytest.mark.parametrize("name", ["images", "reviews", "table"])
def test_what_is_read_has_the_lengths_of_its_texts(request, store, name):
    """So that batches are the same as without a store."""
    subject = request.getfixturevalue(name)
    network = subject.network(store)
    for cut in (None, 2):
        assert store_outputs(network, subject.samples, cut, subject.source())
    for rows in (pooled_rows(network, subject.samples, [1], "mean"), rows_at(network, subject.samples, 2)):
        assert len(rows) == len(subject.rows)
        if subject.rows.lengths is None:
            assert rows.lengths is None
        else:
            assert np.array_equal(rows.lengths, subject.rows.lengths)
        assert isinstance(rows, StoredRows | StoredTokenRows)


def test_a_text_network_that_pools_by_itself_keeps_the_lengths(store):
    class Averaged(nn.Module):
        def forward(self, tokens):
            return pool(Tokens(tokens.values[..., None].float().repeat(1, 1, 3), tokens.mask))

    texts = TextSamples(texts=("a", "b b", "c c c"), ids=("x", "y", "z"))
    rows = TokenRows(ArrayValues(np.arange(6, dtype=np.int32), np.array([0, 1, 3, 6])), 0)
    samples = Samples(rows=rows, digests=digest_samples(texts))
    facts = (LayerGroup(name="averaged", parameters=0, flop_share=1.0, output=(3,)),)
    network = Network(store=store, backbone="averaging", weights="none", inputs="text", groups=facts)
    source = module.Source(groups=[Averaged()], device="cpu")
    for cut in (None, 1):
        assert store_outputs(network, samples, cut, source)
    found = rows_at(network, samples, 1)
    assert isinstance(found, StoredRows)
    assert found.lengths.tolist() == [1, 2, 3]
    assert found.batch(np.arange(3), "cpu")[:, 0].tolist() == [0.0, 1.5, 4.0]
    assert pooled_rows(network, samples, [1], "mean_std").batch(np.arange(3), "cpu").shape == (3, 3)
