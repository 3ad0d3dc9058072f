"""One trial, from order to report: memory that runs out, plugins that changed, and what a process keeps in between."""

import shutil
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from automl_tl.engine.slot import Children
from automl_tl.engine.slots import parse_slots
from automl_tl.errors import PluginError, TrialError
from automl_tl.finish.refit import load_chosen
from automl_tl.metrics.scores import log_loss, validation_score
from automl_tl.model.checkpoint import load_tensors
from automl_tl.model.spec import spec_from_json
from automl_tl.plugin import GroupPlan, TransferPlan
from automl_tl.search.checkpoints import checkpoint_of
from automl_tl.search.judging import SAID, load_said
from automl_tl.search.order import order_for
from automl_tl.search.search import run_search, said_of
from automl_tl.search.space import default_space
from automl_tl.search.study import completed, settled
from automl_tl.search.trial import CHECKPOINT, load_trained, run_trial
from automl_tl.training.train import Stage, predict_probabilities

INLINE = parse_slots("inline", cores=1)
PLAIN = {"augmentation": "none", "mixup": 0.0, "activation_noise": 0.0}  # a step does to each row what it does alone

GREEDY = """
    import torch
    from torch import nn
    from automl_tl.plugin import Backbone, TabularInput, hookimpl

    class Layer(nn.Linear):
        def forward(self, inputs):
            if self.training and len(inputs) > MOST:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 PiB")
            return super().forward(inputs).relu()

    MOST = {most}

    def build(*, input_shape, weights):
        module = nn.Module()
        module.only = Layer(*input_shape, 16)
        return module

    @hookimpl
    def automl_tl_backbones():
        yield Backbone(
            name="greedy", description="", input=TabularInput(), layer_groups=("only",), build=build
        )
"""


@pytest.fixture
def order(make_search):
    """Return a function that makes the order of one trial of a search, and the search."""

    def make(space=default_space, **settings):
        search = make_search(space=space, **settings)
        trial = search.study.ask()
        return order_for(search, trial, space(trial, search.context), INLINE[0])

    return make


def carry_out(search):
    with Children(INLINE) as children:
        run_search(search, INLINE, children, threading.Event(), lambda: None)


def greedy(order, most, *, strategies=("full_finetune",), max_epochs=1, dropout=0.1):
    return order(
        plugins={"greedy": GREEDY.format(most=most)},
        backbones=("greedy",),
        strategies=strategies,
        max_epochs=max_epochs,
        overrides={"batch_size": 32, "dropout": dropout, **PLAIN},
    )


def test_a_trial_says_what_it_did(order):
    done = run_trial(order(max_epochs=3, strategies=("last_k",), overrides={"last_k.k": 1}))
    assert done.state == "complete"
    assert (done.facts["epochs"], done.facts["ending"], done.facts["resumable"]) == (3, "stage", False)
    assert done.facts["seconds"] > 0
    assert done.facts["validation"]["f1_macro"] == done.score
    assert 0 < done.facts["head_parameters"] < done.facts["trainable_parameters"]
    assert done.facts["inputs"]
    assert done.facts["rows_passed"] >= 0


def test_a_probe_takes_no_epochs(order):
    done = run_trial(order(strategies=("linear_probe",), overrides={"fit": "ridge"}))
    assert done.state == "complete"
    assert (done.facts["epochs"], done.facts["ending"], done.facts["resumable"]) == (0, "stage", False)
    assert done.facts["validation"]["f1_macro"] == done.score
    assert done.facts["trainable_parameters"] == done.facts["head_parameters"] == 3 * 257


@pytest.mark.parametrize("fit", ["ridge", "descent"])
def test_a_trial_knows_how_large_its_model_is(make_search, fit):
    search = make_search(trials=1, strategies=("linear_probe",), overrides={"fit": fit})
    carry_out(search)
    [trial] = completed(search.study)
    groups = sum(group.parameters for group in search.context.backbones["source_mlp"])
    assert trial.user_attrs["total_parameters"] == groups + 3 * 257


def test_when_memory_runs_out_the_micro_batch_is_halved_until_it_fits(order):
    done = run_trial(greedy(order, most=8))
    assert done.state == "complete"
    assert done.facts["micro_batch"] == 8


