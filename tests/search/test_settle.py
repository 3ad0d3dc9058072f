"""From a search to the model that is handed over: small real searches, and all up to the test split."""

import threading
import time
from dataclasses import replace

import numpy as np
import optuna
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from automl_tl.config import FinishConfig
from automl_tl.engine.slot import Children
from automl_tl.engine.slots import parse_slots
from automl_tl.errors import TrialError
from automl_tl.finish import refit as refitting
from automl_tl.finish.blending import BlendOrder, keep, say
from automl_tl.finish.confirm import Averages, Fold, as_searched, confirm, fold_order
from automl_tl.finish.finish import finish
from automl_tl.finish.refit import fit_in, plan_further, plan_refits
from automl_tl.finish.rivals import learn_rivals
from automl_tl.finish.settle import settle
from automl_tl.finish.soup import Blend
from automl_tl.metrics.scores import validation_score
from automl_tl.model.plan import tap
from automl_tl.model.spec import spec_from_json
from automl_tl.search.finalists import MOST, Finalist, Plan, choose_finalists, without_folds
from automl_tl.search.judging import divide, load_said
from automl_tl.search.order import trial_seed
from automl_tl.search.search import run_search
from automl_tl.search.study import completed
from automl_tl.search.trial import CHECKPOINT, STATE

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


@pytest.fixture
def tuned(searched):
    """Return the finalist that was trained for the most epochs of those that can go on."""
    kept = [t for t in of_kind(searched, floor=False) if (searched.directory / str(t.number) / STATE).exists()]
    trial = max(kept, key=lambda t: t.user_attrs["epochs"])
    return Finalist(trial, spec_from_json(trial.user_attrs["spec"]), 12.0)


def test_where_time_is_limited_what_was_trained_goes_on_or_stays(searched, tuned):
    """An epoch takes 1.3 times as long on all samples; it goes on where there is time for one."""
    further = 1.3 * 12.0 / tuned.trial.user_attrs["epochs"]
    seconds = {160.0: "further", further + 0.1: "further", further - 0.1: "as it is", None: "anew"}
    planned = {limit: plan_refits(searched, [tuned], limit, 1) for limit in seconds}
    assert planned == {limit: {tuned.number: way} for limit, way in seconds.items()}


def test_what_cannot_go_on_is_trained_anew(searched, tuned, monkeypatch):
    monkeypatch.setattr(refitting, "STATE", "no such file")
    assert plan_refits(searched, [tuned], 160.0, 1) == {tuned.number: "anew"}
    assert plan_refits(searched, [tuned], 12.0, 1) == {tuned.number: "as it is"}


def test_what_takes_longest_gives_way_first(searched, tuned):
    other = Finalist(of_kind(searched, floor=False)[-1], tuned.spec, 1.0)
    assert other.number != tuned.number
    ways = plan_refits(searched, [other, tuned], 1.3 * 1.0, 1)
    assert ways[other.number] != "as it is"
    assert ways[tuned.number] == "as it is"


