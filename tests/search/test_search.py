"""The search: budgets are exact, a trial's failure is its own, and the study tells where and when nothing matters."""

import math
import pickle
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from optuna.trial import TrialState

from automl_tl.engine.slot import ChildDied, Children, Interrupted
from automl_tl.engine.slots import parse_slots
from automl_tl.errors import ConfigError, TrialError
from automl_tl.search.checkpoints import drop_checkpoints
from automl_tl.search.configurations import CONTINUES
from automl_tl.search.search import (
    HOPELESS,
    order_for,
    reason_of,
    run_search,
    said_of,
    start_clock,
    trial_seed,
)
from automl_tl.search.space import default_space
from automl_tl.search.status import describe, incumbents, status_of
from automl_tl.search.study import MAX_CRASHES, is_settled, open_storage, open_study, settled
from automl_tl.search.trial import CHECKPOINT, run_trial
from automl_tl.search.work import WORK

INLINE = parse_slots("inline", cores=1)
FOUR = parse_slots("cpu*4", cores=4)


def carry_out(search, children, slots=FOUR):
    run_search(search, slots, children, threading.Event(), lambda: None)
    return search.study


def carry_out_inline(search):
    with Children(INLINE) as children:
        return carry_out(search, children, INLINE)


def states(study):
    return [trial.state.name for trial in study.trials]


def settled_parameters(study):
    return [tuple(sorted(trial.params.items())) for trial in settled(study)]


@pytest.mark.parametrize("trials", [1, 30])
def test_a_budget_of_trials_is_exact_on_several_slots(make_search, fake_children, report, trials):
    search = make_search(trials=trials)
    carry_out(search, fake_children(lambda order: report(0.5)))
    assert states(search.study) == ["COMPLETE"] * trials


def test_pruned_and_failed_trials_count(make_search, fake_children, report):
    answers = iter([report(0.5), report(None, "pruned"), report(None, "failed", reason="out of memory"), report(0.6)])
    search = make_search(trials=4)
    carry_out(search, fake_children(lambda order: next(answers)), INLINE)
    assert sorted(states(search.study)) == ["COMPLETE", "COMPLETE", "FAIL", "PRUNED"]


def test_a_search_that_is_done_does_nothing_more(make_search, fake_children, report):
    search = make_search(trials=2)
    carry_out(search, fake_children(lambda order: report(0.5)))
    later = fake_children(lambda order: report(0.5))
    carry_out(search, later)
    assert (len(search.study.trials), later.orders) == (2, [])


def test_a_search_that_is_extended_goes_on(make_search, fake_children, report):
    search = make_search(trials=2)
    carry_out(search, fake_children(lambda order: report(0.5)))
    more = replace(search, budget=replace(search.budget, trials=5))
    carry_out(more, fake_children(lambda order: report(0.6)))
    assert len(settled(search.study)) == 5


def test_dead_children_cost_no_budget_and_every_configuration_is_finished_once(make_search, fake_children, report):
    search = make_search(trials=12)
    lock, deaths = threading.Lock(), set()

    def outcome(order):
        with lock:
            spec = str(order.spec)
            if spec not in deaths and len(deaths) < 5:
                deaths.add(spec)
                raise ChildDied("was killed")
        return report(0.5)

    carry_out(search, fake_children(outcome))
    assert states(search.study).count("FAIL") == len(deaths) == 5
    assert len(settled(search.study)) == 12
    assert len(set(settled_parameters(search.study))) == 12


def test_a_death_halves_the_batch_of_the_next_try(make_search, fake_children, report):
    search = make_search(trials=1)
    divisors = []

    def outcome(order):
        divisors.append(order.divisor)
        raise ChildDied("was killed (SIGKILL; if nobody did it, memory ran out)")

    carry_out(search, fake_children(outcome), INLINE)
    assert divisors == [2**death for death in range(MAX_CRASHES + 1)]
    [trial] = settled(search.study)
    assert trial.state == TrialState.FAIL
    assert reason_of(trial) == "was killed (SIGKILL; if nobody did it, memory ran out)"


def test_an_interrupt_puts_running_trials_back(make_search, fake_children, report):
    search = make_search(trials=3)
    answers = iter([report(0.5), Interrupted("stopped")])

    def outcome(order):
        answer = next(answers)
        if isinstance(answer, Interrupted):
            stop.set()
            raise answer
        return answer

    stop = threading.Event()
    run_search(search, INLINE, fake_children(outcome), stop, lambda: None)
    assert states(search.study) == ["COMPLETE", "FAIL", "WAITING"]
    assert search.study.trials[2].user_attrs["crashes"] == 0

    carry_out(search, fake_children(lambda order: report(0.5)), INLINE)
    assert len(set(settled_parameters(search.study))) == 3


