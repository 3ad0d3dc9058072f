"""Heads that are solved for: trials like any other, that leave models like any other."""

import json
import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from automl_tl.engine.slots import parse_slots
from automl_tl.features.rows import StoredRows
from automl_tl.features.samples import rows_in_memory
from automl_tl.finish.refit import load_chosen
from automl_tl.metrics.scores import log_loss, validation_score
from automl_tl.model.assemble import assemble, assemble_head
from automl_tl.model.ensemble import Member
from automl_tl.model.spec import Regularization, TrialSpec
from automl_tl.plugin import GroupPlan, TransferPlan
from automl_tl.probes.logistic import fit_logistic
from automl_tl.probes.ridge import fit_ridge
from automl_tl.search import probe as module
from automl_tl.search.checkpoints import checkpoint_of
from automl_tl.search.inputs import Reader, Splits
from automl_tl.search.probe import features_of, fit_in_closed_form, linear_start
from automl_tl.search.search import run_next
from automl_tl.search.study import completed
from automl_tl.search.trial import load_trained
from automl_tl.serve.model import load_model, save_model
from automl_tl.training.train import Labelled, predict_probabilities

INLINE = parse_slots("inline", cores=1)
HEADS = {
    "ridge": {"fit": "ridge"},
    "logistic": {"fit": "logistic"},
    "prototypes": {"fit": "prototypes"},
    "joined": {"fit": "ridge", "joined": ("first", "second")},
    "spread": {"fit": "ridge", "pooling": "mean_std"},
}
EACH_HEAD = pytest.mark.parametrize("head", HEADS)


def spec_of(*actions, **settings):
    groups = ("first", "second", "third")
    plan = TransferPlan(tuple(GroupPlan(group=g, action=a) for g, a in zip(groups, actions, strict=True)))
    return TrialSpec(backbone="trained0", plan=plan, **settings)


def carry_out(search, crew):
    assert run_next(search, INLINE[0], crew.children, threading.Event(), threading.Lock())


@pytest.fixture
def run(make_picture_search, crew):
    """Return a function that runs one trial of a spec as the search does; it returns the search and the trial."""

    def run_one(spec):
        search = make_picture_search(trials=1, space=lambda trial, context: spec)
        carry_out(search, crew)
        return search, search.study.trials[0]

    return run_one


@EACH_HEAD
def test_a_probe_is_a_trial_of_the_study(run, head):
    _, trial = run(spec_of("freeze", "freeze", "freeze", **HEADS[head]))
    facts = trial.user_attrs
    assert trial.state.name == "COMPLETE", facts
    assert trial.value == facts["validation"]["f1_macro"]
    assert facts["inputs"] == "stored features"
    assert (facts["epochs"], facts["ending"], facts["resumable"]) == (0, "stage", False)
    assert 0 < facts["left_out_score"] <= 1
    assert facts["strength"] >= 0


@EACH_HEAD
def test_a_probe_is_deployable(run, head, tmp_path):
    """From the raw samples it says what the head that was solved for says of the stored features."""
    spec = spec_of("freeze", "freeze", "freeze", **HEADS[head])
    search, trial = run(spec)
    backbone, task, prepared = search.host.backbone("trained0"), search.prepared.task, search.prepared
    model = load_chosen(search, spec, search.directory / str(trial.number), "cpu")
    rows = rows_in_memory(task.validation.samples, backbone, prepared.formats["trained0"])
    said = predict_probabilities(model, rows, task.kind, "cpu")
    splits = Splits(train=prepared.files(backbone, "validation").open(backbone))
    stored = Reader(spec=spec, backbone=backbone, stored=search.stored["trained0"], device="cpu").features(splits)
    alone = assemble_head(spec, search.host.head("linear"), in_features=model.head.in_features, n_outputs=10, seed=0)
    alone = load_trained(checkpoint_of(search, trial), alone)
    recorded = predict_probabilities(alone, stored.train, task.kind, "cpu")
    assert log_loss(task.validation.labels, said) == pytest.approx(
        log_loss(task.validation.labels, recorded), rel=2e-2, abs=1e-3
    )
    save_model(tmp_path / "model", [Member(model=model)], task, prepared.formats, search.host)
    served = load_model(tmp_path / "model").probabilities(task.validation.samples)
    np.testing.assert_allclose(served, said, atol=1e-5)
    assert json.loads((checkpoint_of(search, trial).parent / "spec.json").read_text()) == spec.to_json()


