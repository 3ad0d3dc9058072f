"""One trial, from order to report: memory that runs out, plugins that changed, and what a process keeps in between."""

import shutil
import threading
from dataclasses import replace

import pytest

from automl_tl.engine.slot import Children
from automl_tl.engine.slots import parse_slots
from automl_tl.errors import PluginError, TrialError
from automl_tl.finish.finish import choose
from automl_tl.metrics.scores import log_loss, validation_score
from automl_tl.model.checkpoint import load_tensors
from automl_tl.plugin import GroupPlan, TransferPlan
from automl_tl.search.search import checkpoint_of, order_for, run_search
from automl_tl.search.space import default_space
from automl_tl.search.study import completed, settled
from automl_tl.search.trial import load_trained, run_trial
from automl_tl.training.train import predict_probabilities

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
        overrides={"batch_size": 32, "dropout": dropout, "patience": 99, **PLAIN},
    )


def test_a_trial_says_what_it_did(order):
    done = run_trial(order(max_epochs=3, strategies=("last_k",), overrides={"last_k.k": 1, "patience": 99}))
    assert done.state == "complete"
    assert (done.facts["epochs"], done.facts["ending"]) == (3, "finished")
    assert 0 <= done.facts["best_epoch"] < 3
    assert done.facts["validation"]["f1_macro"] == done.score
    assert 0 < done.facts["head_parameters"] < done.facts["trainable_parameters"]
    assert done.facts["inputs"]
    assert done.facts["rows_passed"] >= 0


def test_a_probe_takes_no_epochs(order):
    done = run_trial(order(strategies=("linear_probe",), overrides={"fit": "ridge"}))
    assert done.state == "complete"
    assert (done.facts["epochs"], done.facts["best_epoch"], done.facts["ending"]) == (0, -1, "finished")
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
    whole, again = greedy(order, most=999, dropout=0.0), greedy(order, most=999, dropout=0.0)
    done, halved = run_trial(whole), run_trial(replace(again, spec=whole.spec, seed=whole.seed, divisor=4))
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


@pytest.mark.parametrize("space", [default_space, called_transferred])
@pytest.mark.parametrize("fit", ["ridge", "descent"])
def test_the_saved_model_has_the_score_that_was_reported(make_search, space, fit):
    """Also where what a trial before it kept is close at hand: frozen layers with random weights are its own."""
    overrides = {"augmentation": "none", "fit": fit}  # what is changed anew in every epoch cannot be kept
    search = make_search(space=space, trials=3, strategies=("linear_probe",), keep_checkpoints=99, overrides=overrides)
    carry_out(search)
    backbone = search.host.backbone("source_mlp")
    validation = search.prepared.files(backbone, "validation").open(backbone)
    assert len(completed(search.study)) == 3
    for trial in completed(search.study):
        assert trial.user_attrs["inputs"] == "kept in memory: weights are drawn anew in every trial"
        model = choose(replace(search, study=OneTrial(trial)), "cpu").model
        said = predict_probabilities(model, validation.rows, "multiclass", "cpu")
        assert validation_score(validation.labels, said, "multiclass", "f1_macro") == trial.value
        assert log_loss(validation.labels, said) == pytest.approx(trial.user_attrs["validation"]["log_loss"], rel=1e-4)


class OneTrial:
    """As much of a study as it takes to choose its only trial."""

    def __init__(self, trial):
        self._trial = trial

    def get_trials(self, deepcopy=True, states=None):
        return [self._trial]


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
    model = choose(search, "cpu").model
    del model.groups["layer3"]
    with pytest.raises(TrialError, match=r"the checkpoint .* does not fit its spec"):
        load_trained(checkpoint_of(search, trial), model)


def test_a_plan_that_breaks_the_rules_fails_in_the_trial(order):
    def space(trial, context):
        spec = default_space(trial, context)
        return replace(spec, plan=TransferPlan((GroupPlan(group="layer1", action="tune"),)))

    with pytest.raises(PluginError, match="expected one entry per layer group"):
        run_trial(order(space))
