"""The study on disk: a dead trial comes back exactly once, whenever and however its process died."""

import contextlib
import sqlite3

import optuna
import pytest
from optuna.trial import TrialState

from automl_tl.errors import RunError
from automl_tl.search import study as module
from automl_tl.search.configurations import CONTINUES
from automl_tl.search.study import (
    MAX_CRASHES,
    completed,
    fail,
    is_settled,
    make_pruner,
    open_storage,
    open_study,
    reap,
    requeue,
    settled,
)


@pytest.fixture
def study(tmp_path):
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return open_study(open_storage(tmp_path / "study.db"), "transferred", seed=0)


def begin(study, **attributes):
    """A running trial with two parameters; returns its frozen state."""
    trial = study.ask()
    trial.suggest_float("rate", 0.0, 1.0)
    trial.suggest_categorical("mode", ("a", "b"))
    for name, value in attributes.items():
        trial.set_user_attr(name, value)
    return study.trials[trial.number]


def states(study):
    return [trial.state.name for trial in study.trials]


def waiting(study):
    return study.get_trials(states=(TrialState.WAITING,))


def ask_again(study):
    """Take the queued copy up, as a slot does."""
    trial = study.ask()
    return trial, {"rate": trial.suggest_float("rate", 0.0, 1.0), "mode": trial.suggest_categorical("mode", ("a", "b"))}


def test_the_database_is_in_write_ahead_mode_and_keeps_everything(tmp_path, study):
    study.tell(begin(study).number, 0.5)
    with sqlite3.connect(tmp_path / "study.db") as connection:
        assert connection.execute("pragma journal_mode").fetchone() == ("wal",)
    connection.close()
    again = open_study(open_storage(tmp_path / "study.db"), "transferred", seed=0)
    assert [trial.value for trial in again.trials] == [0.5]


@pytest.mark.parametrize("name", ["with a space", "{name}", "what?cache=shared", "100 %20", "#1", "größer"])
def test_a_path_is_a_path_whatever_it_is_called(tmp_path, name):
    path = tmp_path / name / "study.db"
    path.parent.mkdir()
    open_study(open_storage(path), "transferred", seed=0)
    assert [each.name for each in tmp_path.iterdir()] == [name]
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("select study_name from studies").fetchall() == [("transferred",)]


def test_a_file_that_is_no_database_is_named(tmp_path):
    (tmp_path / "study.db").write_text("not a database" * 100)
    with pytest.raises(RunError, match=r"cannot open the study .*study\.db: file is not a database"):
        open_storage(tmp_path / "study.db")
    with pytest.raises(RunError, match=r"cannot open the study .*unable to open"):
        open_storage(tmp_path / "absent" / "study.db")


def test_the_samplers_stream_depends_on_seed_and_progress(tmp_path):
    def first(name, seed):
        study = open_study(open_storage(tmp_path / f"{name}.db"), "s", seed=seed)
        return study.ask().suggest_float("x", 0, 1)

    assert first("a", 0) == first("b", 0) != first("c", 1)
    resumed = open_study(open_storage(tmp_path / "a.db"), "s", seed=0)
    assert resumed.ask().suggest_float("x", 0, 1) != first("d", 0)


def test_a_pruner_ends_trials_only_for_those_who_ask():
    assert isinstance(make_pruner(None), optuna.pruners.NopPruner)
    assert isinstance(make_pruner(9), optuna.pruners.HyperbandPruner)


def test_reap_puts_a_running_trial_back_and_settles_nothing(study):
    dead = begin(study, recipe="linear probe")
    assert reap(study) == 1
    assert states(study) == ["FAIL", "WAITING"]
    assert settled(study) == []
    [copy] = waiting(study)
    assert copy.user_attrs == {"recipe": "linear probe", "crashes": 0, "repeats": dead.number}

    trial, parameters = ask_again(study)
    assert (trial.number, parameters) == (copy.number, dead.params)


def test_reap_again_does_nothing(study):
    begin(study)
    assert (reap(study), reap(study)) == (1, 0)
    assert states(study) == ["FAIL", "WAITING"]


def test_parameters_that_were_queued_but_not_yet_asked_for_survive(study):
    study.enqueue_trial({"rate": 0.25, "mode": "b"})
    trial = study.ask()
    trial.suggest_float("rate", 0.0, 1.0)  # killed before the second question
    reap(study)
    assert ask_again(study)[1] == {"rate": 0.25, "mode": "b"}