@pytest.fixture
def pictures(picture_search):
    """Return what it takes to solve for a head by hand."""
    backbone = picture_search.host.backbone("trained0")
    opened = [picture_search.prepared.files(backbone, split).open(backbone) for split in ("train", "validation")]
    return picture_search, backbone, opened


def solve(pictures, spec, *, groups=None, changed=lambda inputs: inputs):
    search, backbone, opened = pictures
    reader = Reader(spec=spec, backbone=backbone, stored=search.stored["trained0"], device="cpu")
    inputs = changed(reader.features(Splits(train=opened[0], judged=opened[1])))
    model = assemble_head(spec, search.host.head("linear"), in_features=sum(reader.widths()), n_outputs=10, seed=0)
    outcome, facts = fit_in_closed_form(model, inputs, reader.widths(), groups, "multiclass", "f1_macro", "cpu")
    return model, inputs, outcome, facts


@EACH_HEAD
def test_the_head_says_what_is_reported(pictures, head):
    spec = spec_of("freeze", "freeze", "freeze", **HEADS[head])
    model, inputs, outcome, _ = solve(pictures, spec)
    said = predict_probabilities(model, inputs.validation, "multiclass", "cpu")
    np.testing.assert_allclose(outcome.validation, said, atol=1e-6)
    assert outcome.score == validation_score(inputs.validation.labels, said, "multiclass", "f1_macro")
    assert (outcome.epochs, outcome.curve, outcome.state) == (0, [], None)
    training = predict_probabilities(model, inputs.train, "multiclass", "cpu")
    assert validation_score(inputs.train.labels, training, "multiclass", "f1_macro") > 0.5  # it has learned something


def test_the_same_spec_has_the_same_result(pictures):
    spec = spec_of("freeze", "freeze", "freeze", fit="ridge")
    one, other = solve(pictures, spec), solve(pictures, spec)
    assert np.array_equal(one[2].validation, other[2].validation)
    assert one[3] == other[3]


def test_validation_labels_choose_nothing(pictures):
    spec = spec_of("freeze", "freeze", "freeze", fit="ridge")

    def relabelled(inputs):
        labels = (inputs.validation.labels + 1) % 10
        return replace(inputs, validation=replace(inputs.validation, labels=labels))

    model, _, outcome, facts = solve(pictures, spec)
    other_model, _, other, other_facts = solve(pictures, spec, changed=relabelled)
    assert torch.equal(model.head.weight, other_model.head.weight)
    assert facts == other_facts
    assert outcome.score != other.score


@EACH_HEAD
def test_without_rows_to_judge_it_a_head_is_judged_by_the_fits_that_left_each_sample_out(pictures, head):
    spec = spec_of("freeze", "freeze", "freeze", **HEADS[head])
    model, inputs, outcome, facts = solve(pictures, spec, changed=lambda inputs: replace(inputs, validation=None))
    labels = inputs.train.labels
    assert outcome.validation.shape == (len(labels), 10)
    assert outcome.score == validation_score(labels, outcome.validation, "multiclass", "f1_macro")
    assert outcome.score == pytest.approx(facts["left_out_score"])
    fitted = predict_probabilities(model, inputs.train, "multiclass", "cpu")
    assert log_loss(labels, fitted) < log_loss(labels, outcome.validation)
    judged, *_ = solve(pictures, spec)
    assert torch.equal(judged.head.weight, model.head.weight)  # who judges it changes nothing of it


