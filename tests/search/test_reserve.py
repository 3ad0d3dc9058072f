"""How much of the time the finish is left."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
from optuna.trial import create_trial

from automl_tl.config import FinishConfig
from automl_tl.search.finalists import ENOUGH, LONGER
from automl_tl.search.recipes import MAX_RECIPES, recipe_parameters
from automl_tl.search.reserve import deadline_of, leave_test_its_time
from automl_tl.search.search import Clock
from automl_tl.search.trial import STATE

DEADLINE, LAST_MOMENT, END = 650.0, 900.0, 1000.0


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """A time that stands still, in seconds since the search began."""
    clock = SimpleNamespace(time=lambda: clock.now, now=0.0)
    monkeypatch.setattr("automl_tl.search.reserve.time", clock)
    return clock


@pytest.fixture
def timed(make_search):
    """A search with a time limit, and what may be told to its study."""
    search = make_search(strategies=("linear_probe", "full_finetune"))
    budget = replace(search.budget, deadline=DEADLINE, last_moment=LAST_MOMENT, end=END)
    return replace(search, budget=budget)


def tell(search, value, *, epochs, seconds, goes_on=True):
    """A complete trial: a head that was solved for, or layer groups that were trained and may go on."""
    specs = {name: spec for name, spec, _ in recipe_parameters(search.space, search.context, MAX_RECIPES)}
    spec = specs["full fine-tuning (source_mlp)" if epochs else "linear probe (source_mlp)"]
    told = {"epochs": epochs, "seconds": seconds, "spec": spec.to_json(), "validation": {"log_loss": 0.5}}
    search.study.add_trial(create_trial(value=value, user_attrs=told))
    if epochs and goes_on:
        directory = search.directory / str(len(search.study.trials) - 1)
        directory.mkdir(parents=True)
        (directory / STATE).touch()


@pytest.mark.parametrize(("probe", "near"), [(0.7, True), (0.9, False)])
def test_there_is_a_share_for_the_finish_once_something_trained_is_near_the_best(timed, probe, near):
    assert deadline_of(timed) == LAST_MOMENT
    tell(timed, probe, epochs=0, seconds=1.0)
    assert deadline_of(timed) == LAST_MOMENT
    tell(timed, 0.69, epochs=3, seconds=30.0)
    assert deadline_of(timed) == (DEADLINE if near else LAST_MOMENT)


@pytest.mark.parametrize(
    ("epochs", "seconds", "expected"),
    [
        (3, 100.0, DEADLINE),  # on two folds, and further
        (9, 300.0, END - 1.0 - LONGER * 300.0 * ENOUGH / 9),
        (20, 180.0, LAST_MOMENT),  # three epochs more take less than is always left
        (3, 400.0, DEADLINE),  # three epochs more take longer than the share
    ],
)
def test_what_takes_too_long_to_be_trained_anew_leaves_the_time_to_the_search(timed, epochs, seconds, expected):
    tell(timed, 0.5, epochs=0, seconds=1.0)
    tell(timed, 0.7, epochs=epochs, seconds=seconds)
    assert deadline_of(timed) == pytest.approx(expected, rel=0, abs=1e-3)


def test_what_cannot_go_on_needs_the_time_to_be_trained_anew(timed):
    """Such as what was stopped early."""
    tell(timed, 0.7, epochs=14, seconds=160.0, goes_on=False)
    assert deadline_of(timed) == pytest.approx(END - LONGER * 160.0, rel=0, abs=1e-3)


def test_a_larger_share_makes_room_for_folds_and_a_soup_needs_more_of_it(timed):
    tell(timed, 0.5, epochs=0, seconds=1.0)
    tell(timed, 0.7, epochs=9, seconds=180.0)
    assert deadline_of(timed) > DEADLINE
    earlier = replace(timed.budget, deadline=500.0)
    assert deadline_of(replace(timed, budget=earlier)) == 500.0
    soup = replace(earlier, finish=FinishConfig(model="soup"))  # whose ingredients are trained anew
    assert deadline_of(replace(timed, budget=soup)) > 500.0


def test_what_is_found_in_the_time_of_the_folds_goes_on_unless_there_is_still_time_for_them(timed, clock):
    tell(timed, 0.7, epochs=3, seconds=50.0)
    clock.now = DEADLINE + 100.0
    assert deadline_of(timed) == DEADLINE
    clock.now = DEADLINE + 250.0
    assert deadline_of(timed) > DEADLINE


def test_a_validation_split_that_is_given_leaves_nothing_to_train_on_folds(timed):
    tell(timed, 0.7, epochs=3, seconds=10.0)
    assert deadline_of(timed) == DEADLINE
    task = replace(timed.prepared.task, validation_given=True)
    given = replace(timed, prepared=replace(timed.prepared, task=task))
    assert deadline_of(given) == LAST_MOMENT
    soup = replace(timed.budget, finish=FinishConfig(model="soup"))
    assert deadline_of(replace(given, budget=soup)) == DEADLINE


def test_where_a_prediction_must_be_fast_others_may_be_confirmed_than_the_best(timed):
    tell(timed, 0.7, epochs=9, seconds=300.0)
    assert deadline_of(timed) > DEADLINE
    fast = replace(timed.budget, finish=FinishConfig(latency_ms=5.0))
    assert deadline_of(replace(timed, budget=fast)) == DEADLINE


@pytest.mark.parametrize(("a_row", "earlier"), [(0.5, 0.5), (1e3, 0.1 * END), (0.0, 0.0)])
def test_the_test_split_is_given_its_time(timed, a_row, earlier):
    """What it takes to pass it, up to a tenth of the limit."""
    n_test = len(timed.prepared.task.test)
    assert n_test > 0
    known = {"source_mlp": SimpleNamespace(network=SimpleNamespace(seconds_per_row=a_row))}
    timed = replace(timed, stored=known, favored={"source_mlp": 0.9}, clock=Clock(began=0.0))
    found = leave_test_its_time(timed).budget
    taken = earlier * n_test if a_row == 0.5 else earlier
    assert taken <= 0.1 * END
    assert (found.deadline, found.last_moment, found.end) == (DEADLINE - taken, LAST_MOMENT - taken, END - taken)


def test_where_nothing_is_known_of_a_pass_the_moments_stay(timed, make_search):
    assert leave_test_its_time(timed) is timed
    unlimited = replace(make_search(trials=3), favored={"source_mlp": 0.9})
    assert leave_test_its_time(unlimited) is unlimited


def test_without_a_limit_there_is_no_deadline(make_search):
    assert deadline_of(make_search(trials=3)) is None
    assert deadline_of(make_search(deadline=math.inf)) == math.inf
    assert deadline_of(make_search(deadline=5.0)) == 5.0
