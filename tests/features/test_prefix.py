from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from automl_tl.features import prefix
from automl_tl.features.prefix import keep_in_memory
from automl_tl.features.rows import ActivationRows, TokenActivationRows
from automl_tl.features.samples import InputFormat, rows_in_memory
from automl_tl.model.assemble import Interface, assemble
from automl_tl.model.pooling import pool
from automl_tl.model.spec import TrialSpec
from automl_tl.plugin import Backbone, GroupPlan, TextInput, Tokens, TransferPlan
from automl_tl.training.train import Labelled, TrainingData, train


@pytest.fixture
def small_batches(monkeypatch, few_steps):
    """Let an epoch have few steps, and the memory be filled in several batches."""
    monkeypatch.setattr(prefix, "BATCH", 3)


@pytest.mark.parametrize(
    ("name", "actions", "settings"),
    [
        ("images", ("tune", "freeze"), {}),
        ("images", ("tune", "reinit", "drop"), {"norm": "train"}),
        ("images", ("freeze",), {"weights": "random"}),
        ("images", ("freeze", "drop"), {"joined": ("conv1", "conv2"), "pooling": "mean_std"}),
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
    for kept in (False, True):
        model = subject.model(spec)
        assert model.cut > 0
        rows = keep_in_memory(model, subject.rows, "cpu") if kept else subject.rows
        labelled = Labelled(rows=rows, labels=subject.labels, start=model.cut if kept else 0)
        data = TrainingData(
            train=labelled, validation=labelled, kind="multiclass", metric="f1_macro", n_outputs=subject.n_outputs
        )
        outcomes.append((train(model, data, spec, device="cpu", seed=1), model.state_dict()))
    (without, weights), (from_memory, same_weights) = outcomes
    assert from_memory.curve == without.curve
    assert from_memory.epochs == without.epochs
    # Not to the bit: a kernel may add up a batch in another order, depending on its size and the threads at hand.
    assert from_memory.loss == pytest.approx(without.loss, rel=1e-4)
    torch.testing.assert_close(same_weights, weights, atol=1e-5, rtol=1e-4)


def test_when_only_the_head_trains_pooled_features_are_kept(images):
    model = images.model(images.spec("freeze", "drop"))
    kept = keep_in_memory(model, images.rows, "cpu")
    assert isinstance(kept, ActivationRows)
    assert kept.values.shape == (20, 128)
    expected = pool(model.prefix(images.rows.batch(np.arange(20), "cpu")))
    torch.testing.assert_close(kept.values, expected)


def test_otherwise_whole_activations_are_kept(images):
    model = images.model(images.spec("tune", "tune"))
    kept = keep_in_memory(model, images.rows, "cpu")
    assert kept.values.shape == (20, 64, 4, 4)
    assert kept.values.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(kept.values, model.prefix(images.rows.batch(np.arange(20), "cpu")))


def test_hidden_states_of_real_tokens_are_kept_without_padding(reviews):
    model = reviews.model(reviews.spec("tune", "drop", "drop", "drop", "drop", "drop"))
    kept = keep_in_memory(model, reviews.rows, "cpu")
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
    actions = ("freeze", "freeze", "tune")
    plan = TransferPlan(
        tuple(GroupPlan(group=g, action=a) for g, a in zip(backbone.layer_groups, actions, strict=True))
    )
    spec = TrialSpec(backbone="averaging", plan=plan)
    model = assemble(spec, backbone, linear_head, Interface(input_shape=(), n_outputs=2), seed=0)
    kept = keep_in_memory(model, rows, "cpu")
    torch.testing.assert_close(kept.values, model.prefix(rows.batch(np.arange(8), "cpu")))
    assert np.array_equal(kept.lengths, rows.lengths)  # so that its batches are those without


@pytest.mark.parametrize(("actions", "numbers"), [(("tune",), 20 * 128 * 2 * 2), (("freeze",), 20 * 128)])
def test_what_cannot_fit_is_not_kept(images, actions, numbers):
    model = images.model(images.spec(*actions))
    assert keep_in_memory(model, images.rows, "cpu", budget=4 * numbers - 1) is None
    assert keep_in_memory(model, images.rows, "cpu", budget=4 * numbers) is not None


@pytest.mark.parametrize("actions", [("freeze",), ("freeze", "tune")])
def test_a_pass_ends_at_the_deadline(images, actions):
    model = images.model(images.spec(*actions))
    assert keep_in_memory(model, images.rows, "cpu", deadline=time.time() - 1) is None


def test_nothing_of_a_kept_row_depends_on_the_batches_of_the_pass(reviews, monkeypatch):
    model = reviews.model(reviews.spec("tune", "tune"))
    kept = {}
    for size in (2, 99):
        monkeypatch.setattr(prefix, "BATCH", size)
        kept[size] = keep_in_memory(model, reviews.rows, "cpu").values
    torch.testing.assert_close(kept[2], kept[99], atol=1e-5, rtol=1e-4)


def test_layers_that_are_frozen_are_kept_as_they_evaluate(images):
    """Their dropout and their statistics stand still, in training as well."""
    model = images.model(replace(images.spec("tune", "tune"), norm="train"))
    model.begin_epoch(0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    keep_in_memory(model, images.rows, "cpu")
    torch.testing.assert_close(model.state_dict(), before, atol=0, rtol=0)
