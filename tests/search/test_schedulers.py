"""The other ways to decide who is trained further, and a validation split that the user gave, in whole searches."""

import math
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from optuna.trial import TrialState

from automl_tl.engine.slots import parse_slots
from automl_tl.search.configurations import CONTINUES, configurations
from automl_tl.search.schedule import KEPT
from automl_tl.search.search import run_next, run_search, said_of
from automl_tl.search.study import completed
from automl_tl.search.trial import run_trial

INLINE = parse_slots("inline", cores=1)
FOUR = parse_slots("cpu*4", cores=4)
TRAINS = ("last_k", "full_finetune")


class Host:
    """Runs trials in this process and remembers what was asked."""

    def __init__(self):
        self.orders = []

    def run(self, slot, function, order):
        self.orders.append(order)
        return function(order)

    def stop(self):
        pass


def carry_out(search, children, slots=INLINE):
    run_search(search, slots, children, threading.Event(), lambda: None)
    return configurations(search.study)


def score_of(order):
    """A score that a spec always has, whatever its epochs."""
    return 0.5 + order.seed % 1000 / 4000


def stages(children):
    return [None if order.stage is None else order.stage.until for order in children.orders]


# One epoch, then the best to the end.


@pytest.mark.parametrize("slots", [INLINE, FOUR])
def test_after_one_epoch_of_all_the_best_few_are_trained_to_the_end(make_search, fake_children, report, slots):
    search = make_search(trials=10, scheduler="one_epoch", max_epochs=9, strategies=TRAINS)
    children = fake_children(lambda order: report(score_of(order)))
    found = carry_out(search, children, slots)
    assert stages(children) == [1] * 10 + [9] * KEPT
    ranked = sorted(found, key=lambda each: -each.done[0].value)
    assert {each.number for each in found if len(each.done) == 2} == {each.number for each in ranked[:KEPT]}
    assert all(each.epochs == 9 for each in ranked[:KEPT])


def test_with_a_time_limit_first_epochs_come_first_and_then_the_best(make_search, fake_children, report):
    search = make_search(deadline=math.inf, scheduler="one_epoch", max_epochs=9, strategies=TRAINS)
    search = replace(search, budget=replace(search.budget, deadline=time.time() + 2.0))

    def outcome(order):
        time.sleep(0.02)
        return report(score_of(order), seconds=0.02)

    children = fake_children(outcome)
    found = carry_out(search, children)
    further = [place for place, order in enumerate(children.orders) if order.goes_on_from is not None]
    assert further
    best = max(found[: further[0]], key=lambda each: each.done[0].value)
    assert children.orders[further[0]].goes_on_from == search.directory / str(best.number)
    assert not any(each.running for each in found)


def test_a_real_search_by_one_epoch_goes_on_where_it_stopped(make_search):
    search = make_search(trials=4, scheduler="one_epoch", max_epochs=3, strategies=TRAINS)
    children = Host()
    found = carry_out(search, children)
    assert stages(children) == [1] * 4 + [3] * KEPT
    for each in found:
        epochs = [epoch for trial in each.done for epoch in trial.intermediate_values]
        assert epochs == list(range(1, each.epochs + 1))


# All to the end.


def test_without_a_scheduler_all_are_trained_to_the_end_at_once(make_search):
    search = make_search(trials=3, scheduler="none", max_epochs=3, strategies=TRAINS)
    children = Host()
    found = carry_out(search, children)
    assert stages(children) == [None] * 3
    assert [(len(each.trials), each.epochs) for each in found] == [(1, 3)] * 3
    assert all(each.ended for each in found)  # the rate has fallen to zero: there is no going on


