"""From a search to the model that is handed over: a small real search on wine, and all up to the test split."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from automl_tl.config import FinishConfig
from automl_tl.engine.slot import Children
from automl_tl.engine.slots import parse_slots
from automl_tl.errors import TrialError
from automl_tl.finish.finish import finish
from automl_tl.finish.settle import settle
from automl_tl.metrics.scores import validation_score
from automl_tl.model.spec import spec_from_json
from automl_tl.search.search import run_search
from automl_tl.search.study import completed

INLINE = parse_slots("inline", cores=1)


@pytest.fixture(scope="module")
def searched(search_in, tmp_path_factory):
    """Return a search of six trials on wine that has ended."""
    search = search_in(
        tmp_path_factory.mktemp("settled"),
        trials=6,
        max_epochs=3,
        scheduler="promotion",
        recipes=True,
        strategies=("suffix", "linear_probe", "full_finetune"),
        keep_checkpoints=10,
    )
    run_search(search, INLINE, Children(INLINE), threading.Event(), lambda: None)
    return search


def of_kind(search, *, floor):
    return [t for t in completed(search.study) if (spec_from_json(t.user_attrs["spec"]).fit != "descent") == floor]


def test_finalists_are_judged_by_samples_that_none_of_them_saw(searched, crew):
    final = settle(searched, FinishConfig(finalists=2), crew, "cpu")
    shown = final.facts["finalists"]
    assert final.facts["samples"] == len(searched.prepared.development().labels)
    assert {each["folds"] for each in shown} == {5}
    assert all(0 < each["f1_macro"] <= 1 for each in shown)
    tuned = {trial.number for trial in of_kind(searched, floor=False)}
    assert sum(each["trial"] in tuned for each in shown) <= 2
    assert any(each["trial"] not in tuned for each in shown)  # the floor always takes part


def test_the_final_model_knows_the_task(searched, crew):
    final = settle(searched, FinishConfig(model="single"), crew, "cpu")
    assert len(final.members) == 1
    assert final.members[0].trial.number == final.best.trial.number
    files = searched.prepared.files(searched.host.backbone("source_mlp"), "development")
    split = files.open(searched.host.backbone("source_mlp"))
    rows = split.rows.batch(np.arange(len(split.labels)), "cpu")
    said = final.best.model.eval()(rows).softmax(1).detach().numpy()
    assert validation_score(split.labels, final.adjustment.apply(said, "multiclass"), "multiclass", "f1_macro") > 0.95


def test_an_ensemble_can_be_asked_for(searched, crew):
    final = settle(searched, FinishConfig(model="ensemble"), crew, "cpu")
    assert sum(member.weight for member in final.members) == pytest.approx(1)
    assert len({member.trial.number for member in final.members}) == len(final.members) <= 5
    assert set(final.facts["ensemble_gain"]) >= {"gain", "standard_error"}


def test_without_time_nothing_is_trained_anew_but_the_winner(searched, crew):
    late = replace(searched, budget=replace(searched.budget, end=time.time() + 1e-3))
    final = settle(late, FinishConfig(), crew, "cpu")
    assert final.members


@pytest.mark.parametrize("fails", ["trained", "all"])
def test_a_finalist_that_fails_costs_the_run_nothing(searched, crew, fails):
    """The error is of our own kind, as that of a plugin which finds one fold too small."""
    told = []

    class Failing:
        stop = crew.children.stop

        def run(self, slot, function, order):
            trains = spec_from_json(order.spec).fit == "descent"
            if order.judged is not None and (trains or fails == "all"):
                raise TrialError("this fold is too small")
            return crew.children.run(slot, function, order)

    final = settle(searched, FinishConfig(), replace(crew, children=Failing()), "cpu", told.append)
    assert any("no finalist any more: this fold is too small" in line for line in told)
    assert final.members
    numbers = {each["trial"] for each in final.facts["finalists"]}
    assert numbers <= {trial.number for trial in of_kind(searched, floor=True)} or fails == "all"


def test_what_the_finish_trained_leaves_no_files(searched, crew):
    settle(searched, FinishConfig(finalists=1), crew, "cpu")
    beside = searched.directory.with_name(f"{searched.directory.name}-confirmed")
    assert not list(beside.glob("*"))


def test_a_search_without_complete_trials_has_no_final_model(make_search, crew):
    with pytest.raises(TrialError, match="no trial was completed; give it more time"):
        settle(make_search(), FinishConfig(), crew, "cpu")


def test_the_test_split_is_opened_once_and_compared_with_what_does_without(searched, crew):
    final = settle(searched, FinishConfig(), crew, "cpu")
    assert not searched.prepared.task.test.opened
    finished = finish(searched, final, None, "cpu")
    assert searched.prepared.task.test.opened
    assert finished.test is not None
    assert finished.verdict is not None
    assert {"majority", "raw_inputs"} <= set(finished.baselines)
    assert finished.verdict.rival in ("majority", "raw_inputs", "random_weights")
