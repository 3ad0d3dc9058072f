"""Whole searches, rung by rung: no epoch is trained twice, nothing is lost, and what goes on is what was there."""

import threading
from dataclasses import replace

import numpy as np
import pytest
from optuna.trial import TrialState

from automl_tl.engine.slot import ChildDied, Interrupted
from automl_tl.engine.slots import parse_slots
from automl_tl.model.spec import spec_from_json
from automl_tl.search.checkpoints import FEWEST_KEPT, drop_checkpoints
from automl_tl.search.configurations import CONTINUES, MOST_FAILURES, configurations
from automl_tl.search.judging import comparable_score
from automl_tl.search.order import climbs_rungs
from automl_tl.search.proposals import enqueue_recipes
from automl_tl.search.search import YARDSTICK, run_next, run_search, said_of
from automl_tl.search.status import incumbents, status_of
from automl_tl.search.study import completed, reap
from automl_tl.search.trial import CHECKPOINT, STATE

INLINE = parse_slots("inline", cores=1)
FOUR = parse_slots("cpu*4", cores=4)
RUNGS = (1, 3, 9)
CLIMBING = {"scheduler": "promotion", "max_epochs": 9, "strategies": ("last_k", "full_finetune")}
REAL = {**CLIMBING, "trials": 8, "recipes": True, "strategies": ("linear_probe", "suffix", "last_k", "full_finetune")}


class Host:
    """Runs trials in this process; `dies(order)` says at which of them everything ends at once."""

    def __init__(self, dies=lambda order: False):
        self.dies = dies

    def run(self, slot, function, order):
        if self.dies(order):
            raise SystemExit  # nobody is left to take it down
        return function(order)

    def stop(self):
        pass


def carry_out(search, children, slots=INLINE, stop=None):
    run_search(search, slots, children, stop or threading.Event(), lambda: None)
    return search.study


def further(study):
    """Trials that continue a configuration."""
    return [trial for trial in study.trials if CONTINUES in trial.user_attrs]


def score_of(order):
    """A score that a spec always has, and that rises with the epochs."""
    return 0.5 + order.seed % 1000 / 4000 + order.stage.until / 100


def has(search, name):
    """The trials whose folders hold a file."""
    return {int(path.parent.name) for path in search.directory.glob(f"*/{name}")}


def assert_no_epoch_was_trained_twice(search):
    """Each epoch that a trial makes is reported once; those of a configuration follow each other without a gap."""
    for configuration in configurations(search.study):
        spec = spec_from_json(configuration.trials[0].user_attrs["spec"])
        if climbs_rungs(spec) and configuration.done:
            epochs = [epoch for trial in configuration.done for epoch in trial.intermediate_values]
            assert epochs == list(range(1, configuration.epochs + 1))


# A real search.


@pytest.fixture(scope="module")
def searched(search_in, tmp_path_factory):
    search = search_in(tmp_path_factory.mktemp("promotion"), **REAL)
    carry_out(search, Host())
    return search


def test_no_epoch_is_trained_twice(searched):
    assert_no_epoch_was_trained_twice(searched)
    trained = sum(len(trial.intermediate_values) for trial in searched.study.trials)
    assert trained == sum(each.epochs for each in configurations(searched.study) if each.climbs)


def test_the_budget_is_of_configurations_and_nothing_is_left_running(searched):
    assert len(configurations(searched.study)) == 8
    assert len(searched.study.trials) > 8
    assert {trial.state.name for trial in searched.study.trials} == {"COMPLETE"}
    status = status_of(searched)
    assert (status.complete, status.promoted, status.running) == (8, len(searched.study.trials) - 8, ())


def test_configurations_climb_from_rung_to_rung_and_few_reach_the_top(searched):
    climbing = [each for each in configurations(searched.study) if each.climbs]
    for configuration in climbing:
        assert tuple(trial.user_attrs["epochs"] for trial in configuration.done) == RUNGS[: len(configuration.done)]
    heights = [len(configuration.done) for configuration in climbing]
    assert min(heights) == 1
    assert max(heights) == len(RUNGS)


def test_a_trial_that_goes_on_names_what_it_continues_and_is_the_same_in_all_else(searched):
    for configuration in configurations(searched.study):
        first, *others = configuration.trials
        for before, trial in zip(configuration.trials, others, strict=False):
            facts = trial.user_attrs
            assert (facts[CONTINUES], facts["goes_on_from"]) == (first.number, before.number)
            assert (facts["spec"], trial.params) == (first.user_attrs["spec"], first.params)
            assert facts.get("recipe") == first.user_attrs.get("recipe")
            assert np.array_equal(said_of(searched, trial.number).rows, said_of(searched, first.number).rows)
            assert facts["at"] > before.user_attrs["at"]


