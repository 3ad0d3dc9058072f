"""Configurations: which trials are of one, how far it has come, and when it goes no further."""

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState, create_trial

from automl_tl.search.configurations import CONTINUES, MOST_FAILURES, climbs, configurations
from automl_tl.search.schedule import Climb, rungs

RUNGS = (1, 3, 9)


def study_of(*trials):
    study = optuna.create_study(direction="maximize")
    study.add_trials(trials)
    return study


def complete(score, epochs, *, continues=None, seconds=1.0, resumable=True, **attributes):
    """A trial that was finished, of a configuration that is trained rung by rung."""
    if continues is None:
        attributes = {"until": epochs, **attributes}
    else:
        attributes[CONTINUES] = continues
    return create_trial(
        value=score, user_attrs={"epochs": epochs, "seconds": seconds, "resumable": resumable, **attributes}
    )


def solved(score):
    """A head that was found in closed form."""
    return create_trial(value=score, user_attrs={"epochs": 0, "seconds": 0.1, "resumable": False})


def other(state, **attributes):
    return create_trial(state=state, user_attrs=attributes)


def climbs_of(*trials, lost=()):
    found = configurations(study_of(*trials))
    return climbs(found, RUNGS, can_go_on=lambda trial: trial.number not in lost)


# What belongs together.


def test_trials_are_grouped_by_the_configuration_that_they_continue():
    found = configurations(
        study_of(
            complete(0.5, 1),
            complete(0.6, 1),
            complete(0.7, 3, continues=0),
            other(TrialState.WAITING),
            complete(0.8, 9, continues=0),
            other(TrialState.RUNNING, **{CONTINUES: 1}),
        )
    )
    assert [(each.number, [trial.number for trial in each.trials]) for each in found] == [
        (0, [0, 2, 4]),
        (1, [1, 5]),
        (3, [3]),
    ]
    assert [each.running for each in found] == [False, True, False]  # what waits is nobody's work
    assert [each.epochs for each in found] == [9, 1, 0]
    assert [[trial.number for trial in each.done] for each in found] == [[0, 2, 4], [1], []]
    assert found[0].latest.number == 4


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["complete", "fail", "running"])), max_size=12))
def test_every_trial_is_of_one_configuration(steps):
    """Whatever order they come in."""
    trials, begun = [], {}
    for configuration, outcome in steps:
        attributes = {CONTINUES: begun[configuration]} if configuration in begun else {"until": 1}
        begun.setdefault(configuration, len(trials))
        if outcome == "complete":
            trials.append(create_trial(value=0.5, user_attrs={"epochs": 1, "seconds": 1.0, **attributes}))
        else:
            trials.append(other(TrialState.FAIL if outcome == "fail" else TrialState.RUNNING, **attributes))
    found = configurations(study_of(*trials))
    assert sorted(trial.number for each in found for trial in each.trials) == list(range(len(trials)))
    assert [each.number for each in found] == sorted(begun.values())
    for each in found:
        assert each.trials[0].number == each.number
        assert all(trial.user_attrs[CONTINUES] == each.number for trial in each.trials[1:])


# How far it has come.


def test_each_rung_has_the_score_and_the_seconds_of_the_trial_that_took_it_there():
    [climb] = climbs_of(complete(0.5, 1, seconds=2.0), complete(0.7, 3, continues=0, seconds=5.0))
    assert climb == Climb(number=0, scores=(0.5, 0.7), seconds=(2.0, 5.0))
    assert climb.rung == 1


def test_at_the_top_it_goes_no_further():
    trials = [complete(0.5, 1), complete(0.7, 3, continues=0), complete(0.6, 9, continues=0)]
    [climb] = climbs_of(*trials)
    assert (climb.scores, climb.final) == ((0.5, 0.7, 0.6), True)


def test_what_is_passed_once_is_not_expected_of_the_next_rung():
    [climb] = climbs_of(complete(0.5, 1, seconds=20.0, passing_seconds=17.0))
    assert climb.seconds == (3.0,)


def test_several_rungs_at_once_share_the_seconds_by_their_epochs():
    [climb] = climbs_of(complete(0.5, 1), complete(0.8, 9, continues=0, seconds=16.0))
    assert climb.scores == (0.5, 0.8, 0.8)
    assert climb.seconds == pytest.approx((1.0, 4.0, 12.0))


