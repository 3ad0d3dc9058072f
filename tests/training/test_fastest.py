from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from automl_tl.features.rows import ArrayValues, StoredRows, TokenRows, ViewRows
from automl_tl.plugin import GroupPlan
from automl_tl.training import fastest as module
from automl_tl.training.fastest import fastest, fastest_pass
from automl_tl.training.train import Labelled

ALL = ("float32", "channels_last", "bfloat16")


@pytest.fixture
def memory(tmp_path):
    return tmp_path / "cache" / "fastest.json"


@pytest.fixture(autouse=True)
def bfloat16(monkeypatch):
    """Let every machine be one that has bfloat16."""
    monkeypatch.setattr(module, "has_bfloat16", lambda device: True)


@pytest.fixture
def clock(monkeypatch):
    """Return a function that lets each precision take these seconds, and a list of what was timed."""
    timed, plain = [], module._time

    def write(**seconds):
        def time(candidates, network, attempt, device):
            plain(candidates, network, attempt, device)  # everything happens, only the clock is another
            timed.append(tuple(candidates))
            return {candidate: seconds[candidate] for candidate in candidates}

        monkeypatch.setattr(module, "_time", time)
        return timed

    return write


def tuned(*groups):
    return tuple(GroupPlan(group=group, action="tune") for group in groups)


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ((1.0, 0.96, 0.86), "float32"),  # too little to be sure of
        ((1.0, 0.95, 0.86), "channels_last"),
        ((1.0, 0.96, 0.85), "bfloat16"),
        ((1.0, 0.5, 0.45), "channels_last"),  # beats the plain layout by far, the better one by too little
        ((1.0, 0.5, 0.42), "bfloat16"),
        ((1.0, 2.0, 3.0), "float32"),
    ],
)
def test_the_fastest_by_a_margin_is_chosen_and_remembered(digits, memory, clock, seconds, chosen):
    timed = clock(**dict(zip(ALL, seconds, strict=True)))
    spec = digits.spec(*tuned("conv4"))
    model, rows = digits.model(spec), digits.data().train
    assert fastest(model, rows, spec, "cpu", memory) == chosen
    assert fastest(model, rows, spec, "cpu", memory) == chosen
    assert timed == [ALL]
    (answer,) = json.loads(memory.read_text()).values()
    assert answer == {"fastest": chosen, "seconds": dict(zip(ALL, seconds, strict=True))}
    assert list(memory.parent.iterdir()) == [memory]


def test_each_cut_shape_and_machine_is_timed_for_itself(digits, memory, clock, monkeypatch):
    timed, rows = clock(float32=1.0, channels_last=1.0, bfloat16=1.0), digits.data().train
    for plans in (tuned("conv4"), tuned("conv3", "conv4"), tuned("conv4")):
        spec = digits.spec(*plans)
        fastest(digits.model(spec), rows, spec, "cpu", memory)
    assert len(timed) == 2
    smaller = replace(rows.rows, pixels=ArrayValues(rows.rows.pixels.values[..., :8, :8]))
    fastest(digits.model(spec), replace(rows, rows=smaller), spec, "cpu", memory)
    assert len(timed) == 3
    monkeypatch.setattr(module, "_cpu", lambda: "another one")
    fastest(digits.model(spec), rows, spec, "cpu", memory)
    assert len(timed) == 4
    monkeypatch.setattr(torch, "__version__", "99")
    fastest(digits.model(spec), rows, spec, "cpu", memory)
    assert len(timed) == len(json.loads(memory.read_text())) == 5


def test_each_depth_that_is_read_is_timed_for_itself(digits, memory, clock):
    """A network of one group may be too small for bfloat16, and the whole one gain most by it."""
    timed, rows = clock(float32=1.0, channels_last=1.0, bfloat16=0.5), digits.data().train
    groups = [group.group for group in digits.spec(*tuned("conv4")).plan]
    for depth in (1, len(groups), 1):
        plan = tuple(GroupPlan(group=g, action="tune" if n < depth else "drop") for n, g in enumerate(groups))
        spec = digits.spec(*plan)
        fastest(digits.model(spec), rows, spec, "cpu", memory)
    assert len(timed) == 2


@pytest.mark.parametrize("damage", ["", "{", "[1]", "\xff", '{"KEY": 7}', '{"KEY": {"fastest": "float8"}}'])
def test_a_damaged_memory_is_ignored_and_replaced(digits, memory, clock, damage):
    timed = clock(float32=1.0, channels_last=0.5, bfloat16=1.0)
    spec = digits.spec(*tuned("conv4"))
    model, rows = digits.model(spec), digits.data().train
    fastest(model, rows, spec, "cpu", memory)
    (key,) = json.loads(memory.read_text())
    memory.write_bytes(damage.replace("KEY", key).encode("latin-1"))
    for _ in range(2):
        assert fastest(model, rows, spec, "cpu", memory) == "channels_last"
    assert len(timed) == 2
    assert json.loads(memory.read_text())[key]["fastest"] == "channels_last"