def test_a_smaller_micro_batch_gives_the_same_result(order):
    whole = greedy(order, most=999, dropout=0.0)
    parts = replace(whole, directory=whole.directory.with_name("in parts"), divisor=4)
    done, halved = run_trial(whole), run_trial(parts)
    assert (done.facts["micro_batch"], halved.facts["micro_batch"]) == (32, 8)
    assert done.facts["validation"]["log_loss"] == pytest.approx(halved.facts["validation"]["log_loss"], rel=1e-3)


def test_memory_may_run_out_when_layers_are_unfrozen(order):
    made = greedy(order, most=8, strategies=("lp_ft",), max_epochs=3)
    done = run_trial(made)
    assert (done.state, done.facts["micro_batch"], done.facts["epochs"]) == ("complete", 8, 3)


def test_memory_that_runs_out_at_any_size_fails_the_trial_with_the_reason(order):
    done = run_trial(greedy(order, most=0))
    assert (done.state, done.score) == ("failed", None)
    assert done.facts["reason"] == "out of memory at batch 1: CUDA out of memory. Tried to allocate 1 PiB"


def test_the_search_goes_on_after_trials_without_memory(make_search):
    search = make_search(
        trials=6,
        plugins={"greedy": GREEDY.format(most=0)},
        backbones=("greedy", "source_mlp"),
        strategies=("full_finetune",),
        overrides={"batch_size": 32},
    )
    carry_out(search)
    outcomes = {(t.user_attrs["spec"]["backbone"], t.state.name) for t in settled(search.study)}
    assert outcomes == {("greedy", "FAIL"), ("source_mlp", "COMPLETE")}


def test_other_plugins_than_the_hosts_are_refused(order):
    made = order()
    with pytest.raises(PluginError, match="the plugins changed while the run was going on: brand_new, last_k;"):
        run_trial(replace(made, versions={**made.versions, "last_k": "automl-tl 9.9", "brand_new": "zoo 1.0"}))


def called_transferred(trial, context):
    return replace(default_space(trial, context), weights="transferred")  # although nobody published any


def load(search, trial):
    """The model of a complete trial, as it is handed over."""
    return load_chosen(search, spec_from_json(trial.user_attrs["spec"]), search.directory / str(trial.number), "cpu")


@pytest.mark.parametrize("space", [default_space, called_transferred])
@pytest.mark.parametrize("fit", ["ridge", "descent"])
def test_the_saved_model_has_the_score_that_was_reported(make_search, wine_with_validation, space, fit):
    """Also where what a trial before it kept is close at hand: frozen layers with random weights are its own."""
    overrides = {"augmentation": "none", "fit": fit}  # what is changed anew in every epoch cannot be kept
    settings = {"strategies": ("linear_probe",), "keep_checkpoints": 99, "overrides": overrides}
    search = make_search(space=space, trials=3, data=wine_with_validation, **settings)
    carry_out(search)
    backbone = search.host.backbone("source_mlp")
    validation = search.prepared.files(backbone, "validation").open(backbone)
    assert len(completed(search.study)) == 3
    for trial in completed(search.study):
        assert trial.user_attrs["inputs"] == "kept in memory: weights are drawn anew in every trial"
        said = predict_probabilities(load(search, trial), validation.rows, "multiclass", "cpu")
        np.testing.assert_allclose(said_of(search, trial.number).probabilities, said, atol=1e-5)
        assert validation_score(validation.labels, said, "multiclass", "f1_macro") == trial.value
        assert log_loss(validation.labels, said) == pytest.approx(trial.user_attrs["validation"]["log_loss"], rel=1e-4)


def test_what_a_trained_model_said_of_its_holdout_is_kept(make_search):
    search = make_search(trials=1, strategies=("full_finetune",))
    carry_out(search)
    [trial] = completed(search.study)
    backbone = search.host.backbone("source_mlp")
    development, said = search.prepared.files(backbone, "development").open(backbone), said_of(search, trial.number)
    again = predict_probabilities(load(search, trial), development.rows, "multiclass", "cpu")
    np.testing.assert_allclose(said.probabilities, again[said.rows], atol=1e-5)
    score = validation_score(development.labels[said.rows], said.probabilities, "multiclass", "f1_macro")
    assert trial.value == trial.user_attrs["score"] == score
    assert 0 < len(said.rows) < len(development.labels) / 2


