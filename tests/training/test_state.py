from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from automl_tl.errors import RunError
from automl_tl.training.state import TrainingState, load_state, save_state
from automl_tl.training.train import Stage


@pytest.fixture(scope="module")
def state(wine):
    """Return the state of a training with momentum and a pull, after two epochs."""
    spec = wine.spec(l2_sp=0.1, batch_size=64, patience=3)
    return wine.train(spec, stage=Stage(until=2))[1].state


def assert_same(first: TrainingState, second: TrainingState):
    for field in fields(TrainingState):
        ours, theirs = getattr(first, field.name), getattr(second, field.name)
        if isinstance(ours, dict) and any(isinstance(value, torch.Tensor) for value in ours.values()):
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[name], theirs[name]) for name in ours)
            assert all(ours[name].dtype == theirs[name].dtype for name in ours)
        else:
            assert ours == theirs


def test_a_state_comes_back_from_the_disk(state, tmp_path):
    path = tmp_path / "trial" / "state.safetensors"
    save_state(state, path)
    assert_same(load_state(path), state)
    assert list(path.parent.iterdir()) == [path]
    assert (len(state.curve), state.epoch, state.step) == (2, 2, 60)
    assert state.deployed.keys() == state.weights.keys()
    assert not torch.equal(state.deployed["head.weight"], state.weights["head.weight"])


@given(
    curve=st.lists(st.floats(0, 1), max_size=5),
    lowest=st.floats(0, allow_infinity=True, allow_nan=False),
    position=st.integers(0, 2**128 - 1),
)
@settings(deadline=None, max_examples=30)
def test_numbers_come_back_as_they_were(state, tmp_path_factory, curve, lowest, position):
    path = tmp_path_factory.mktemp("state") / "state"
    generator = {"bit_generator": "PCG64", "state": {"state": position, "inc": 1}, "has_uint32": 0, "uinteger": 0}
    changed = TrainingState(
        **{field.name: getattr(state, field.name) for field in fields(TrainingState)}
        | {"curve": tuple(curve), "lowest": lowest, "generator": generator}
    )
    save_state(changed, path)
    assert_same(load_state(path), changed)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_file_that_was_cut_off_is_named(state, tmp_path, share):
    path = tmp_path / "state"
    save_state(state, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(RunError, match=f"{path} is damaged .*; delete it"):
        load_state(path)


@pytest.mark.parametrize(
    "tensors", [{"weights/head.weight": torch.ones(2)}, {"plain": torch.ones(3, dtype=torch.uint8)}]
)
def test_a_file_of_something_else_is_named(tmp_path, tensors):
    save_file(tensors, tmp_path / "state")
    with pytest.raises(RunError, match=r"is no training state .*; delete it, and the trial starts over"):
        load_state(tmp_path / "state")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RunError, match="state is missing"):
        load_state(tmp_path / "state")
