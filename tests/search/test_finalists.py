"""Who is looked at again, and what there is time for."""

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from automl_tl.model.spec import Optimization, TrialSpec
from automl_tl.plugin import GroupPlan, TransferPlan
from automl_tl.search.finalists import FOLDS, PROBES, SPARED, Finalist, choose_finalists, plan_folds


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
    three = [finalist(10.0), finalist(10.0, rate=1), finalist(10.0, rate=2)]
    plan = plan_folds(three, 55.0, 1)
    assert (len(plan.finalists), plan.folds) == (2, 2)
    assert len(plan_folds(three, 43.0, 1).finalists) == 1  # what goes on with all samples has to fit, too
    assert len(plan_folds(three, 50.0, 1, spared=1.3).finalists) == 1


def test_probes_alone_are_confirmed_where_there_is_time():
    probes = [finalist(2.0, floor=True), finalist(3.0, floor=True, rate=1)]
    assert plan_folds(probes, 26.0, 1).folds == FOLDS
    assert plan_folds(probes, 24.0, 1).folds == 0
    assert len(plan_folds(probes, 0.0, 1).finalists) == 2


@given(
    seconds=st.lists(st.floats(0.1, 100), max_size=5),
    floors=st.lists(st.floats(0.1, 20), max_size=4),
    left=st.floats(1, 2000),
    slots=st.integers(1, 4),
)
def test_what_is_planned_fits_into_the_time(seconds, floors, left, slots):
    trained = [finalist(s, rate=n + 1) for n, s in enumerate(seconds)]
    probes = [finalist(s, rate=n + 1, floor=True) for n, s in enumerate(floors)]
    plan = plan_folds([*probes, *trained], left, slots)
    kept = [each for each in plan.finalists if not each.floor]
    assert [each for each in plan.finalists if each.floor] == probes
    assert bool(kept) == bool(trained)
    if plan.folds:
        assert 2 <= plan.folds <= FOLDS
        took = [each.seconds for each in plan.finalists]
        spent = plan.folds * max([sum(took) / slots, *took])
        assert spent + SPARED * max((each.seconds for each in kept), default=0.0) <= left * (1 + 1e-9)
    else:
        assert len(kept) <= 1
