from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from automl_tl.finish.blending import Ingredient, average, blended
from automl_tl.finish.soup import Blend, blend_gain, blends_of, choose_blend, greedy_soup, kinds_of
from automl_tl.model.spec import TrialSpec
from automl_tl.plugin import GroupPlan, TransferPlan

CLASSES = 4


def spec_of(*actions, **values):
    groups = tuple(GroupPlan(group=f"group{i}", action=action) for i, action in enumerate(actions))
    return TrialSpec(**{"backbone": "net", "plan": TransferPlan(groups), "init_head": "probe", **values})


def state_of(seed, *, features=5, scale=1.0):
    """What training may have left of a model with one layer and a linear head on shifted and scaled features."""
    draw = torch.Generator().manual_seed(seed)
    return {
        "groups.last.weight": torch.randn(3, features, generator=draw),
        "groups.last.count": torch.tensor(seed),
        "feature_shift": torch.randn(features, generator=draw),
        "feature_scale": torch.tensor(scale),
        "head.weight": torch.randn(CLASSES, features, generator=draw),
        "head.bias": torch.randn(CLASSES, generator=draw),
    }


def logits(state, features):
    return (features - state["feature_shift"]) / state["feature_scale"] @ state["head.weight"].T + state["head.bias"]


@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=4), st.integers(0, 1000))
@settings(deadline=None, max_examples=25)
def test_an_average_of_heads_says_the_average_however_their_features_are_scaled(scales, seed):
    states = [state_of(seed + i, scale=scale) for i, scale in enumerate(scales)]
    shares = np.random.default_rng(seed).dirichlet(np.ones(len(states)))
    features = torch.randn(7, 5, generator=torch.Generator().manual_seed(seed))
    mean = sum(share * logits(state, features) for share, state in zip(shares, states, strict=True))
    found = average(states, shares.tolist())
    assert torch.allclose(logits(found, features), mean, atol=1e-3, rtol=1e-3)
    assert torch.equal(found["feature_scale"], states[0]["feature_scale"])


def test_weights_are_averaged_and_numbers_that_count_something_are_not():
    one, other = state_of(1), state_of(2)
    found = average([one, other], [0.25, 0.75])
    expected = 0.25 * one["groups.last.weight"] + 0.75 * other["groups.last.weight"]
    assert torch.allclose(found["groups.last.weight"], expected)
    assert found["groups.last.count"] == 1
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in found.items()} == {
        name: (tensor.dtype, tensor.shape) for name, tensor in one.items()
    }


def test_the_way_from_the_beginning_ends_at_what_was_trained():
    ingredients = {number: Ingredient(begun=state_of(0), trained=state_of(number)) for number in (1, 2)}
    name = "groups.last.weight"
    assert torch.allclose(blended(Blend((1,)), ingredients)[name], ingredients[1].trained[name])
    begun = blended(Blend((1, 2), 0.0), ingredients)
    assert torch.allclose(begun[name], ingredients[1].begun[name])
    half = blended(Blend((1,), 0.5), ingredients)
    assert torch.allclose(half[name], (ingredients[1].begun[name] + ingredients[1].trained[name]) / 2)


def test_what_began_alike_and_has_one_shape_fits_together():
    tuned = spec_of("freeze", "tune", "drop")
    specs = {
        1: tuned,
        2: replace(tuned, optimization=replace(tuned.optimization, learning_rate=1e-4)),
        3: spec_of("tune", "tune", "drop"),
        4: spec_of("freeze", "tune", "tune"),
        5: spec_of("freeze", "reinit", "drop"),
        6: replace(tuned, init_head="random"),
        7: replace(tuned, pooling="mean_std"),
        8: replace(tuned, weights="random"),
        9: replace(tuned, backbone="other"),
        10: spec_of("freeze", "freeze", "drop", fit="ridge"),
        11: tuned,
    }
    assert kinds_of(specs) == [(1, 2, 11), (3,), (4,), (7,), (9,)]


@pytest.mark.parametrize(("n", "soups"), [(1, 0), (2, 1), (3, 4), (4, 11), (6, 11)])
def test_all_soups_of_a_few_are_tried_and_each_alone_part_of_the_way(n, soups):
    found = blends_of(range(n))
    assert sum(len(blend.ingredients) > 1 for blend in found) == soups
    assert sum(blend.share < 1 for blend in found) == 3 * n
    assert len(set(found)) == len(found)


def world(seed, signals, n=200):
    """Labels, and probabilities (N, K) of models of such signals."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, n)
    found = {}
    for blend, signal in signals.items():
        found[blend] = rng.normal(size=(n, CLASSES))
        found[blend][np.arange(n), labels] += signal
    return labels, {blend: softmax(each, axis=1) for blend, each in found.items()}


THREE = {Blend((1,)): 2.0, Blend((2,)): 1.8, Blend((3,)): 1.6}


def test_a_soup_takes_in_what_makes_it_better_and_leaves_out_what_does_not():
    soups = {Blend((1, 2)): 3.0, Blend((1, 3)): 1.0, Blend((2, 3)): 1.0, Blend((1, 2, 3)): 2.0}
    labels, said = world(0, {**THREE, **soups})
    assert greedy_soup([(1, 2, 3)], said, labels, "multiclass", "f1_macro") == [Blend((1, 2))]
    worse = {blend: (0.5 if len(blend.ingredients) > 1 else signal) for blend, signal in {**THREE, **soups}.items()}
    labels, said = world(0, worse)
    assert greedy_soup([(1, 2, 3)], said, labels, "multiclass", "f1_macro") == []
    assert choose_blend([(1, 2, 3)], said, labels, "multiclass") is None


def test_the_best_average_is_chosen_of_whatever_sort_and_its_gain_is_told():
    part = Blend((2,), 0.5)
    labels, said = world(1, {**THREE, Blend((1, 2)): 2.2, part: 4.0})
    assert choose_blend([(1, 2), (3,)], said, labels, "multiclass") == part
    gain = blend_gain([(1, 2), (3,)], said, labels, "multiclass")
    assert gain.gain > 2 * gain.standard_error > 0
    assert gain.log_loss_gain > 0


def test_what_only_looks_better_by_chance_gains_nothing_on_average():
    """Many averages that are all as good as the models: the best of them on the samples that chose it is no better."""
    gains, seeming = [], []
    for seed in range(20):
        labels, said = world(
            seed, dict.fromkeys([Blend((1,)), *blends_of((1,)), *(Blend((2,), 0.1 * i) for i in range(9))], 1.5)
        )
        chosen = choose_blend([(1,)], said, labels, "multiclass")
        gains.append(blend_gain([(1,)], said, labels, "multiclass", seed=seed).gain)
        right = {blend: (each.argmax(1) == labels).mean() for blend, each in said.items()}
        seeming.append(right[chosen] - right[Blend((1,))])
    assert np.mean(seeming) > 0.02
    assert abs(np.mean(gains)) < np.mean(seeming) / 2