def test_what_the_deadline_cut_before_its_first_epoch_is_tried_again_when_there_is_more_time(
    make_search, fake_children, report
):
    search = make_search()
    search = replace(search, budget=replace(search.budget, deadline=time.time() + 0.5))

    def cut(order):
        time.sleep(0.6)
        return report(None, state="pruned", ending="deadline", epochs=0)

    carry_out(search, fake_children(cut), INLINE)
    first, again = search.study.get_trials()
    assert not is_settled(first)
    assert (again.state, again.user_attrs["repeats"]) == (TrialState.WAITING, first.number)
    assert again.system_attrs["fixed_params"].items() >= first.params.items()


def test_a_deadline_that_has_passed_begins_nothing(make_search, fake_children):
    search = make_search(deadline=time.time() - 1)
    children = fake_children(None)
    carry_out(search, children)
    assert children.orders == []


def test_what_there_is_no_time_for_goes_on_waiting_and_others_go_before_it(make_search, fake_children, report):
    search = make_search(trials=4, deadline=math.inf, scheduler="promotion", max_epochs=3, strategies=("last_k",))
    for work in (1.0, 1e6, 1.0):
        search.study.enqueue_trial({}, user_attrs={WORK: work})
    children = fake_children(lambda order: report(0.5))  # each takes a second, if asked
    soon = replace(search, budget=replace(search.budget, trials=3, deadline=time.time() + 60))
    began = [trial for trial in carry_out(soon, children, INLINE).trials if CONTINUES not in trial.user_attrs]
    assert [trial.state.name for trial in began] == ["COMPLETE", "WAITING", "COMPLETE", "COMPLETE"]
    assert set(states(carry_out(search, children, INLINE))) == {"COMPLETE"}
    assert len([trial for trial in search.study.trials if CONTINUES not in trial.user_attrs]) == 4


def test_a_search_by_time_ends_and_its_trials_know_when(make_search, fake_children, report):
    search = make_search(deadline=math.inf)
    search = replace(search, budget=replace(search.budget, deadline=time.time() + 0.5))  # opened, however long it took
    children = fake_children(lambda order: time.sleep(0.02) or report(0.5))
    carry_out(search, children)
    assert len(settled(search.study)) == len(search.study.trials) > 0
    assert {order.deadline for order in children.orders} == {search.budget.deadline}


def test_recipes_come_first_and_are_at_most_half_of_the_budget(make_search, fake_children, report):
    search = make_search(trials=4, recipes=True, strategies=("linear_probe", "full_finetune", "last_k"))
    carry_out(search, fake_children(lambda order: report(0.5)), INLINE)
    named = [trial.user_attrs.get("recipe") for trial in search.study.trials]
    assert named == ["linear probe (source_mlp)", "full fine-tuning (source_mlp)", None, None]
    assert search.study.trials[0].user_attrs["spec"]["strategy"] == "linear_probe"
    assert search.study.trials[1].params["adam.learning_rate"] == pytest.approx(3e-4)


def test_orders_are_plain_data_and_repeat(make_search):
    search = make_search(trials=1, strategies=("last_k",))
    trial = search.study.ask()
    spec = default_space(trial, search.context)
    one, two = (order_for(search, trial, spec, slot) for slot in FOUR[:2])
    assert replace(one, train=None, judged=None) == replace(two, train=None, judged=None)
    for first, second in ((one.train, two.train), (one.judged, two.judged)):
        assert np.array_equal(first.chosen, second.chosen)
    again = pickle.loads(pickle.dumps(one))
    assert np.array_equal(again.judged.chosen, one.judged.chosen)
    assert one.seed == trial_seed(search.seed, spec) != trial_seed(search.seed + 1, spec)
    assert one.directory == search.directory / "0"
    other = replace(spec, max_epochs=9)
    assert trial_seed(0, other) != trial_seed(0, spec)


def test_a_plugin_that_raises_fails_its_trial_only(make_search, fake_children, report):
    search = make_search(trials=6)

    def outcome(order):
        if order.spec["strategy"] == "last_k":
            raise KeyError("layer9")
        return report(0.5)

    carry_out(search, fake_children(outcome))
    failed = [trial for trial in settled(search.study) if trial.state == TrialState.FAIL]
    assert 0 < len(failed) < 6
    for trial in failed:
        assert reason_of(trial) == f"trial {trial.number} (source_mlp, last_k, linear): KeyError: 'layer9'"


