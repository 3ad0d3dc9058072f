"""How long a prediction takes: of tables through a small network, with a clock that tests can wind."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from automl_tl.config import DataConfig
from automl_tl.data import load_task
from automl_tl.features.store import GIB, FeatureStore
from automl_tl.features.task import lay_out_task
from automl_tl.finish import latency
from automl_tl.finish.latency import Stopwatch, latency_ms
from automl_tl.finish.refit import build_model
from automl_tl.host import load_host
from automl_tl.model.ensemble import Adjustment, Member
from automl_tl.model.spec import TrialSpec
from automl_tl.plugin import GroupPlan, TransferPlan


@pytest.fixture(scope="module")
def search(tmp_path_factory):
    """Return what of a search a model's time depends on."""
    folder, host = tmp_path_factory.mktemp("latency"), load_host()
    task = load_task(DataConfig(path="sklearn:wine"), seed=0)
    store = FeatureStore(root=folder / "store", budget=GIB)
    prepared = lay_out_task(task, (host.backbone("source_mlp"),), folder / "features", store)
    context = SimpleNamespace(joint_with=None)
    return SimpleNamespace(host=host, prepared=prepared, context=context, source=None, seed=0)


def spec_of(search, *actions, **values):
    groups = search.host.backbone("source_mlp").layer_groups
    plan = TransferPlan(tuple(GroupPlan(group=g, action=a) for g, a in zip(groups, actions, strict=True)))
    return TrialSpec(backbone="source_mlp", plan=plan, weights="random", **values)


@pytest.fixture
def whole(search):
    return spec_of(search, "tune", "tune", "tune")


@pytest.fixture
def clock(monkeypatch):
    """Replace the clock; each prediction takes as many seconds as the list says, the last number again and again."""
    taken, now, begun = [0.01], [0.0], [False]

    def tell():
        if begun[0]:
            now[0] += taken.pop(0) if len(taken) > 1 else taken[0]
        begun[0] = not begun[0]
        return now[0]

    monkeypatch.setattr(latency.time, "perf_counter", tell)
    return taken


def note_sizes(model):
    """Return the list that will say how many samples came at once."""
    sizes = []
    model.head.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    return sizes


def test_it_is_the_median_of_single_samples_without_the_first_ones(search, whole, clock):
    model = build_model(search, whole, "cpu")
    sizes = note_sizes(model)
    clock[:] = [5.0, 5.0, 5.0, 0.4, 0.002]
    assert latency_ms(search, [Member(model=model)], "cpu") == pytest.approx(2.0)
    assert sizes == [1] * (latency.WARM_UP + latency.REPEATS)


def test_what_takes_long_is_measured_a_few_times(search, whole, clock):
    model = build_model(search, whole, "cpu")
    sizes = note_sizes(model)
    clock[:] = [1.5]
    assert latency_ms(search, [Member(model=model)], "cpu") == pytest.approx(1500)
    assert len(sizes) == latency.WARM_UP + latency.FEWEST


def test_the_clock_is_a_real_one(search, whole):
    member = Member(model=build_model(search, whole, "cpu"))
    adjustment = Adjustment(temperature=2.0, bias=(0.0, 0.1, 0.2))
    assert 0 < latency_ms(search, [member], "cpu", adjustment=adjustment) < 10_000


def test_frozen_groups_that_members_share_are_passed_once(search):
    """As they are served: what is frozen in both is one network."""
    frozen = spec_of(search, "freeze", "freeze", "freeze")
    members = [Member(model=build_model(search, frozen, "cpu")) for _ in range(2)]
    passed = []
    for member in members:
        next(iter(member.model.groups.values())).register_forward_pre_hook(lambda *_: passed.append(1))
    latency_ms(search, members, "cpu")
    assert members[0].model.groups is not members[1].model.groups
    assert len(passed) == latency.WARM_UP + latency.REPEATS


def test_what_was_measured_is_not_measured_again(search, whole, monkeypatch):
    measured = []
    monkeypatch.setattr(latency, "latency_ms", lambda search, members, device: measured.append(len(members)) or 1.0)
    watch = Stopwatch(search=search, device="cpu")
    other = replace(whole, optimization=replace(whole.optimization, learning_rate=1e-4))
    part = spec_of(search, "freeze", "tune", "tune")
    short = spec_of(search, "tune", "tune", "drop")
    for spec in (whole, other, part):
        assert watch.milliseconds([spec]) == 1.0
    assert measured == [1]  # neither what has been learnt nor what of it makes a single model slower
    watch.milliseconds([short])
    watch.milliseconds([short, part])
    watch.milliseconds([part, short])
    assert measured == [1, 1, 2]


def test_weights_count_as_they_are_served(search, whole):
    """A prediction that is timed is the prediction that is served: the weighted mean of the members."""
    one, other = (build_model(replace_seed(search, seed), whole, "cpu") for seed in (1, 2))
    members = [Member(model=one, weight=3.0), Member(model=other, weight=1.0)]
    said = []

    latency_ms(search, members, "cpu", adjustment=SimpleNamespace(apply=lambda mean, kind: said.append(mean)))
    assert np.allclose([each.sum() for each in said], 1, atol=1e-5)
    assert {each.shape for each in said} == {(1, 3)}


def replace_seed(search, seed):
    return SimpleNamespace(**{**vars(search), "seed": seed})
