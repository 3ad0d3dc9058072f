from __future__ import annotations

import pytest
import torch

from automl_tl.features.augment import LIGHT, STRONG, augment
from automl_tl.plugin import Tokens

CHANGES = pytest.mark.parametrize("how", ["light", "strong"])


def tokens(n=200, length=12):
    lengths = torch.arange(n) % length + 1
    mask = torch.arange(length)[None, :] < lengths[:, None]
    return Tokens(torch.randint(1, 99, (n, length)) * mask, mask)


BATCHES = {"images": torch.rand(6, 3, 20, 20), "texts": tokens(), "rows": torch.randn(30, 5)}
EACH_BATCH = pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)


def parts(batch):
    return tuple(batch) if isinstance(batch, Tokens) else (batch,)


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(parts(first), parts(second), strict=True))


@EACH_BATCH
def test_none_is_the_batch_itself(batch):
    assert augment(batch, "none") is batch


@EACH_BATCH
@CHANGES
def test_a_change_keeps_shapes_types_and_the_batch_it_was_given(batch, how):
    before = [part.clone() for part in parts(batch)]
    changed = augment(batch, how)
    assert type(changed) is type(batch)
    assert all(torch.equal(a, b) for a, b in zip(parts(batch), before, strict=True))
    assert [(part.shape, part.dtype) for part in parts(changed)] == [(part.shape, part.dtype) for part in before]
    assert all(torch.isfinite(part).all() for part in parts(changed))
    assert not equal(changed, batch)


@EACH_BATCH
@CHANGES
def test_a_seed_repeats_a_change_and_each_call_is_another(batch, how):
    torch.manual_seed(3)
    first, second = augment(batch, how), augment(batch, how)
    torch.manual_seed(3)
    assert equal(augment(batch, how), first)
    assert not equal(first, second)


@CHANGES
def test_each_sample_is_changed_in_its_own_way(how):
    torch.manual_seed(0)
    changed = augment(torch.rand(1, 3, 20, 20).repeat(4, 1, 1, 1), how)
    assert not any(torch.equal(changed[0], other) for other in changed[1:])
    changed = augment(torch.zeros(4, 5), how)
    assert not any(torch.equal(changed[0], other) for other in changed[1:])


@pytest.mark.parametrize(("how", "share"), [("light", LIGHT.word_dropout), ("strong", STRONG.word_dropout)])
def test_words_are_hidden_and_never_the_first_nor_padding(how, share):
    torch.manual_seed(0)
    batch = tokens(2000)
    changed = augment(batch, how)
    assert torch.equal(changed.values, batch.values)
    assert changed.mask[:, 0].all()
    assert not (changed.mask & ~batch.mask).any()
    later = batch.mask[:, 1:]
    hidden = (later & ~changed.mask[:, 1:]).sum() / later.sum()
    assert float(hidden) == pytest.approx(share, rel=0.15)


def test_light_neither_mirrors_nor_recolors():
    torch.manual_seed(0)
    left_bright = torch.zeros(40, 3, 16, 16)
    left_bright[..., :8] = 1.0
    light, strong = augment(left_bright, "light"), augment(left_bright, "strong")
    assert (light[..., :4].mean((1, 2, 3)) > light[..., 12:].mean((1, 2, 3))).all()
    assert light.min() >= 0
    assert light.max() <= 1
    mirrored = strong[..., :4].mean((1, 2, 3)) < strong[..., 12:].mean((1, 2, 3))
    assert 0 < mirrored.sum() < 40


def test_strong_erases_a_square_of_each_image():
    torch.manual_seed(0)
    erased = augment(torch.full((30, 3, 16, 16), 9.0), "strong") == 0
    assert (erased.all(1) == erased.any(1)).all()
    sizes = erased[:, 0].sum((1, 2))
    assert (sizes >= 1).all()
    assert sizes.max() == (STRONG.erase * 16) ** 2