def test_a_search_whose_trials_all_fail_is_given_up_and_quotes_the_first(make_search, fake_children):
    def outcome(order):
        raise ZeroDivisionError("no luck")

    search = make_search(trials=100)
    with pytest.raises(TrialError, match=rf"all of the first {HOPELESS} trials failed; the first one: .*no luck"):
        carry_out(search, fake_children(outcome), INLINE)
    assert len(search.study.trials) == HOPELESS


def test_a_space_that_raises_ends_the_search_and_leaves_nothing_running(make_search, fake_children, report):
    def space(trial, context):
        trial.suggest_float("x", 0, 1)
        raise ConfigError("no such space")

    search = make_search(trials=4, space=space)
    with pytest.raises(ConfigError, match="no such space"):
        carry_out(search, fake_children(lambda order: report(0.5)))
    assert "RUNNING" not in states(search.study)


def test_checkpoints_of_the_best_and_of_the_best_probe_are_kept(make_search, fake_children, report):
    scores = {0: 0.1, 1: 0.9, 2: 0.8, 3: 0.7, 4: 0.95}
    strategies = ["linear_probe", "last_k", "last_k", "last_k", "last_k"]

    def space(trial, context):
        narrowed = replace(context, overrides={"strategy": strategies[trial.number], "last_k.k": 1})
        return default_space(trial, narrowed)

    search = make_search(trials=5, space=space, keep_checkpoints=2)
    carry_out(search, fake_children(lambda order: report(scores[int(order.directory.name)])), INLINE)
    drop_checkpoints(search)
    assert sorted(path.parent.name for path in search.directory.glob(f"*/{CHECKPOINT}")) == ["0", "1", "4"]
    assert all(said_of(search, number).rows.size for number in scores)  # what they said is small, and stays


def test_status_and_incumbents(make_search, fake_children, report):
    answers = iter([report(0.5), report(0.4), report(None, "failed", reason="no"), report(0.7), report(0.7)])
    search = make_search(trials=5)
    carry_out(search, fake_children(lambda order: next(answers)), INLINE)
    status = status_of(search)
    assert (status.complete, status.pruned, status.failed, status.running) == (4, 0, 1, ())
    assert status.best.number == 3
    assert [(trial, score) for _, trial, score in incumbents(search)] == [(0, 0.5), (3, 0.7)]
    assert describe(status.best).startswith("source_mlp · ")

    trial = search.study.ask()
    assert status_of(search).running == ()  # not yet on a slot
    assert describe(search.study.trials[trial.number]) == "not yet planned"
    trial.set_user_attr("slot", "cpu0")
    for epoch, score in ((1, 0.3), (2, 0.6)):
        trial.report(score, epoch)
    [running] = status_of(search).running
    assert (running.slot, running.number, running.epoch, running.score) == ("cpu0", 5, 2, 0.6)


def test_the_clock_goes_on_where_it_stopped(make_search, fake_children, report):
    search = make_search(trials=1)
    assert start_clock(search.study).before == 0.0
    carry_out(search, fake_children(lambda order: report(0.5)), INLINE)
    trial = search.study.ask()
    trial.set_user_attr("started", 100.0)
    clock = start_clock(search.study)
    assert clock.before == 100.0
    assert clock.now() >= 100.0


def values_and_parameters(search):
    return [(trial.value, trial.params) for trial in carry_out_inline(search).trials]


def test_one_slot_repeats_exactly(make_search):
    first, second = (
        make_search(name=name, trials=4, recipes=True, heads=("linear", "mlp")) for name in ("first", "second")
    )
    assert values_and_parameters(first) == values_and_parameters(second)


@pytest.mark.slow
def test_a_spec_has_the_same_score_whichever_slot_runs_it(make_search):
    search = make_search(heads=("mlp",), strategies=("suffix",), max_epochs=2)
    slots = (*parse_slots("cpu*1", cores=1), *INLINE)
    scores = []
    for slot in slots:
        with Children([slot]) as children:
            for seed in range(3):
                study = open_study(open_storage(search.database), f"{slot.name}{seed}", seed=seed)
                trial = study.ask()
                order = order_for(search, trial, default_space(trial, search.context), slot)
                order = replace(order, study=study.study_name, directory=search.directory / study.study_name)
                report = children.run(slot, run_trial, order)
                scores.append((report.state, report.score, report.facts["validation"]))
    assert scores[:3] == scores[3:]
    assert [state for state, _, _ in scores] == ["complete"] * 6