def test_what_was_cut_off_between_two_rungs_is_on_the_lower_one():
    begun = [complete(0.5, 1), complete(0.6, 2, continues=0, seconds=3.0)]
    [climb] = climbs_of(*begun)
    assert (climb.scores, climb.seconds, climb.final) == ((0.5,), (1.0,), False)
    [climb] = climbs_of(*begun, complete(0.7, 3, continues=0, seconds=1.0))
    assert (climb.scores, climb.seconds) == ((0.5, 0.7), (1.0, 4.0))  # no second is lost, and none counted twice


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(1, 4), st.floats(0.1, 9.0)), min_size=1, max_size=6), st.integers(1, 27))
def test_seconds_and_scores_are_of_the_rungs_that_were_passed(sittings, max_epochs):
    """However the epochs were cut into sittings."""
    ladder, trials, epochs = rungs(max_epochs), [], 0
    for more, seconds in sittings:
        epochs += more
        score = epochs / 100
        trials.append(complete(score, epochs, continues=0 if trials else None, seconds=seconds))
    [climb] = climbs(configurations(study_of(*trials)), ladder, can_go_on=lambda trial: True)
    passed = [rung for rung in ladder if rung <= epochs]
    assert len(climb.scores) == len(climb.seconds) == len(passed)
    assert all(score * 100 >= rung - 1e-9 for score, rung in zip(climb.scores, passed, strict=True))
    assert sum(climb.seconds) <= sum(seconds for _, seconds in sittings) + 1e-9
    if epochs in ladder:
        assert sum(climb.seconds) == pytest.approx(sum(seconds for _, seconds in sittings))
    assert climb.final == (len(passed) == len(ladder))


def test_what_is_done_in_one_go_is_on_no_rung():
    """A head is solved for, or trained to the end at once: its score is of another kind, and takes nobody's place."""
    at_once = create_trial(value=0.9, user_attrs={"epochs": 9, "seconds": 1.0, "resumable": False})
    assert climbs_of(solved(0.9), at_once) == [Climb(number=0, final=True), Climb(number=1, final=True)]


def test_what_was_to_be_done_in_one_go_and_was_cut_off_goes_on():
    cut_off = create_trial(value=0.9, user_attrs={"epochs": 4, "seconds": 4.0, "resumable": True})
    [climb] = climbs_of(cut_off)
    assert climb == Climb(number=0, scores=(0.9, 0.9), seconds=(1.0, 2.0))


def test_what_runs_for_the_first_time_is_on_its_way_to_the_first_rung():
    running = other(TrialState.RUNNING, until=1)
    assert climbs_of(running) == [Climb(number=0, running=True)]


def test_what_waits_or_came_to_nothing_is_not_there():
    pruned, failed = other(TrialState.PRUNED, until=1), other(TrialState.FAIL, until=1)
    assert climbs_of(other(TrialState.WAITING), pruned, failed) == []


def test_what_is_being_promoted_runs_and_keeps_its_scores():
    [climb] = climbs_of(complete(0.5, 1), other(TrialState.RUNNING, **{CONTINUES: 0}))
    assert (climb.scores, climb.running, climb.final) == ((0.5,), True, False)


def test_where_time_does_not_matter_an_epoch_is_a_second():
    """So that the same search decides the same on a machine that is busy."""
    found = configurations(
        study_of(complete(0.5, 1, seconds=7.0), complete(0.7, 3, continues=0, seconds=1.0), solved(0.5))
    )
    climb, at_once = climbs(found, RUNGS, can_go_on=lambda trial: True, timed=False)
    assert (climb.scores, climb.seconds) == ((0.5, 0.7), (1.0, 2.0))
    assert at_once.seconds == ()


# When it has ended.


@pytest.mark.parametrize(
    ("attributes", "ended"),
    [
        ({"state": TrialState.FAIL}, True),  # it raised
        ({"state": TrialState.FAIL, "crashed": True}, True),  # its process died
        ({"state": TrialState.FAIL, "crashed": False}, False),  # the run was stopped
        ({"state": TrialState.PRUNED, "ending": "diverged"}, True),  # and would again
        ({"state": TrialState.PRUNED, "ending": "deadline"}, False),
    ],
)
def test_who_fails_again_and_again_stays_where_it_is(attributes, ended):
    state, facts = attributes["state"], {k: v for k, v in attributes.items() if k != "state"}
    failures = [other(state, **{CONTINUES: 0}, **facts) for _ in range(MOST_FAILURES)]
    [once] = climbs_of(complete(0.5, 1), failures[0])
    [again] = climbs_of(complete(0.5, 1), *failures)
    assert (once.final, again.final) == (False, ended)
    assert again.scores == (0.5,)


def test_who_cannot_be_resumed_has_ended():
    """It stopped early, or diverged after some epochs: it counts for the rung it has been through."""
    [climb] = climbs_of(complete(0.5, 1), complete(0.6, 2, continues=0, resumable=False))
    assert (climb.scores, climb.final) == ((0.5,), True)
    assert configurations(study_of(complete(0.5, 1, resumable=False)))[0].ended


def test_whose_state_was_dropped_has_ended():
    assert [climb.final for climb in climbs_of(complete(0.5, 1), complete(0.6, 1), lost={0})] == [True, False]
    [climb] = climbs_of(complete(0.5, 1), complete(0.6, 3, continues=0), lost={0})
    assert not climb.final  # only the latest one is gone on from
