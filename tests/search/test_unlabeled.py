"""Unlabeled samples in a search: they pass once, probes learn from them, and without them nothing changes."""

import threading
from dataclasses import replace

import numpy as np
import pytest
from sklearn.datasets import load_digits

from automl_tl.engine.slots import parse_slots
from automl_tl.errors import ConfigError, TrialError
from automl_tl.features.samples import rows_in_memory
from automl_tl.finish.refit import load_chosen
from automl_tl.metrics.scores import validation_score
from automl_tl.model.spec import Regularization, TrialSpec, check_spec, spec_from_json
from automl_tl.plugin import GroupPlan, TransferPlan
from automl_tl.search import unlabeled as module
from automl_tl.search.judging import load_said
from automl_tl.search.order import training_order
from automl_tl.search.recipes import recipe_parameters
from automl_tl.search.search import run_next
from automl_tl.search.space import default_space, suggest_spec
from automl_tl.search.unlabeled import pass_unlabeled, unlabeled_files, what_they_gave, with_unlabeled
from automl_tl.training.train import predict_probabilities

INLINE = parse_slots("inline", cores=1)
GROUPS = ("first", "second", "third")
FROZEN = TransferPlan(tuple(GroupPlan(group=group, action="freeze") for group in GROUPS))
TAUGHT = {
    "spread": {"fit": "ridge", "unlabeled": "propagation"},
    "named": {"fit": "ridge", "unlabeled": "pseudo_labels"},
    "logistic": {"fit": "logistic", "unlabeled": "propagation"},
    "joined": {"fit": "ridge", "unlabeled": "propagation", "joined": ("first", "second")},
    "views": {
        "fit": "ridge",
        "unlabeled": "propagation",
        "regularization": Regularization(augmentation="light", views=1),
    },
}


def spec_of(**settings):
    return TrialSpec(backbone="trained0", plan=FROZEN, **settings)


def silent(what, done, n):
    pass


@pytest.fixture
def open_with(make_picture_search, tmp_path):
    """Return a function that opens a search on 60 digits with 90 unlabeled ones."""
    images = (load_digits().images * 16).clip(0, 255).astype(np.uint8)
    np.savez(tmp_path / "more.npz", x=np.roll(images[:90], 1, axis=2))  # none of them is a labeled one

    def open_search(**settings):
        data = {"path": "sklearn:digits", "per_class": 6, "validation_fraction": 0.04, "test_fraction": 0.05}
        search = make_picture_search(data={**data, "unlabeled": str(tmp_path / "more.npz")}, **settings)
        search = replace(search, favored={"trained0": 0.5})
        return replace(search, context=with_unlabeled(search.context, search.prepared.task))

    return open_search


def carry_out(search, crew):
    assert run_next(search, INLINE[0], crew.children, threading.Event(), threading.Lock())
    trial = search.study.trials[-1]
    assert trial.state.name == "COMPLETE", trial.user_attrs
    return trial


@pytest.mark.parametrize("head", TAUGHT)
def test_a_head_that_unlabeled_samples_teach_is_a_trial_like_any_other(open_with, crew, head):
    spec = spec_of(**TAUGHT[head])
    search = pass_unlabeled(open_with(trials=1, space=lambda trial, context: spec), crew, lambda text: None, silent)
    trial = carry_out(search, crew)
    facts, development = trial.user_attrs, search.prepared.development()
    said = load_said(search.directory / str(trial.number))
    assert np.array_equal(said.rows, np.arange(len(development.labels)))  # each judged by a fit that left it out
    assert trial.value == validation_score(development.labels, said.probabilities, "multiclass", "f1_macro")
    assert (facts["unlabeled_samples"], facts["inputs"], facts["epochs"]) == (90, "stored features", 0)
    assert 0 < facts["unlabeled_learnt_from"] <= 90
    assert spec_from_json(facts["spec"]) == spec


def test_it_can_be_deployed(open_with, crew):
    spec = spec_of(**TAUGHT["joined"])
    search = open_with(trials=1, space=lambda trial, context: spec)
    trial = carry_out(search, crew)
    model = load_chosen(search, spec, search.directory / str(trial.number), "cpu")
    task, backbone = search.prepared.task, search.host.backbone("trained0")
    rows = rows_in_memory(task.train.samples, backbone, search.prepared.formats["trained0"])
    said = predict_probabilities(model, rows, task.kind, "cpu")
    assert validation_score(task.train.labels, said, task.kind, "f1_macro") > trial.value


def test_without_stored_outputs_the_samples_pass_in_the_trial(open_with, crew):
    spec = spec_of(**TAUGHT["spread"])
    stored = open_with(trials=1, space=lambda trial, context: spec)
    with_store = carry_out(stored, crew)
    search = replace(open_with(trials=1, space=lambda trial, context: spec, name="bare"), stored={})
    without = carry_out(search, crew)
    assert without.user_attrs["unlabeled_samples"] == 90
    assert without.user_attrs["inputs"] != "stored features"
    assert without.value == pytest.approx(with_store.value, abs=0.1)


