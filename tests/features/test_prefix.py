from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from automl_tl.features import prefix
from automl_tl.features.prefix import PrefixCache
from automl_tl.features.rows import ActivationRows, ImageRows, Rows, TableRows, TokenActivationRows, size_in_bytes
from automl_tl.features.samples import InputFormat, rows_in_memory
from automl_tl.model.assemble import Interface, TransferModel, assemble
from automl_tl.model.pooling import pool
from automl_tl.model.spec import Optimization, Regularization, TrialSpec
from automl_tl.plugin import Backbone, GroupPlan, Head, TextInput, Tokens, TransferPlan
from automl_tl.training import batches
from automl_tl.training.train import Labelled, TrainingData, train


@dataclass(frozen=True, kw_only=True, repr=False)
class Subject:
    """Rows of a task and a backbone that reads them."""

    backbone: Backbone
    head: Head
    rows: Rows
    labels: np.ndarray
    input_shape: tuple[int, ...]

    def spec(self, *actions, **settings):
        """A spec whose last groups have these actions; all before are frozen."""
        names = self.backbone.layer_groups
        padded = ("freeze",) * (len(names) - len(actions)) + actions
        plan = TransferPlan(tuple(GroupPlan(group=g, action=a) for g, a in zip(names, padded, strict=True)))
        return TrialSpec(
            backbone=self.backbone.name,
            plan=plan,
            regularization=Regularization(dropout=0.2),
            optimization=Optimization(optimizer="sgd", learning_rate=0.05, batch_size=5),
            max_epochs=2,
            **settings,
        )

    def model(self, spec, *, seed=0) -> TransferModel:
        interface = Interface(input_shape=self.input_shape, n_outputs=int(self.labels.max()) + 1)
        return assemble(spec, self.backbone, self.head, interface, seed=seed)


@pytest.fixture
def images(backbones, linear_head, pictures):
    backbone = backbones["source_cnn"]
    rows = rows_in_memory(pictures, backbone, InputFormat(size=16))
    return Subject(backbone=backbone, head=linear_head, rows=rows, labels=np.arange(20) % 10, input_shape=(3, 16, 16))


@pytest.fixture
def photographs(mobilenet, linear_head, pictures):
    rows = rows_in_memory(pictures.take(range(10)), mobilenet, InputFormat(size=32))
    return Subject(backbone=mobilenet, head=linear_head, rows=rows, labels=np.arange(10) % 5, input_shape=(3, 32, 32))


@pytest.fixture
def reviews(minilm, linear_head, texts):
    rows = rows_in_memory(texts, minilm, InputFormat())
    return Subject(backbone=minilm, head=linear_head, rows=rows, labels=np.arange(8) % 2, input_shape=())


@pytest.fixture
def table(backbones, linear_head, wine_table):
    rows, labels = wine_table
    backbone = backbones["source_mlp"]
    return Subject(
        backbone=backbone, head=linear_head, rows=TableRows(rows[::9]), labels=labels[::9], input_shape=(13,)
    )


@pytest.fixture
def small_batches(monkeypatch):
    """Let an epoch have few steps, and the cache be filled in several batches."""
    monkeypatch.setattr(batches, "MIN_STEPS", 2)
    monkeypatch.setattr(prefix, "BATCH", 3)


@pytest.mark.parametrize(
    ("name", "actions", "settings"),
    [
        ("images", ("tune", "freeze"), {}),
        ("images", ("tune", "reinit", "drop"), {"norm": "train"}),
        ("images", ("freeze",), {"weights": "random"}),
        ("photographs", ("tune", "drop", "drop"), {}),
        ("photographs", ("freeze", "drop"), {}),
        ("reviews", ("tune",), {}),
        ("reviews", ("freeze", "drop"), {}),
        ("table", ("tune",), {}),
        ("table", ("freeze",), {}),
    ],
)
def test_training_from_kept_activations_is_training(request, small_batches, name, actions, settings):
    subject = request.getfixturevalue(name)
    spec = subject.spec(*actions, **settings)
    outcomes = []
    for cached in (False, True):
        model = subject.model(spec)
        assert model.cut > 0
        rows = PrefixCache().rows(model, subject.rows, "key", "cpu") if cached else subject.rows
        labelled = Labelled(rows=rows, labels=subject.labels, from_cut=cached)
        n_outputs = int(subject.labels.max()) + 1
        data = TrainingData(
            train=labelled, validation=labelled, kind="multiclass", metric="f1_macro", n_outputs=n_outputs
        )
        outcomes.append((train(model, data, spec, device="cpu", seed=1), model.state_dict()))
    (without, weights), (with_cache, same_weights) = outcomes
    assert with_cache.curve == without.curve
    assert with_cache.epoch == without.epoch
    # Not to the bit: a kernel may add up a batch in another order, depending on its size and the threads at hand.
    assert with_cache.loss == pytest.approx(without.loss, rel=1e-4)
    torch.testing.assert_close(same_weights, weights, atol=1e-5, rtol=1e-4)


def test_when_only_the_head_trains_pooled_features_are_kept(images):
    model = images.model(images.spec("freeze", "drop"))
    kept = PrefixCache().rows(model, images.rows, "key", "cpu")
    assert isinstance(kept, ActivationRows)
    assert kept.values.shape == (20, 128)
    expected = pool(model.prefix(images.rows.batch(np.arange(20), "cpu")))
    torch.testing.assert_close(kept.values, expected)


def test_otherwise_whole_activations_are_kept(images):
    model = images.model(images.spec("tune", "tune"))
    kept = PrefixCache().rows(model, images.rows, "key", "cpu")
    assert kept.values.shape == (20, 64, 4, 4)
    assert kept.values.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(kept.values, model.prefix(images.rows.batch(np.arange(20), "cpu")))


