"""Who is looked at again, and what there is time for."""

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from automl_tl.finish.finalists import FOLDS, PROBES, Finalist, choose_finalists, plan_folds
from automl_tl.model.spec import Optimization, TrialSpec
from automl_tl.plugin import GroupPlan, TransferPlan


def spec(*actions, rate=1e-3, fit="descent"):
    plan = TransferPlan(tuple(GroupPlan(group=f"g{n}", action=action) for n, action in enumerate(actions)))
    return TrialSpec(backbone="b", plan=plan, fit=fit, optimization=Optimization(learning_rate=rate))


def trial(number, made):
    return SimpleNamespace(number=number, user_attrs={"spec": made.to_json()})


def finalist(seconds, *, floor=False, rate=1e-3):
    made = spec("freeze", "freeze", fit="ridge", rate=rate) if floor else spec("freeze", "tune", rate=rate)
    return Finalist(trial(0, made), made, seconds)


def test_the_best_of_both_kinds_are_finalists():
    tuned = [trial(n, spec("freeze", "tune", rate=n + 1)) for n in range(6)]
    probes = [trial(n, spec("freeze", "freeze", fit="ridge", rate=n + 1)) for n in range(10, 18)]
    chosen = choose_finalists([*tuned, *probes], [1.0] * 14, most=3)
    assert [each.number for each in chosen] == [0, 1, 2, *range(10, 10 + PROBES)]


def test_a_head_that_is_trained_on_frozen_features_is_no_floor():
    """It was judged by a holdout of its own, so two of them need not have one sample in common."""
    assert not Finalist(trial(0, spec("freeze")), spec("freeze"), 1.0).floor


def test_no_spec_is_a_finalist_twice():
    same = spec("freeze", "tune")
    chosen = choose_finalists([trial(0, same), trial(1, same), trial(2, spec("tune", "tune"))], [1.0, 1.0, 1.0], 4)
    assert [each.number for each in chosen] == [0, 2]


def test_without_a_limit_all_are_trained_on_all_folds():
    plan = plan_folds([finalist(1e6), finalist(1e6, rate=1)], None, 1)
    assert (len(plan.finalists), plan.folds) == (2, FOLDS)


def test_without_time_the_best_one_stays_as_the_search_judged_it():
    plan = plan_folds([finalist(0.1, floor=True), finalist(100.0), finalist(90.0, rate=1)], 20.0, 2)
    assert [each.seconds for each in plan.finalists] == [0.1, 100.0]
    assert plan.folds == 0


def test_two_finalists_go_before_more_folds():
    plan = plan_folds([finalist(10.0), finalist(10.0, rate=1), finalist(10.0, rate=2)], 55.0, 1)
    assert (len(plan.finalists), plan.folds) == (2, 2)


@given(
    seconds=st.lists(st.floats(0.1, 100), min_size=1, max_size=5),
    left=st.floats(1, 2000),
    slots=st.integers(1, 4),
)
def test_what_is_planned_fits_into_the_time(seconds, left, slots):
    plan = plan_folds([finalist(s, rate=n + 1) for n, s in enumerate(seconds)], left, slots)
    assert plan.finalists
    if plan.folds:
        assert 2 <= plan.folds <= FOLDS
        spent = sum(each.seconds for each in plan.finalists) * plan.folds / slots
        assert spent + max(each.seconds for each in plan.finalists) <= left
    else:
        assert len(plan.finalists) == 1