def test_a_memory_that_cannot_be_written_is_done_without(digits, tmp_path, clock):
    clock(float32=1.0, channels_last=1.0, bfloat16=0.1)
    (tmp_path / "file").write_text("")
    spec = digits.spec(*tuned("conv4"))
    memory = tmp_path / "file" / "fastest.json"
    assert fastest(digits.model(spec), digits.data().train, spec, "cpu", memory) == "bfloat16"


def test_nothing_is_chosen_that_this_machine_lacks(digits, memory, clock, monkeypatch):
    timed = clock(float32=1.0, channels_last=0.9, bfloat16=0.1)
    spec = digits.spec(*tuned("conv4"))
    model, rows = digits.model(spec), digits.data().train
    assert fastest(model, rows, spec, "cpu", memory) == "bfloat16"
    monkeypatch.setattr(module, "has_bfloat16", lambda device: False)
    assert fastest(model, rows, spec, "cpu", memory) == "channels_last"
    assert timed == [ALL, ALL[:2]]


@pytest.mark.parametrize("norm", ["eval", "train"])
def test_the_model_and_the_random_streams_stay_as_they_are(digits, memory, norm):
    late = GroupPlan(group="conv4", action="tune", unfreeze_epoch=1)
    spec = digits.spec(*tuned("conv3"), late, norm=norm, dropout=0.5)
    model, rows = digits.model(spec), digits.data().train
    model.begin_epoch(0)
    rows = replace(rows, rows=ViewRows((rows.rows, rows.rows)))  # which of them is drawn
    before = copy.deepcopy(model)
    torch.manual_seed(5)
    np.random.seed(5)
    expected = torch.rand(3), np.random.rand(3)
    torch.manual_seed(5)
    np.random.seed(5)
    fastest(model, rows, spec, "cpu", memory)
    assert torch.equal(torch.rand(3), expected[0])
    assert np.array_equal(np.random.rand(3), expected[1])
    for (name, tensor), (_, original) in zip(model.state_dict().items(), before.state_dict().items(), strict=True):
        assert torch.equal(tensor, original), name
        assert tensor.stride() == original.stride()
    for own, original in zip(model.parameters(), before.parameters(), strict=True):
        assert own.grad is None
        assert own.requires_grad == original.requires_grad
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]


def test_a_head_on_stored_features_is_not_worth_timing(digits, memory, clock):
    timed = clock()
    spec = digits.spec(GroupPlan(group="conv4", action="freeze"))
    features = StoredRows(ArrayValues(np.ones((48, 128), dtype=np.float32)), "float32")
    rows = Labelled(rows=features, labels=digits.data().train.labels, start=4)
    assert fastest(digits.model(spec), rows, spec, "cpu", memory) == "float32"
    assert timed == []


def test_tables_and_texts_have_no_layout_to_choose(wine, memory, clock):
    timed = clock(float32=1.0, bfloat16=1.0)
    spec = wine.spec()
    fastest(wine.model(spec), wine.data().train, spec, "cpu", memory)
    batch = TokenRows(ArrayValues(np.arange(6), np.array([0, 2, 6])), 0).batch(np.arange(2), "cpu")
    fastest_pass([nn.Identity()], batch, "cpu", memory, "texts")
    assert timed == [("float32", "bfloat16")] * 2


def test_no_more_rows_than_a_micro_batch(digits, memory, clock):
    clock(float32=1.0, channels_last=1.0, bfloat16=1.0)
    sizes, spec = [], digits.spec(*tuned("conv4"))
    model, rows = digits.model(spec), digits.data().train
    for micro_batch in (None, 3):
        model.groups.conv1.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
        fastest(model, rows, spec, "cpu", memory.with_name(f"{micro_batch}.json"), micro_batch=micro_batch)
        assert set(sizes) == {micro_batch or module.SHORT_BATCH}
        sizes.clear()


def test_texts_of_middle_length_are_taken():
    lengths = np.array([9, 1, 5, 2, 8, 4, 7, 3, 6])
    texts = TokenRows(ArrayValues(np.zeros(lengths.sum(), dtype=np.int32), np.concatenate([[0], lengths.cumsum()])), 0)
    assert sorted(lengths[module.typical_rows(texts, 3)]) == [4, 5, 6]
    assert len(module.typical_rows(texts, 20)) == 9


def test_a_pass_is_timed_forward_only_on_a_copy(digits, memory):
    seen = []

    class Group(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, maps):
            seen.append((self, torch.is_grad_enabled(), self.training, maps.shape))
            return self.norm(maps)

    group, batch = Group().train(), torch.randn(2, 3, 4, 4)
    state = copy.deepcopy(group.state_dict())
    assert fastest_pass([group], batch, "cpu", memory, "net") in ALL
    assert len(seen) == 9
    assert {facts[1:] for facts in seen} == {(False, False, batch.shape)}
    assert not any(facts[0] is group for facts in seen)
    assert group.training
    assert all(torch.equal(group.state_dict()[key], value) for key, value in state.items())
    fastest_pass([group], batch, "cpu", memory, "net")
    assert len(seen) == 9