@given(
    trained=st.lists(st.tuples(st.integers(1, 27), st.floats(0.1, 50)), min_size=1, max_size=4),
    seconds=st.floats(0, 200),
    slots=st.integers(1, 3),
)
def test_who_goes_on_has_as_many_epochs_as_there_is_time_for(trained, seconds, slots):
    finalists = [
        Finalist(create_trial(number, epochs), spec=None, seconds=spent)
        for number, (epochs, spent) in enumerate(trained)
    ]
    how = {each.number: "further" for each in finalists}
    further = plan_further(finalists, how, seconds, slots)
    most = {number: max(MOST, -(-epochs // 4)) for number, (epochs, _) in enumerate(trained)}
    assert all(1 <= further[number] <= most[number] for number in most)
    if any(epochs > 1 for epochs in further.values()):  # more is given of the time that there is, not of what is not
        assert fit_in(seconds, finalists, slots, how, further)
    for number in further:
        more = {**further, number: further[number] + 1}
        assert further[number] == most[number] or not fit_in(seconds, finalists, slots, how, more)
    assert plan_further(finalists, dict.fromkeys(how, "anew"), seconds, slots) == {}


def create_trial(number, epochs):
    trial = optuna.trial.create_trial(value=0.5, user_attrs={"epochs": epochs})
    trial.number = number
    return trial


def test_going_on_trains_only_the_last_epochs_and_with_all_samples(searched, tuned, crew):
    orders = []

    class Heard:
        stop = crew.children.stop

        def run(self, slot, function, order):
            orders.append(order)
            return crew.children.run(slot, function, order)

    silent = (lambda text: None, lambda *_: None)
    wanted = [Blend((tuned.number,))]
    finalists, heard = {tuned.number: tuned}, replace(crew, children=Heard())
    models = {
        way: refitting.refit(
            searched, finalists, wanted, heard, "cpu", *silent, {tuned.number: way}, {tuned.number: 2}
        )[0].state_dict()
        for way in ("further", "as it is")
    }
    (order,) = orders  # what stays as it is needs none
    epochs = tuned.trial.user_attrs["epochs"]
    assert order.goes_on_from == searched.directory / str(tuned.number)
    assert order.stage.until == epochs + 2
    assert len(order.train.labels()) == len(searched.prepared.development().labels)
    assert any(not torch.equal(value, models["as it is"][name]) for name, value in models["further"].items())


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
    trained = numbers - {trial.number for trial in of_kind(searched, floor=True)}
    assert len(trained) <= (1 if fails == "all" else 0)  # two of the search have hardly a sample that judged both


def test_what_the_finish_trained_leaves_no_files(searched, crew):
    settle(searched, FinishConfig(finalists=1), crew, "cpu")
    beside = searched.directory.with_name(f"{searched.directory.name}-confirmed")
    assert not list(beside.glob("*"))


def test_a_search_without_complete_trials_has_no_final_model(make_search, crew):
    with pytest.raises(TrialError, match="no trial was completed; give it more time"):
        settle(make_search(), FinishConfig(), crew, "cpu")


@pytest.fixture(scope="module")
def pictured(search_in, tmp_path_factory):
    """Return a search that has ended on a few digits, with a backbone whose weights are transferred."""
    search = search_in(
        tmp_path_factory.mktemp("pictured"),
        data={"path": "sklearn:digits", "per_class": 8, "validation_fraction": 0.2, "test_fraction": 0.05},
        trained=(12,),
        backbones=("trained0",),
        trials=5,
        max_epochs=3,
        recipes=True,
        strategies=("linear_probe", "full_finetune", "discriminative"),
        keep_checkpoints=10,
        overrides={"init_head": "probe", "learning_rate": 1e-2, "pooling": "mean"},
    )
    run_search(search, INLINE, Children(INLINE), threading.Event(), lambda: None)
    return search


def development(search, spec):
    split = search.prepared.files(search.host.backbone(spec.backbone), "development").open(
        search.host.backbone(spec.backbone)
    )
    return split, split.rows.batch(np.arange(len(split.labels)), "cpu")


def test_a_soup_is_one_model_of_weights_that_were_averaged(pictured, crew):
    told = []
    final = settle(pictured, FinishConfig(model="soup", finalists=2), crew, "cpu", told.append)
    assert not told
    (member,) = final.members
    assert member is final.best
    assert member.blend is not None
    soup = final.facts["soup"]
    assert (soup["trials"], soup["share"]) == (list(member.blend.ingredients), member.blend.share)
    assert {"gain", "standard_error", "log_loss_gain"} <= set(soup)
    split, inputs = development(pictured, member.spec)
    said = member.model.eval()(inputs).softmax(1).detach().numpy()
    assert validation_score(split.labels, said, "multiclass", "f1_macro") > 0.5


def test_what_was_solved_for_is_handed_over_as_it_is(pictured, crew, monkeypatch):
    """It learned from all samples in the search, so solving once more would give the same."""
    trial = of_kind(pictured, floor=True)[0]
    finalist = Finalist(trial, spec_from_json(trial.user_attrs["spec"]), 1.0)
    wanted, silent = [Blend((trial.number,))], (lambda text: None, lambda *_: None)
    monkeypatch.setattr(refitting, "is_whole", lambda *_: False)
    (again,) = refitting.refit(pictured, {trial.number: finalist}, wanted, crew, "cpu", *silent)
    monkeypatch.undo()
    monkeypatch.setattr(refitting, "run_trial", None)
    (found,) = refitting.refit(pictured, {trial.number: finalist}, wanted, crew, "cpu", *silent)
    assert (pictured.directory / str(trial.number) / CHECKPOINT).exists()
    expected = again.state_dict()
    assert all(torch.allclose(value, expected[name], atol=1e-6) for name, value in found.state_dict().items())


def test_averages_are_judged_as_their_ingredients_are(pictured, crew):
    """What is not averaged at all says what it said without us, and all speak of samples that they have not seen."""
    finalists = choose_finalists(completed(pictured.study), [1.0] * len(completed(pictured.study)), 2)
    plan, averages = Plan(tuple(finalists), 2), Averages(wanted=True)
    confirmed = confirm(pictured, plan, crew, lambda text: None, lambda *_: None, averages)
    spoke_of = ~np.isnan(confirmed[-1].probabilities).any(1)
    found = averages.of(confirmed)
    assert {len(blend.ingredients) for blend in found} == {1, 2}
    trained = {each.finalist.number: each.probabilities for each in confirmed}
    for blend, said in found.items():
        assert (~np.isnan(said).any(1) == spoke_of).all()
        for number in blend.ingredients:
            assert not np.allclose(said[spoke_of], trained[number][spoke_of], atol=1e-4)
    assert not list(pictured.directory.with_name(f"{pictured.directory.name}-confirmed").glob("*"))


def test_without_folds_heads_learn_from_as_many_samples_as_what_was_trained(pictured, crew, monkeypatch):
    ranked = completed(pictured.study)
    plan, silent = without_folds(choose_finalists(ranked, [1.0] * len(ranked), 2)), (lambda text: None, lambda *_: None)
    confirmed = confirm(pictured, plan, crew, *silent)
    heads = [each for each in confirmed if each.finalist.floor]
    (trained,) = [each for each in confirmed if not each.finalist.floor]
    judged = ~np.isnan(trained.probabilities).any(1)
    for head in heads:
        searched = as_searched(pictured, head.finalist).probabilities
        assert (~np.isnan(head.probabilities).any(1) == judged).all()
        assert not np.isnan(searched).any()
        assert not np.allclose(head.probabilities[judged], searched[judged], atol=1e-6)
        assert head.scores == []
    assert not list(pictured.directory.with_name(f"{pictured.directory.name}-confirmed").glob("*"))
    ended = replace(pictured, budget=replace(pictured.budget, end=time.time()))  # there is no time for it
    late = confirm(ended, plan, crew, *silent)
    assert all(not np.isnan(each.probabilities).any() for each in late if each.finalist.floor)


def test_all_of_the_way_is_what_was_trained(pictured, crew):
    trial = next(
        t for t in of_kind(pictured, floor=False) if (pictured.directory / str(t.number) / CHECKPOINT).exists()
    )
    finalist = Finalist(trial, spec_from_json(trial.user_attrs["spec"]), 1.0)
    learn, judge = divide(pictured.prepared.development(), trial_seed(0, finalist.spec), multilabel=False)
    order = fold_order(pictured, finalist, INLINE[0], Fold(learn, judge))
    blends = tuple(Blend((trial.number,), share) for share in (1.0, 0.99, 0.0))
    whole, most, none = say(BlendOrder(trained={trial.number: order}, blends=blends))
    kept = load_said(order.directory)
    assert (kept.rows == judge).all()
    assert np.allclose(whole, kept.probabilities, atol=1e-5)
    assert np.abs(most - whole).max() < np.abs(none - whole).max()


def test_a_soup_of_nothing_is_the_best_single_model(searched, crew):
    """What began with random weights of its own lies in no common valley."""
    told = []
    final = settle(searched, FinishConfig(model="soup", finalists=1), crew, "cpu", told.append)
    assert len(final.members) == 1
    assert final.members[0].blend is None
    assert any("no weights can be averaged" in line for line in told)


def test_an_average_that_fails_is_handed_over_as_its_first_ingredient(pictured, crew):
    told = []

    class Failing:
        stop = crew.children.stop

        def run(self, slot, function, order):
            if function is keep:
                raise TrialError("no room")
            return crew.children.run(slot, function, order)

    final = settle(
        pictured, FinishConfig(model="soup", finalists=2), replace(crew, children=Failing()), "cpu", told.append
    )
    assert any("handed over alone, not averaged: no room" in line for line in told)
    assert final.members


def test_a_given_validation_split_judges_averages_too(search_in, tmp_path, crew):
    digits = load_digits()
    kind = np.arange(120) % 4
    parts = {"train": kind < 2, "val": kind == 2, "test": kind == 3}
    arrays = {f"x_{name}": digits.images[:120][chosen] * 16 for name, chosen in parts.items()}
    arrays |= {f"y_{name}": digits.target[:120][chosen] for name, chosen in parts.items()}
    np.savez(tmp_path / "digits.npz", **arrays)
    search = search_in(
        tmp_path,
        data=str(tmp_path / "digits.npz"),
        trained=(12,),
        backbones=("trained0",),
        trials=2,
        recipes=True,
        strategies=("full_finetune",),
        overrides={"init_head": "probe"},
    )
    run_search(search, INLINE, Children(INLINE), threading.Event(), lambda: None)
    final = settle(search, FinishConfig(model="soup", finalists=2), crew, "cpu")
    assert final.members[0].blend is not None
    assert final.facts["samples"] == 30


def timed(monkeypatch, milliseconds):
    """Let a model take as many milliseconds as `milliseconds` says of its members' specs."""

    def measure(search, members, device, **_):
        return float(milliseconds([member.model.spec for member in members]))

    monkeypatch.setattr("automl_tl.finish.latency.latency_ms", measure)
    monkeypatch.setattr("automl_tl.finish.settle.latency_ms", measure)


def test_how_long_a_prediction_takes_is_always_told(searched, crew):
    assert settle(searched, FinishConfig(model="single", finalists=1), crew, "cpu").latency_ms > 0


def test_what_takes_too_long_is_not_chosen(searched, crew, monkeypatch):
    """Here each group that is kept takes 10 ms, and an ensemble what its members take."""
    timed(monkeypatch, lambda specs: sum(10 * (tap(spec.plan) + 1) for spec in specs))
    told, depths = [], {10 * (tap(spec_from_json(t.user_attrs["spec"]).plan) + 1) for t in completed(searched.study)}
    assert len(depths) > 1
    for limit in sorted(depths)[:2]:
        for model in ("single", "ensemble"):
            settings = FinishConfig(model=model, finalists=1, latency_ms=limit)
            final = settle(searched, settings, crew, "cpu", told.append)
            assert final.latency_ms <= limit
            assert not told


def test_where_all_take_too_long_the_fastest_is_handed_over_with_a_warning(searched, crew, monkeypatch):
    timed(monkeypatch, lambda specs: sum(10 * (tap(spec.plan) + 1) for spec in specs))
    told, fastest = (
        [],
        min(10 * (tap(spec_from_json(t.user_attrs["spec"]).plan) + 1) for t in completed(searched.study)),
    )
    final = settle(searched, FinishConfig(model="ensemble", finalists=1, latency_ms=1.5), crew, "cpu", told.append)
    assert len(final.members) == 1
    assert final.latency_ms == fastest
    (line,) = told
    assert f"takes {fastest:.1f} ms" in line
    assert "finish.latency_ms=1.5" in line
    assert "raise the limit" in line


def test_the_test_split_is_opened_once_and_compared_with_what_does_without(searched, crew):
    final = settle(searched, FinishConfig(), crew, "cpu")
    assert not searched.prepared.task.test.opened
    rivals = learn_rivals(searched, final, None, 2, crew, "cpu")
    assert not searched.prepared.task.test.opened
    finished = finish(searched, final, rivals, None, "cpu")
    assert searched.prepared.task.test.opened
    assert finished.test is not None
    assert finished.verdict is not None
    assert {"majority", "raw_inputs"} <= set(finished.baselines)
    assert finished.verdict.rival in ("majority", "raw_inputs", "random_weights")