def test_scores_are_made_comparable_by_the_first_probe(searched):
    yardstick = searched.study.user_attrs[YARDSTICK]
    assert searched.study.trials[yardstick].user_attrs["spec"]["fit"] != "descent"
    labels = searched.prepared.development().labels
    against = said_of(searched, yardstick)
    assert np.array_equal(against.rows, np.arange(len(labels)))
    for trial in searched.study.trials[yardstick + 1 :]:
        said = said_of(searched, trial.number)
        expected = comparable_score(trial.user_attrs["score"], said, against, labels, "multiclass", "f1_macro")
        assert trial.value == expected
    judges = [said_of(searched, each.number).rows for each in configurations(searched.study) if each.climbs]
    assert len({rows.tobytes() for rows in judges}) == len(judges) > 1  # each configuration has a holdout of its own


def test_what_is_needed_later_is_kept_and_the_rest_is_not(searched):
    found = configurations(searched.study)
    states, models = has(searched, STATE), has(searched, CHECKPOINT)
    assert states <= {each.latest.number for each in found if not each.ended}
    assert {trial.number for trial in completed(searched.study)[:2]} <= models
    assert states <= models
    assert len(models) < len(searched.study.trials)


def test_incumbents_rise_to_the_best(searched):
    found = incumbents(searched)
    assert [score for _, _, score in found] == sorted({score for _, _, score in found})
    assert found[-1][2] == completed(searched.study)[0].value


def test_one_slot_repeats_exactly(searched, make_search):
    again = make_search(**REAL)
    carry_out(again, Host())
    assert [(trial.value, trial.params) for trial in again.study.trials] == [
        (trial.value, trial.params) for trial in searched.study.trials
    ]


def test_a_host_that_is_killed_while_it_promotes_loses_nothing(searched, make_search):
    search, asking = enqueue_recipes(make_search(**REAL)), threading.Lock()
    children = Host(dies=lambda order: order.goes_on_from is not None)
    with pytest.raises(SystemExit):
        all(run_next(search, INLINE[0], children, threading.Event(), asking) for _ in range(99))
    [orphan] = [trial for trial in search.study.trials if trial.state == TrialState.RUNNING]
    number, earlier = orphan.user_attrs[CONTINUES], orphan.user_attrs["goes_on_from"]

    assert reap(search.study) == 1
    [killed] = [each for each in configurations(search.study) if each.number == number]
    assert (killed.latest.number, killed.running, killed.ended) == (earlier, False, False)
    assert earlier in has(search, STATE)

    carry_out(search, Host())
    assert_no_epoch_was_trained_twice(search)
    assert not any(trial.state == TrialState.RUNNING for trial in search.study.trials)
    assert len(configurations(search.study)) == 8
    [survivor] = [each for each in configurations(search.study) if each.number == number]
    assert len(survivor.done) > 1
    [unharmed] = [each for each in configurations(searched.study) if each.number == number]
    for one, other in zip(survivor.done, unharmed.done, strict=False):  # as if nothing had happened
        assert (one.value, one.intermediate_values) == (other.value, other.intermediate_values)


# What may happen, on slots that only claim to train.


@pytest.mark.parametrize("slots", [INLINE, FOUR])
def test_budgets_are_exact_on_several_slots(make_search, fake_children, report, slots):
    search = make_search(trials=20, **CLIMBING)
    children = fake_children(lambda order: report(score_of(order)))
    carry_out(search, children, slots)
    found = configurations(search.study)
    assert len(found) == 20
    assert {trial.state.name for trial in search.study.trials} == {"COMPLETE"}
    assert {len(each.done) for each in found} == {1, 2, 3}
    heights = [sum(len(each.done) > rung for each in found) for rung in range(3)]
    assert heights[1] <= 1 + 20 // 2  # of 20 in any order, about a third is promoted
    assert len({(order.spec["plan"], order.seed, order.stage.until) for order in map(plain, children.orders)}) == len(
        children.orders
    )


def plain(order):
    """An order whose spec can be told apart from others."""
    return replace(order, spec={"plan": str(order.spec)})