def test_of_several_views_the_clean_samples_are_what_judges(pictures):
    settings = Regularization(augmentation="light", views=2)
    spec = spec_of("freeze", "freeze", "freeze", fit="ridge", regularization=settings)
    _, inputs, outcome, facts = solve(pictures, spec, changed=lambda inputs: replace(inputs, validation=None))
    assert len(outcome.validation) == len(inputs.train.labels)
    assert outcome.score != facts["left_out_score"]  # that is of all views


def test_samples_of_one_group_are_left_out_together(pictures):
    """A picture that is there twice says nothing of the other one."""
    spec = spec_of("freeze", "freeze", "freeze", fit="ridge")

    def doubled(inputs):
        rows = inputs.train.rows
        twice = np.tile(np.arange(len(rows)), 2)
        values = rows.values
        twofold = replace(values, shard_of=values.shard_of[twice], row_of=values.row_of[twice])
        train = Labelled(rows=replace(rows, values=twofold), labels=inputs.train.labels[twice], start=3)
        return replace(inputs, train=train)

    groups = np.tile(np.arange(len(pictures[2][0].labels)), 2)
    *_, alone = solve(pictures, spec)
    *_, blind = solve(pictures, spec, changed=doubled)
    *_, grouped = solve(pictures, spec, changed=doubled, groups=groups)
    assert blind["left_out_score"] > grouped["left_out_score"] + 0.1
    assert grouped["left_out_score"] == pytest.approx(alone["left_out_score"], abs=0.1)


def test_joined_taps_have_the_widths_of_their_taps(pictures):
    spec = spec_of("freeze", "freeze", "freeze", fit="ridge", joined=("first", "second"), pooling="mean_std")
    model, *_ = solve(pictures, spec)
    assert model.head.in_features == 24 + 24 + 16


def test_class_weights_are_heard(pictures):
    plain = spec_of("freeze", "freeze", "freeze", fit="ridge")
    balanced = replace(plain, regularization=Regularization(class_weight="balanced"))

    def skewed(inputs):
        labels = np.where(np.arange(len(inputs.train.labels)) % 3 > 0, 0, inputs.train.labels)
        return replace(inputs, train=replace(inputs.train, labels=labels))

    heads = [solve(pictures, spec, changed=skewed)[0].head.weight for spec in (plain, balanced)]
    assert not torch.allclose(*heads)