def test_one_that_the_deadline_cut_off_is_trained_to_the_end_first(make_search, fake_children, report):
    search = make_search(trials=2, scheduler="none", max_epochs=9, strategies=TRAINS)
    cut_off = fake_children(lambda order: report(0.5, epochs=4, resumable=True, ending="deadline"))
    run_next(search, INLINE[0], cut_off, threading.Event(), threading.Lock())
    children = fake_children(lambda order: report(0.6))
    found = carry_out(search, children)
    assert [order.goes_on_from for order in children.orders] == [search.directory / "0", None]
    assert [(each.epochs, len(each.done)) for each in found] == [(9, 2), (9, 1)]


# Optuna's own.


def test_by_hyperband_optuna_ends_trials_and_nobody_goes_on(make_search):
    space = {"optimizer": "sgd", "batch_size": 16}
    search = make_search(trials=12, scheduler="hyperband", max_epochs=9, strategies=TRAINS, overrides=space)
    children = Host()
    found = carry_out(search, children)
    assert len(found) == len(search.study.trials) == 12
    assert stages(children) == [None] * 12
    assert {order.hyperband for order in children.orders} == {9}
    pruned = [trial for trial in search.study.trials if trial.state == TrialState.PRUNED]
    assert 0 < len(pruned) < 12
    for trial in pruned:
        assert trial.user_attrs["ending"] == "pruned"
        assert len(trial.intermediate_values) == trial.user_attrs["epochs"] < 9
    assert all(trial.user_attrs["epochs"] == 9 for trial in completed(search.study))


def test_only_hyperband_prunes(make_search):
    search = make_search(trials=1, max_epochs=3, strategies=TRAINS)
    children = Host()
    carry_out(search, children)
    assert [order.hyperband for order in children.orders] == [None]


# The user's own validation split.


@pytest.mark.parametrize("scheduler", ["promotion", "none"])
def test_a_validation_split_that_was_given_judges_all(make_search, wine_with_validation, scheduler):
    """Those that are trained, at every rung, and those that are solved for; no score is moved."""
    search = make_search(
        data=wine_with_validation,
        trials=5,
        scheduler=scheduler,
        max_epochs=3,
        recipes=True,
        strategies=("linear_probe", *TRAINS),
    )
    task, development = search.prepared.task, search.prepared.development()
    children = Host()
    found = carry_out(search, children)
    n_train, n = len(task.train), len(task.train) + len(task.validation)
    assert np.array_equal(development.given, np.arange(n_train, n))
    fits = {each.trials[0].user_attrs["spec"]["fit"] for each in found}
    assert "descent" in fits
    assert len(fits) > 1
    assert any(CONTINUES in trial.user_attrs for trial in search.study.trials) == (scheduler == "promotion")
    for order in children.orders:
        assert np.array_equal(order.train.chosen, np.arange(n_train))
        assert np.array_equal(order.judged.labels(), task.validation.labels)
    for trial in completed(search.study):
        assert np.array_equal(said_of(search, trial.number).rows, development.given)
        assert trial.value == trial.user_attrs["score"] == trial.user_attrs["validation"]["f1_macro"]


def test_without_one_nobody_is_judged_by_what_it_learnt_from(make_search):
    search = make_search(trials=4, strategies=("linear_probe", *TRAINS), recipes=True)
    children = Host()
    carry_out(search, children)
    n = len(search.prepared.development().labels)
    for order in children.orders:
        if order.judged is None:
            assert order.spec["fit"] != "descent"
            assert len(order.train.chosen) == n
        else:
            assert not set(order.train.chosen) & set(order.judged.chosen)
            assert len(order.train.chosen) + len(order.judged.chosen) == n
    assert {order.judged is None for order in children.orders} == {True, False}


def test_two_of_one_spec_are_judged_by_the_same_samples(make_search):
    """So a configuration that is repeated after a crash is the same configuration."""
    search = make_search(trials=2, strategies=TRAINS)
    children = Host()
    carry_out(search, children)
    first = children.orders[0]
    again = run_trial(replace(first, directory=search.directory / "again"))
    assert again.score == search.study.trials[0].user_attrs["score"]