def test_they_pass_once_and_are_spoken_of(open_with, crew):
    heard, search = [], open_with()
    search = replace(search, context=replace(search.context, unlabeled=()))
    assert pass_unlabeled(search, crew, heard.append, silent).context.unlabeled == ("trained0",)
    assert heard == ["90 of 90 unlabeled samples have passed trained0: probes that learn from them as well are tried"]
    assert search.study.user_attrs["rows_passed"] == 90
    pass_unlabeled(search, crew, heard.append, silent)
    assert search.study.user_attrs["rows_passed"] == 90


def test_as_many_pass_as_there_is_time_for_and_the_same_ones_later(open_with, crew):
    heard, search = [], open_with()
    slow = replace(search.stored["trained0"], network=replace(search.stored["trained0"].network, seconds_per_row=1.0))
    hurried = replace(search, stored={"trained0": slow}, budget=replace(search.budget, seconds=200.0))
    pass_unlabeled(hurried, crew, heard.append, silent)
    assert heard[0].startswith("20 of 90 unlabeled samples, as many as 10% of the time limit allows, have passed")
    backbone = search.host.backbone("trained0")
    assert len(unlabeled_files(search, backbone).open(backbone).digests) == 20
    order = training_order(
        search,
        spec_of(**TAUGHT["spread"]),
        INLINE[0],
        directory=search.directory,
        learn=np.arange(9),
        judge=None,
        seed=0,
    )
    assert len(order.unlabeled.labels()) == 20
    pass_unlabeled(search, crew, heard.append, silent)  # a sitting with all the time there is
    assert heard[1].startswith("20 of 90")


def test_many_labels_or_no_transferred_weights_leave_them_aside(open_with, crew, monkeypatch):
    heard, search = [], open_with()
    search = replace(search, context=replace(search.context, unlabeled=()))
    nothing = pass_unlabeled(replace(search, favored={}), crew, heard.append, silent)
    monkeypatch.setattr(module, "ENOUGH_LABELED", 2)
    many = pass_unlabeled(search, crew, heard.append, silent)
    assert nothing.context.unlabeled == many.context.unlabeled == ()
    assert with_unlabeled(search.context, search.prepared.task).unlabeled == ()
    assert "there is no backbone with transferred weights" in heard[0]
    assert "nothing to add to 2 labeled ones of a class" in heard[1]


def test_their_recipes_follow_the_other_probes(open_with):
    context = replace(open_with().context, strategies=("linear_probe", "suffix"), taps={"trained0": (2, 3, 1)})
    names = [name.partition(" (")[0] for name, *_ in recipe_parameters(default_space, context, 99)]
    assert names[5:7] == ["spread labels", "pseudo-labels"]
    without = [
        name.partition(" (")[0] for name, *_ in recipe_parameters(default_space, replace(context, unlabeled=()), 99)
    ]
    assert without == names[:5] + names[7:]


def test_a_user_can_decide(open_with):
    context = replace(open_with(overrides={"unlabeled": "pseudo_labels"}).context, strategies=("suffix",))
    _, spec, _ = next(recipe_parameters(default_space, context, 1))
    assert spec.unlabeled == "pseudo_labels"


def test_without_unlabeled_samples_nothing_is_asked_and_nothing_changes(make_picture_search, crew):
    search = make_picture_search(strategies=("suffix",))
    assert with_unlabeled(search.context, search.prepared.task) is search.context
    assert pass_unlabeled(search, crew, lambda text: pytest.fail(text), silent) is search
    assert not any("unlabeled" in chosen for *_, chosen in recipe_parameters(default_space, search.context, 99))
    spec = spec_of(fit="ridge")
    assert "unlabeled" not in spec.to_json()
    assert spec.digest() != replace(spec, unlabeled="propagation").digest()


@pytest.mark.parametrize("settings", [{"fit": "prototypes"}, {"fit": "descent"}])
def test_only_heads_fit_by_regression_learn_from_them(settings):
    with pytest.raises(ConfigError, match="unlabeled='propagation' is for fit='ridge' and fit='logistic'"):
        check_spec(spec_of(unlabeled="propagation", **settings))


def test_a_space_that_asks_for_samples_that_are_not_there(make_picture_search):
    search, spec = make_picture_search(), spec_of(**TAUGHT["spread"])
    with pytest.raises(ConfigError, match="no unlabeled samples are there for backbone 'trained0'"):
        suggest_spec(lambda trial, context: spec, None, search.context)
    with pytest.raises(TrialError, match="the task has none"):
        unlabeled_files(search, search.host.backbone("trained0"))


def test_the_sentence_on_what_they_gave(open_with, crew):
    specs = iter([spec_of(fit="ridge"), spec_of(**TAUGHT["spread"])])
    search = open_with(trials=2, space=lambda trial, context: next(specs))
    plain = carry_out(search, crew)
    assert what_they_gave(search) is None
    taught = carry_out(search, crew)
    assert f"learns from them has f1_macro {taught.value:.3f}" in what_they_gave(search)
    assert f"does not {plain.value:.3f}" in what_they_gave(search)