def test_views_are_all_solved_for_at_once(pictures):
    """A sample's views are left out with it."""
    settings = Regularization(augmentation="light", views=2)
    spec = spec_of("freeze", "freeze", "freeze", fit="ridge", regularization=settings)
    model, inputs, _, facts = solve(pictures, spec)
    views = np.concatenate([rows.features() for rows in inputs.train.rows.views])
    labels = np.tile(inputs.train.labels, 3)
    expected = fit_ridge(views, labels, "multiclass", 10, groups=np.tile(np.arange(len(labels) // 3), 3))
    np.testing.assert_allclose(model.head.weight.detach().numpy().T, expected.weight, rtol=1e-5, atol=1e-6)
    assert facts["left_out_score"] == expected.score


@pytest.mark.parametrize("actions", [("freeze", "freeze", "freeze"), ("freeze", "freeze", "drop")])
def test_where_pooled_outputs_are_not_stored_it_reads_what_there_is(pictures, actions):
    """Whole outputs, or the samples themselves: what comes of it is the same."""
    search, backbone, opened = pictures
    spec = spec_of(*actions, fit="ridge")
    _, _, expected, _ = solve(pictures, spec)
    model = whole_model(search, backbone, spec)
    settings = {"spec": spec, "backbone": backbone, "device": "cpu"}
    readers = {
        "stored activations at cut": Reader(stored=search.stored["trained0"], **settings),
        "kept in memory": Reader(stored=None, **settings),
        "the store has no room": Reader(stored=None, roomy=False, **settings),
    }
    for note, reader in readers.items():
        inputs = reader.activations(model, Splits(train=opened[0], judged=opened[1]))
        assert inputs.note.startswith(note)
        outcome, _ = fit_in_closed_form(model, inputs, [], None, "multiclass", "f1_macro", "cpu")
        assert np.abs(outcome.validation - expected.validation).mean() < 0.01


def whole_model(search, backbone, spec):
    return assemble(spec, backbone, search.host.head("linear"), search.prepared.interface(backbone), seed=0)


def test_features_of_texts_come_in_the_order_of_their_rows(review_search):
    backbone = review_search.host.backbone("minilm_l6")
    split = review_search.prepared.files(backbone, "train").open(backbone)
    plan = TransferPlan(tuple(GroupPlan(group=g, action="freeze") for g in backbone.layer_groups))
    spec = TrialSpec(backbone="minilm_l6", plan=plan, fit="ridge")
    model = whole_model(review_search, backbone, spec).eval()
    features = features_of(model, Labelled(rows=split.rows, labels=split.labels), "cpu")
    with torch.no_grad():
        alone = [model.features(split.rows.batch(np.array([i]), "cpu"))[0].numpy() for i in range(len(split.labels))]
    np.testing.assert_allclose(features, np.stack(alone), atol=1e-4)


def test_probes_and_trainings_are_ranked_together(make_picture_search, crew):
    specs = iter([spec_of("freeze", "freeze", "freeze", fit="ridge"), spec_of("freeze", "freeze", "tune")])
    search = make_picture_search(trials=2, space=lambda trial, context: next(specs))
    carry_out(search, crew)
    carry_out(search, crew)
    ranked = completed(search.study)
    assert [trial.value for trial in ranked] == sorted((trial.value for trial in ranked), reverse=True)
    assert len(ranked) == 2


@EACH_HEAD
def test_large_features_stay_mapped(pictures, monkeypatch, head):
    spec = spec_of("freeze", "freeze", "freeze", **HEADS[head])
    expected, *_ = solve(pictures, spec)
    monkeypatch.setattr(module, "LARGE", 10)
    monkeypatch.setattr(StoredRows, "features", lambda rows: pytest.fail("all are held at once"))
    got, *_ = solve(pictures, spec)
    torch.testing.assert_close(got.head.weight, expected.head.weight, rtol=1e-3, atol=1e-4)


def rare_class(n=300, seed=0):
    """Features whose rare class a ridge regression drowns in the others, and a logistic one does not."""
    generator = np.random.default_rng(seed)
    labels = np.repeat([0, 1, 2], [n, n, n // 30])
    centers = np.array([[0.0, 0.0], [6.0, 0.0], [3.0, 1.5]])
    features = centers[labels] + generator.normal(0, 0.5, (len(labels), 2))
    return features.astype(np.float32), labels


@pytest.mark.parametrize("text", [False, True])
def test_a_head_starts_from_the_probe_that_knows_left_out_samples_better_where_there_is_time(text):
    features, labels = rare_class()
    lengths = np.full(len(labels), 5) if text else None
    split = SimpleNamespace(labels=labels, groups=None, rows=SimpleNamespace(lengths=lengths))
    stored = SimpleNamespace(batch=lambda chosen, device: torch.from_numpy(features[chosen]))
    reader = SimpleNamespace(clean_features=lambda asked: stored if asked is split else None)
    start = linear_start(reader, split, "multiclass", 3, "f1_macro")
    ridge = fit_ridge(features, labels, "multiclass", 3, metric="f1_macro")
    logistic = fit_logistic(features, labels, "multiclass", 3, metric="f1_macro", start=ridge)
    assert logistic.log_loss < ridge.log_loss
    np.testing.assert_allclose(start.weight, (logistic if text else ridge).weight)
    np.testing.assert_allclose(start.bias, (logistic if text else ridge).bias)


def test_a_head_starts_from_no_probe_where_no_features_are_stored():
    reader = SimpleNamespace(clean_features=lambda asked: None)
    assert linear_start(reader, SimpleNamespace(), "multiclass", 3, "f1_macro") is None