def test_a_head_that_is_solved_for_is_judged_by_every_sample(make_search):
    search = make_search(trials=1, strategies=("linear_probe",), overrides={"fit": "ridge"})
    carry_out(search)
    [trial] = completed(search.study)
    said, labels = said_of(search, trial.number), search.prepared.development().labels
    assert np.array_equal(said.rows, np.arange(len(labels)))
    assert validation_score(labels, said.probabilities, "multiclass", "f1_macro") == trial.value
    backbone = search.host.backbone("source_mlp")
    rows = search.prepared.files(backbone, "development").open(backbone).rows
    fitted = predict_probabilities(load(search, trial), rows, "multiclass", "cpu")
    assert log_loss(labels, fitted) < log_loss(labels, said.probabilities)  # the fit knows them, what was said does not


def test_a_trial_goes_on_where_another_one_stopped(order):
    """In two sittings as in one: the same weights, the same score, and no epoch twice."""
    made = order(strategies=("last_k",), max_epochs=9, overrides={"last_k.k": 2, **PLAIN})
    first = replace(made, stage=Stage(until=1))
    begun = run_trial(first)
    assert (begun.facts["epochs"], begun.facts["resumable"]) == (1, True)
    second = replace(made, stage=Stage(until=3), goes_on_from=first.directory, directory=made.directory / "second")
    gone_on = run_trial(second)
    at_once = run_trial(replace(made, stage=Stage(until=3), directory=made.directory / "at once"))
    assert gone_on.facts["epochs"] == at_once.facts["epochs"] == 3
    assert gone_on.score == at_once.score
    one, other = (load_tensors(made.directory / name / CHECKPOINT) for name in ("second", "at once"))
    assert all(torch.equal(one[name], other[name]) for name in other)
    assert np.array_equal(load_said(second.directory).rows, load_said(first.directory).rows)


def test_a_trial_that_got_no_further_leaves_nothing(order):
    """When the deadline comes before its first epoch is over, its configuration stays where it is."""
    made = order(strategies=("last_k",), max_epochs=9, overrides={"last_k.k": 1, **PLAIN})
    first = replace(made, stage=Stage(until=1))
    run_trial(first)
    late = replace(made, stage=Stage(until=3), goes_on_from=first.directory, directory=made.directory / "second")
    done = run_trial(replace(late, deadline=time.time() - 1))
    assert (done.state, done.facts["ending"]) == ("pruned", "deadline")
    assert not late.directory.exists()


def test_who_is_judged_by_nobody_is_trained_all_the_same(order):
    """On all development samples, at the end of a run."""
    made = order(strategies=("last_k",), max_epochs=2, overrides={"last_k.k": 1})
    done = run_trial(replace(made, judged=None))
    assert (done.state, done.score, done.facts["epochs"]) == ("complete", None, 2)
    assert (made.directory / CHECKPOINT).exists()
    assert not (made.directory / SAID).exists()


def test_nothing_is_kept_from_one_run_to_the_next_in_the_same_place(make_search, tmp_path):
    """The inline slot lives as long as this process; a directory may be removed and used again."""
    values = []
    for strategy in ("linear_probe", "full_finetune"):
        search = make_search(trials=1, strategies=(strategy,), overrides={"fit": "descent"})
        carry_out(search)
        [trial] = completed(search.study)
        values.append(trial.intermediate_values)
        for path in tmp_path.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert all(len(reported) == 1 for reported in values)


def test_a_checkpoint_holds_what_was_trained_and_no_more(make_search):
    """The frozen groups are the backbone's own."""
    search = make_search(trials=1, strategies=("last_k",), overrides={"last_k.k": 1})
    carry_out(search)
    [trial] = completed(search.study)
    names = load_tensors(checkpoint_of(search, trial)).keys()
    assert {".".join(name.split(".")[:2]) for name in names if name.startswith("groups.")} == {"groups.layer3"}
    assert {"head.weight", "head.bias", "feature_shift", "feature_scale"} <= names


def test_a_checkpoint_of_another_spec_is_refused(make_search):
    search = make_search(trials=1, strategies=("last_k",), overrides={"last_k.k": 1})
    carry_out(search)
    [trial] = completed(search.study)
    model = load(search, trial)
    del model.groups["layer3"]
    with pytest.raises(TrialError, match=r"the checkpoint .* does not fit its spec"):
        load_trained(checkpoint_of(search, trial), model)


def test_a_plan_that_breaks_the_rules_fails_in_the_trial(order):
    def space(trial, context):
        spec = default_space(trial, context)
        return replace(spec, plan=TransferPlan((GroupPlan(group="layer1", action="tune"),)))

    with pytest.raises(PluginError, match="expected one entry per layer group"):
        run_trial(order(space))
