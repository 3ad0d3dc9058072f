"""Heads on the same stored features: who gets company, what it shares, and that nobody notices it."""

import threading
from dataclasses import replace

import numpy as np
import pytest
from optuna.trial import TrialState

from automl_tl.engine.slot import Children
from automl_tl.engine.slots import parse_slots
from automl_tl.engine.spread import Crew
from automl_tl.model.spec import Optimization, Regularization, spec_from_json
from automl_tl.search import search as module
from automl_tl.search.search import order_for, run_next, run_search, said_of
from automl_tl.search.space import default_space
from automl_tl.search.survey import survey
from automl_tl.search.together import AT_ONCE, run_together, wants_company
from automl_tl.search.trial import run_trial

INLINE = parse_slots("inline", cores=1)


def descending(trial, context):
    """The default space, of heads that are trained step by step on frozen layer groups."""
    spec = default_space(trial, context)
    plain = replace(spec.regularization, augmentation="none", views=0, mixup=0.0, activation_noise=0.0)
    return replace(spec, fit="descent", joined=(), regularization=plain)


@pytest.fixture
def heads(make_picture_search, crew):
    """A search whose features are stored and whose trials all train a linear head by descent."""
    fixed = {"strategy": "linear_probe", "head": "linear", "fit": "descent", "pooling": "mean", "init_head": "random"}
    search = make_picture_search(
        space=descending, strategies=("linear_probe",), trials=10, max_epochs=2, overrides=fixed
    )
    return survey(search, crew, threading.Event(), lambda text: None, lambda what, done, n: None)[0]


def settled(search, state=TrialState.COMPLETE):
    return search.study.get_trials(deepcopy=False, states=(state,))


def test_a_trial_of_a_small_head_is_run_with_company(heads, crew):
    run_next(heads, INLINE[0], crew.children, threading.Event(), threading.Lock())
    trials = settled(heads)
    assert len(trials) == AT_ONCE
    assert {trial.user_attrs["trained_with"] for trial in trials} == {AT_ONCE - 1}
    assert len({trial.params["batch_size"] for trial in trials if "batch_size" in trial.params}) <= 1
    assert len({tuple(sorted(trial.params.items())) for trial in trials}) == AT_ONCE
    kept = [trial for trial in trials if (heads.directory / str(trial.number) / "model.safetensors").exists()]
    assert 0 < len(kept) < AT_ONCE  # those of the best


def test_those_that_train_at_once_learn_from_the_same_samples(heads, crew):
    """Others are divided anew for each configuration."""
    run_next(heads, INLINE[0], crew.children, threading.Event(), threading.Lock())
    trials = settled(heads)
    assert len({trial.user_attrs["draw"] for trial in trials}) == 1
    judged = [said_of(heads, trial.number).rows for trial in trials]
    assert all(np.array_equal(rows, judged[0]) for rows in judged)
    alone = {trial.number: Optimization(learning_rate=1e-2) for trial in trials[:2]}
    divided = [planned(heads, optimization, draw=number)[0].judged.chosen for number, optimization in alone.items()]
    assert not np.array_equal(*divided)


def test_who_is_batched_with_others_learns_as_if_it_were_alone(heads):
    [alone] = planned(heads, Optimization(learning_rate=1e-2, batch_size=8))
    others = planned(heads, *[Optimization(learning_rate=rate, batch_size=8) for rate in (1e-3, 3e-3, 3e-2)])
    plain = replace(spec_from_json(alone.spec).regularization, dropout=0.0)
    spec = replace(spec_from_json(alone.spec), regularization=plain).to_json()
    one, *_ = run_together([replace(alone, spec=spec), *others])
    again = run_trial(replace(alone, spec=spec))
    assert one.facts["trained_with"] == 3
    assert one.facts["epochs"] == again.facts["epochs"] == 2
    assert one.facts["validation"]["log_loss"] == pytest.approx(again.facts["validation"]["log_loss"], rel=1e-3)


def test_company_never_exceeds_the_budget(heads, crew):
    run_search(heads, INLINE, crew.children, threading.Event(), lambda: None)
    assert len(settled(heads)) == 10
    assert not settled(heads, TrialState.WAITING)


def test_who_trains_layer_groups_or_is_solved_for_goes_alone(heads):
    stored = heads.stored["trained0"]

    def wanted(**changes):
        trial = heads.study.ask()
        spec = replace(descending(trial, heads.context), **changes)
        heads.study.tell(trial, state=TrialState.FAIL)
        return wants_company(spec, stored, heads.host, 10, "cpu")

    assert wanted()
    assert not wanted(fit="ridge")
    assert not wanted(regularization=Regularization(augmentation="light"))
    assert wanted(regularization=Regularization(augmentation="light", views=2))
    trial = heads.study.ask()
    assert not wants_company(descending(trial, heads.context), None, heads.host, 10, "cpu")


def planned(search, *optimizations, draw=0):
    """Orders of trials that differ in how they descend."""
    orders = []
    for optimization in optimizations:
        trial = search.study.ask()
        spec = replace(descending(trial, search.context), optimization=optimization)
        trial.set_user_attr("spec", spec.to_json())
        trial.set_user_attr("draw", draw)
        orders.append(order_for(search, trial, spec, INLINE[0]))
    return orders


def test_one_that_fails_leaves_the_others_alone(heads):
    orders = planned(heads, *[Optimization(learning_rate=rate, batch_size=8) for rate in (1e-3, 1e-2, 3e-3, 1e-4)])
    broken = replace(orders[2], spec={**orders[2].spec, "head": "nobody"})
    reports = run_together([orders[0], orders[1], broken, orders[3]])
    assert [report.state for report in reports] == ["complete", "complete", "failed", "complete"]
    assert "nobody" in reports[2].facts["reason"]


def test_steps_of_another_shape_are_made_apart(heads):
    sizes = (8, 8, 16, 8, 8)
    orders = planned(heads, *[Optimization(learning_rate=1e-2, batch_size=size) for size in sizes])
    reports = run_together(orders)
    assert [report.state for report in reports] == ["complete"] * 5
    assert [report.facts.get("trained_with") for report in reports] == [3, 3, None, 3, 3]


@pytest.mark.slow
def test_a_child_that_dies_costs_each_of_them_one_try(heads, monkeypatch, tmp_path):
    marker = tmp_path / "died"

    def dies_once(orders):
        import os
        import signal

        if not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return run_together(orders)

    monkeypatch.setattr(module, "run_together", dies_once)
    slots = parse_slots("cpu", cores=1)
    with Children(slots) as children:
        crew = Crew(slots=slots, children=children)
        run_next(heads, slots[0], crew.children, threading.Event(), threading.Lock())
        failed, waiting = settled(heads, TrialState.FAIL), settled(heads, TrialState.WAITING)
        assert len(failed) == len(waiting) == AT_ONCE
        while settled(heads, TrialState.WAITING):
            run_next(heads, slots[0], children, threading.Event(), threading.Lock())
    assert len(settled(heads)) >= AT_ONCE
