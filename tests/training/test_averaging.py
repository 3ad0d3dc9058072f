from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from automl_tl.plugin import GroupPlan
from automl_tl.training.averaging import Average, are_finite, decay_at


@pytest.fixture
def model(digits):
    return digits.model(digits.spec(GroupPlan(group="conv4", action="tune"), norm="train"))


def test_all_floating_tensors_that_training_changes_are_averaged_but_not_the_scale(model):
    names = set(Average(model, 0.9).values)
    assert {"head.weight", "head.bias", "groups.conv4.0.weight", "groups.conv4.1.running_var"} <= names
    assert not names & {"feature_shift", "feature_scale", "groups.conv4.1.num_batches_tracked"}
    assert not any(name.startswith("groups.conv1") for name in names)


@given(decay=st.floats(0, 0.9999), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=25)
def test_the_average_is_what_its_definition_says(digits, decay, seed):
    model = digits.model(digits.spec(GroupPlan(group="conv4", action="freeze")))
    average, generator = Average(model, decay), torch.Generator().manual_seed(seed)
    expected = model.head.weight.detach().double()
    for step in range(8):
        with torch.no_grad():
            model.head.weight.copy_(torch.randn(model.head.weight.shape, generator=generator))
        average.update(step)
        share = min(decay, (1 + step) / (10 + step))
        expected = share * expected + (1 - share) * model.head.weight.detach().double()
    torch.testing.assert_close(average.values["head.weight"].double(), expected, atol=1e-5, rtol=1e-5)


def test_without_decay_the_average_is_the_weights(model):
    average = Average(model, 0.0)
    with torch.no_grad():
        model.head.weight.mul_(1.2345)
    average.update(7)
    assert torch.equal(average.values["head.weight"], model.head.weight)


def test_what_does_not_change_stays_bit_for_bit(model):
    average = Average(model, 0.999)
    for step in range(50):
        average.update(step)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in average.values.items())


def test_decay_grows_up_to_its_limit():
    decays = [decay_at(step, 0.9) for step in range(200)]
    assert decays[0] == 0.1
    assert decays == sorted(decays)
    assert decays[-1] == 0.9


def test_averages_stand_in_for_a_while_even_when_something_fails(model):
    average, own = Average(model, 0.9), model.head.weight.detach().clone()
    average.set({name: torch.zeros_like(value) for name, value in average.values.items()})
    with average.standing_in():
        assert not model.head.weight.any()
    assert torch.equal(model.head.weight, own)
    with pytest.raises(ZeroDivisionError), average.standing_in():
        raise ZeroDivisionError
    assert torch.equal(model.head.weight, own)


def test_one_weight_that_is_not_finite_stays_in_the_average(model):
    average = Average(model, 0.9)
    assert are_finite(average.values)
    with torch.no_grad():
        model.head.weight[0, 0] = float("inf")
    average.update(0)
    with torch.no_grad():
        model.head.weight[0, 0] = 0.0
    average.update(1)
    assert not are_finite(average.values)
