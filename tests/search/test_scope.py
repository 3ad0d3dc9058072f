"""Names and the user's `space:`: every kind of suggestion, fixed, narrowed and widened by every kind of domain."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from automl_tl.config import Range
from automl_tl.errors import ConfigError
from automl_tl.search.scope import ScopedTrial
from automl_tl.testing.draws import Draw


def scoped(overrides=None, **names):
    draw = Draw("low")
    return ScopedTrial(draw, overrides or {}, **names), draw


def test_names_carry_their_scope_and_values_do_not():
    trial, draw = scoped(scope="last_k@net.", alias="last_k.")
    trial.suggest_int("k", 1, 4)
    trial.suggest_float("rate", 0.1, 0.2)
    trial.suggest_categorical("mode", ("a", "b"))

    assert list(draw.space) == ["last_k@net.k", "last_k@net.rate", "last_k@net.mode"]
    assert trial.values == {"k": 1, "rate": 0.1, "mode": "a"}


@pytest.mark.parametrize("key", ["last_k@net.k", "last_k.k"])
def test_the_user_may_write_the_full_name_or_the_owners(key):
    trial, draw = scoped({key: 3}, scope="last_k@net.", alias="last_k.")
    assert trial.suggest_int("k", 1, 4) == 3
    assert draw.space == {}


def test_the_full_name_beats_the_owners():
    trial, _ = scoped({"last_k.k": 2, "last_k@net.k": 3}, scope="last_k@net.", alias="last_k.")
    assert trial.suggest_int("k", 1, 4) == 3


def test_anothers_parameter_is_left_alone():
    trial, _ = scoped({"last_k@other.k": 3, "k": 3}, scope="last_k@net.", alias="last_k.")
    assert trial.suggest_int("k", 1, 4) == 1


def test_without_overrides_the_plugins_domains_hold():
    trial, draw = scoped()
    trial.suggest_float("rate", 1e-5, 1e-2, log=True)
    trial.suggest_float("share", 0.0, 1.0, step=0.25)
    trial.suggest_int("width", 8, 64, log=True)
    trial.suggest_int("depth", 2, 8, step=2)
    assert draw.space == {
        "rate": FloatDistribution(1e-5, 1e-2, log=True),
        "share": FloatDistribution(0.0, 1.0, step=0.25),
        "width": IntDistribution(8, 64, log=True),
        "depth": IntDistribution(2, 8, step=2),
    }


@pytest.mark.parametrize(
    ("domain", "space", "value"),
    [
        (0.3, {}, 0.3),
        (1, {}, 1.0),
        ((0.3,), {}, 0.3),
        ((0.2, 0.4), {"x": CategoricalDistribution((0.2, 0.4))}, 0.2),
        (Range(low=0.2, high=0.2), {}, 0.2),
        (Range(low=0.2, high=0.3), {"x": FloatDistribution(0.2, 0.3)}, 0.2),
        (Range(low=1e-9, high=9, log=True), {"x": FloatDistribution(1e-9, 9, log=True)}, 1e-9),
    ],
    ids=["fixed", "fixed to an int", "one choice", "choices", "point", "narrowed", "widened"],
)
def test_numbers(domain, space, value):
    trial, draw = scoped({"x": domain})
    answer = trial.suggest_float("x", 0.0, 1.0)
    assert (answer, type(answer), draw.space) == (value, float, space)


@pytest.mark.parametrize(
    ("domain", "space", "value"),
    [
        (3, {}, 3),
        (3.0, {}, 3),
        ((2, 9), {"x": CategoricalDistribution((2, 9))}, 2),
        (Range(low=2, high=2), {}, 2),
        (Range(low=2, high=9), {"x": IntDistribution(2, 9)}, 2),
        (Range(low=2, high=9, log=True), {"x": IntDistribution(2, 9, log=True)}, 2),
    ],
    ids=["fixed", "fixed to a float", "choices", "point", "widened", "logarithmic"],
)
def test_whole_numbers(domain, space, value):
    trial, draw = scoped({"x": domain})
    answer = trial.suggest_int("x", 1, 5)
    assert (answer, type(answer), draw.space) == (value, int, space)


@pytest.mark.parametrize(
    ("domain", "space", "value"),
    [
        ("b", {}, "b"),
        (None, {}, None),
        (False, {}, False),
        (("b",), {}, "b"),
        (("b", "z"), {"x": CategoricalDistribution(("b", "z"))}, "b"),
        (Range(low=0, high=1), {"x": FloatDistribution(0, 1)}, 0.0),
    ],
    ids=["fixed", "null", "false", "one choice", "other choices", "range"],
)
def test_choices(domain, space, value):
    trial, draw = scoped({"x": domain})
    answer = trial.suggest_categorical("x", ("a", "b", "c"))
    assert (answer, type(answer), draw.space) == (value, type(value), space)


def test_a_single_choice_asks_nothing():
    trial, draw = scoped()
    assert trial.suggest_categorical("x", ("only",)) == "only"
    assert trial.suggest_float("y", 2.0, 2.0) == 2.0
    assert trial.suggest_int("z", 2, 2) == 2
    assert draw.space == {}
    assert trial.values == {"x": "only", "y": 2.0, "z": 2}


def test_a_choice_of_numbers_can_become_a_range():
    trial, draw = scoped({"x": Range(low=0.0, high=0.2)})
    assert trial.suggest_number("x", (0.0, 0.1)) == 0.0
    assert draw.space == {"x": FloatDistribution(0.0, 0.2)}


@pytest.mark.parametrize("wrong", ["much", None, ("much",)])
def test_text_is_no_number(wrong):
    trial, _ = scoped({"x": wrong})
    for suggest in (
        lambda: trial.suggest_float("x", 0.0, 1.0),
        lambda: trial.suggest_int("x", 0, 1),
        lambda: trial.suggest_number("x", (0.0, 1.0)),
    ):
        with pytest.raises(ConfigError, match=r"space: x is a number, got"):
            suggest()


numbers = st.floats(1e-6, 1e6)
ranges = st.tuples(numbers, numbers, st.booleans()).map(
    lambda t: Range(low=min(t[0], t[1]), high=max(t[0], t[1]), log=t[2])
)
domains = st.one_of(numbers, st.lists(numbers, min_size=1, max_size=4).map(tuple), ranges)


@given(domains, st.sampled_from(["low", "high", "random"]), st.integers(0, 9))
@settings(deadline=None, max_examples=50)
def test_an_answer_is_always_in_the_users_domain(domain, pick, seed):
    trial = ScopedTrial(Draw(pick, seed), {"x": domain})
    answer = trial.suggest_float("x", 0.0, 1.0)
    if isinstance(domain, Range):
        assert domain.low <= answer <= domain.high or answer == pytest.approx(domain.low)
    else:
        assert answer in (domain if isinstance(domain, tuple) else (domain,))