def test_hidden_states_of_real_tokens_are_kept_without_padding(reviews):
    model = reviews.model(reviews.spec("tune", "drop", "drop", "drop", "drop", "drop"))
    kept = PrefixCache().rows(model, reviews.rows, "key", "cpu")
    assert isinstance(kept, TokenActivationRows)
    assert kept.values.shape == (reviews.rows.lengths.sum(), 384)
    assert np.array_equal(kept.lengths, reviews.rows.lengths)
    alone = model.prefix(reviews.rows.batch(np.array([1]), "cpu")).values[0]
    torch.testing.assert_close(kept.batch(np.array([1]), "cpu").values[0], alone)


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(50, 4)

    def forward(self, tokens: Tokens) -> Tokens:
        return Tokens(self.words(tokens.values), tokens.mask)


class Averaged(nn.Module):
    def forward(self, tokens: Tokens) -> torch.Tensor:
        return pool(tokens)


def test_a_text_backbone_may_pool_by_itself(linear_head, texts):
    class Lengths:
        pad_id = 0

        def encode(self, texts):
            return [[len(word) for word in text.split()] for text in texts]

    backbone = Backbone(
        name="averaging",
        description="averages before its last group",
        input=TextInput(tokenizer=Lengths, identity="lengths"),
        layer_groups=("words", "averaged", "last"),
        build=lambda *, input_shape, weights: nn.Sequential(
            OrderedDict(words=Words(), averaged=Averaged(), last=nn.Linear(4, 4))
        ),
    )
    rows = rows_in_memory(texts, backbone, InputFormat())
    subject = Subject(backbone=backbone, head=linear_head, rows=rows, labels=np.arange(8) % 2, input_shape=())
    model = subject.model(subject.spec("tune"))
    kept = PrefixCache().rows(model, rows, "key", "cpu")
    torch.testing.assert_close(kept.values, model.prefix(rows.batch(np.arange(8), "cpu")))
    assert np.array_equal(kept.lengths, rows.lengths)  # so that its batches are those without a cache


def test_a_prefix_is_computed_once(images, monkeypatch):
    cache = PrefixCache()
    first = cache.rows(images.model(images.spec("tune", "tune")), images.rows, "key", "cpu")
    again = images.model(images.spec("reinit", "drop"))
    monkeypatch.setattr(again, "prefix", lambda inputs: pytest.fail("computed again"))
    assert cache.rows(again, images.rows, "key", "cpu") is first


def test_other_weights_rows_and_cuts_are_kept_apart(images):
    cache = PrefixCache()
    kept = {}
    for seed in (1, 2):
        spec = images.spec("tune", weights="random")
        kept[seed] = cache.rows(images.model(spec, seed=seed), images.rows, ("train", seed), "cpu").values
    other_cut = cache.rows(
        images.model(images.spec("tune", "tune", weights="random"), seed=1), images.rows, ("train", 1), "cpu"
    )
    features = cache.rows(
        images.model(images.spec("freeze", weights="random"), seed=1), images.rows, ("train", 1), "cpu"
    )
    tapped = cache.rows(
        images.model(images.spec("freeze", "drop", weights="random"), seed=1), images.rows, ("train", 1), "cpu"
    )
    assert not torch.allclose(kept[1], kept[2])
    assert other_cut.values.shape != kept[1].shape
    assert features.values.ndim == tapped.values.ndim == 2
    assert not torch.allclose(features.values, tapped.values)


def test_what_cannot_fit_is_not_kept(images):
    model = images.model(images.spec("tune"))
    needed = size_in_bytes(PrefixCache().rows(model, images.rows, "key", "cpu"))
    assert PrefixCache(budget=needed - 1).rows(model, images.rows, "key", "cpu") is None
    assert PrefixCache(budget=needed).rows(model, images.rows, "key", "cpu") is not None


def test_the_longest_unused_makes_room(images):
    model = images.model(images.spec("freeze", "tune"))
    each = size_in_bytes(PrefixCache().rows(model, images.rows, "key", "cpu"))
    cache = PrefixCache(budget=2 * each)
    first = cache.rows(model, images.rows, "first", "cpu")
    second = cache.rows(model, images.rows, "second", "cpu")
    assert cache.rows(model, images.rows, "first", "cpu") is first  # used again, so the second is the oldest now
    cache.rows(model, images.rows, "third", "cpu")
    assert cache.rows(model, images.rows, "first", "cpu") is first
    assert cache.rows(model, images.rows, "second", "cpu") is not second


def test_one_pass_keeps_the_features_of_every_earlier_group(images, monkeypatch):
    cache, passes = PrefixCache(), []
    whole = images.model(images.spec("freeze", "freeze", "freeze"))
    cache.rows(whole, images.rows, "key", "cpu")
    monkeypatch.setattr(ImageRows, "batch", lambda *arguments: passes.append(arguments))
    tapped = images.model(images.spec("freeze", "freeze", "drop"))
    features = cache.rows(tapped, images.rows, "key", "cpu")
    assert passes == []
    monkeypatch.undo()
    torch.testing.assert_close(features.values, PrefixCache().rows(tapped, images.rows, "key", "cpu").values)


@pytest.mark.parametrize("actions", [("freeze",), ("freeze", "tune")])
def test_a_pass_ends_at_the_deadline(images, actions):
    model = images.model(images.spec(*actions))
    assert PrefixCache().rows(model, images.rows, "key", "cpu", deadline=time.time() - 1) is None