@pytest.mark.parametrize("killed_at", ["after the copy", "after the mark"])
def test_whoever_is_killed_in_between_leaves_one_copy(study, monkeypatch, killed_at):
    begin(study)

    def die(*arguments):
        raise SystemExit

    with monkeypatch.context() as patch:
        if killed_at == "after the copy":
            patch.setattr(study._storage, "set_trial_user_attr", die)
        else:
            patch.setattr(module, "fail", die)
        with pytest.raises(SystemExit):
            reap(study)
    assert states(study) == ["RUNNING", "WAITING"]

    assert reap(study) == 1
    assert states(study) == ["FAIL", "WAITING"]
    assert settled(study) == []


def test_a_copy_that_dies_too_is_copied_again(study):
    first = begin(study)
    reap(study)
    second, parameters = ask_again(study)
    assert reap(study) == 1
    assert states(study) == ["FAIL", "FAIL", "WAITING"]
    assert waiting(study)[0].user_attrs["repeats"] == second.number
    assert ask_again(study)[1] == parameters == first.params


def test_a_spec_whose_process_crashes_again_and_again_is_given_up(study):
    trial = begin(study)
    for crash in range(1, MAX_CRASHES + 1):
        assert requeue(study, trial, reason="was killed", crashed=True)
        number = ask_again(study)[0].number
        trial = study.trials[number]
        assert trial.user_attrs["crashes"] == crash
    assert not requeue(study, trial, reason="was killed", crashed=True)
    assert waiting(study) == []
    [given_up] = settled(study)
    assert (given_up.state, given_up.user_attrs["reason"]) == (TrialState.FAIL, "was killed")


def test_stops_of_the_host_do_not_count(study):
    for _ in range(2 * MAX_CRASHES):
        begin(study) if not study.trials else ask_again(study)
        reap(study)
    assert [trial.user_attrs["crashes"] for trial in waiting(study)] == [0]


def test_crashes_are_remembered_over_a_stop_of_the_host(study):
    requeue(study, begin(study), reason="was killed", crashed=True)
    ask_again(study)
    reap(study)
    assert [trial.user_attrs["crashes"] for trial in waiting(study)] == [1]


def test_who_trains_a_configuration_further_is_not_repeated_when_it_dies(study):
    """The configuration stays where it is; whoever asks next takes it from there, if it is worth it still."""
    first = begin(study, validation={"log_loss": 0.1})
    study.tell(first.number, 0.5)
    begin(study, **{CONTINUES: first.number})
    assert reap(study) == 1
    requeue(study, begin(study, **{CONTINUES: first.number}), reason="was killed", crashed=True)
    assert states(study) == ["COMPLETE", "FAIL", "FAIL"]
    assert [trial.number for trial in settled(study)] == [first.number]
    assert [trial.user_attrs.get("crashed") for trial in study.trials] == [None, False, True]
    assert [trial.user_attrs.get("reason") for trial in study.trials] == [None, "the run was stopped", "was killed"]


@pytest.mark.parametrize(
    ("later", "stands"),
    [((0.8, 0.2), 1), ((0.8, 0.4), 1), ((0.6, 0.2), 1), ((0.7, 0.4), 1), ((0.6, 0.4), 0), ((None, 0.0), 0)],
)
def test_what_was_trained_further_stands_for_its_configuration_unless_it_is_worse_in_both(study, later, stands):
    for (value, log_loss), attributes in (((0.7, 0.3), {}), (later, {CONTINUES: 0}), ((0.5, 0.1), {})):
        trial = begin(study, validation={"log_loss": log_loss}, **attributes)
        study.tell(trial.number, value, state=TrialState.PRUNED if value is None else TrialState.COMPLETE)
    assert [trial.number for trial in completed(study)] == [stands, 2]


def test_what_is_settled_and_what_is_complete(study):
    outcomes = [(0.3, 0.1), (0.9, 0.3), (None, 0.0), (0.9, 0.2), (0.9, 0.3)]
    for value, log_loss in outcomes:
        trial = begin(study, validation={"log_loss": log_loss})
        study.tell(trial.number, value, state=TrialState.PRUNED if value is None else TrialState.COMPLETE)
    fail(study, begin(study), "ValueError: no")
    reap_me = begin(study)
    reap(study)
    begin(study)

    assert [trial.number for trial in settled(study)] == [0, 1, 2, 3, 4, 5]
    assert [trial.number for trial in completed(study)] == [3, 1, 4, 0]  # equal scores: the lower log loss, the earlier
    assert study.trials[5].user_attrs["reason"] == "ValueError: no"
    assert not is_settled(study.trials[reap_me.number])