def test_who_is_promoted_has_what_it_takes(make_search, fake_children, report):
    """Also after many others came; what nobody will ask for is dropped."""
    search = make_search(trials=40, **CLIMBING)

    def outcome(order):
        if order.goes_on_from is not None:
            assert (order.goes_on_from / STATE).exists()
        return report(score_of(order))

    carry_out(search, fake_children(outcome), FOUR)
    assert further(search.study)
    found = configurations(search.study)
    for height in range(1, 4):
        those = [each for each in found if len(each.done) == height]
        kept = [each for each in those if each.latest.number in has(search, STATE)]
        assert len(kept) <= max(FEWEST_KEPT, len(those) // 2)
    best = max(found, key=lambda each: each.done[0].value)
    assert len(best.done) > 1


def test_whose_state_is_gone_stays_where_it_is(make_search, fake_children, report):
    search = make_search(trials=8, **CLIMBING)

    def outcome(order):
        for path in search.directory.glob(f"*/{STATE}"):
            path.unlink()
        return report(score_of(order))

    class Forgetful(fake_children):
        def run(self, slot, function, order):
            done = super().run(slot, function, order)
            (order.directory / STATE).unlink(missing_ok=True)
            return done

    carry_out(search, Forgetful(outcome))
    assert further(search.study) == []
    assert len(configurations(search.study)) == 8


@pytest.mark.parametrize(
    "outcome",
    [
        lambda report: report(None, "pruned", ending="diverged"),
        lambda report: report(None, "failed", reason="out of memory at batch 1"),
        lambda report: ZeroDivisionError("no luck"),
        lambda report: ChildDied("was killed"),
    ],
    ids=["diverges", "fails", "raises", "dies"],
)
def test_who_cannot_be_trained_further_does_not_keep_the_search_from_ending(
    make_search, fake_children, report, outcome
):
    search = make_search(trials=6, **CLIMBING)

    def answer(order):
        found = outcome(report) if order.goes_on_from else report(score_of(order))
        if isinstance(found, Exception):
            raise found
        return found

    carry_out(search, fake_children(answer), FOUR)
    found = configurations(search.study)
    assert len(found) == 6
    assert all(len(each.done) == 1 and len(each.trials) <= 1 + MOST_FAILURES for each in found)
    assert 0 < len(further(search.study)) <= 6 * MOST_FAILURES
    assert len(completed(search.study)) == 6


def test_after_a_death_the_batch_is_halved_here_too(make_search, fake_children, report):
    search = make_search(trials=2, **CLIMBING)
    divisors = []

    def outcome(order):
        if order.goes_on_from is None:
            return report(score_of(order))
        divisors.append(order.divisor)
        if len(divisors) == 1:
            raise ChildDied("was killed (SIGKILL; if nobody did it, memory ran out)")
        return report(score_of(order))

    carry_out(search, fake_children(outcome))
    assert divisors[:2] == [1, 2]
    assert len({trial.user_attrs[CONTINUES] for trial in further(search.study)[:2]}) == 1


def test_an_interrupt_leaves_a_configuration_where_it_was(make_search, fake_children, report):
    search = make_search(trials=6, **CLIMBING)
    stop = threading.Event()

    def outcome(order):
        if order.goes_on_from is None:
            return report(score_of(order))
        stop.set()
        raise Interrupted("stopped")

    carry_out(search, fake_children(outcome), stop=stop)
    [trial] = further(search.study)
    assert (trial.state, trial.user_attrs["reason"]) == (TrialState.FAIL, "interrupted")
    assert not any(each.running for each in configurations(search.study))

    children = fake_children(lambda order: report(score_of(order)))
    carry_out(search, children)
    [again] = [o for o in children.orders if o.goes_on_from == search.directory / str(trial.user_attrs["goes_on_from"])]
    assert again.stage.until == 3


def test_a_search_that_is_done_and_given_more_trials_promotes_among_all(make_search, fake_children, report):
    search = make_search(trials=4, **CLIMBING)
    carry_out(search, fake_children(lambda order: report(score_of(order))))
    before = len(search.study.trials)
    more = replace(search, budget=replace(search.budget, trials=12))
    carry_out(more, fake_children(lambda order: report(score_of(order))))
    assert len(configurations(search.study)) == 12
    assert len(search.study.trials) - before > 8


@pytest.mark.parametrize(("kept", "all_of_them"), [(100, True), (8, False)])
def test_models_of_earlier_stages_stay_while_there_are_few_trials(
    make_search, fake_children, report, kept, all_of_them
):
    search = make_search(trials=8, keep_checkpoints=kept, **CLIMBING)
    carry_out(search, fake_children(lambda order: report(score_of(order))))
    earlier = {trial.user_attrs["goes_on_from"] for trial in further(search.study)}
    assert earlier
    assert all((search.directory / str(number) / CHECKPOINT).exists() for number in earlier) == all_of_them


def test_what_is_promoted_while_another_search_ends_keeps_its_state(make_search, fake_children, report):
    """Whoever drops checkpoints leaves those alone that somebody goes on from."""
    search = make_search(trials=20, **CLIMBING)

    def outcome(order):
        if order.goes_on_from is not None:
            drop_checkpoints(search)
            assert (order.goes_on_from / STATE).exists()
        return report(1 - score_of(order))

    carry_out(search, fake_children(outcome), FOUR)
    assert further(search.study)


def test_what_another_slot_completes_while_checkpoints_are_dropped_keeps_its_state(
    make_search, fake_children, report, monkeypatch
):
    """It was not judged yet when it was decided which may go on."""
    search = make_search(trials=20, **CLIMBING)
    children = fake_children(lambda order: report(1 - score_of(order)))
    carry_out(replace(search, budget=replace(search.budget, trials=1)), children)

    def decide_and_be_overtaken(decide):
        def decided(study):
            found = decide(study)
            monkeypatch.undo()
            carry_out(replace(search, budget=replace(search.budget, trials=2)), children)
            return found

        return decided

    monkeypatch.setattr("automl_tl.search.checkpoints.configurations", decide_and_be_overtaken(configurations))
    drop_checkpoints(search)
    assert all((search.directory / str(each.latest.number) / STATE).exists() for each in configurations(search.study))
    assert len(configurations(search.study)) == 2
