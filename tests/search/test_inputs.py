"""What a trial trains on, and what it says of that: from the store where it can be had, and the same either way."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from automl_tl.features.rows import ActivationRows, ImageRows, StoredRows, ViewRows
from automl_tl.features.store import GIB, FeatureStore
from automl_tl.model.assemble import assemble, assemble_head
from automl_tl.model.pooling import pool
from automl_tl.model.spec import Optimization, Regularization, TrialSpec, only_head_trains
from automl_tl.plugin import GroupPlan, TransferPlan
from automl_tl.search.inputs import Reader, Splits, network_of
from automl_tl.training import batches
from automl_tl.training.train import TrainingData, train


class Scene:
    """One backbone of a search with its samples, and readers of what its store holds."""

    def __init__(self, search, name):
        self.search, self.backbone = search, search.host.backbone(name)
        self.train, self.validation = (
            search.prepared.files(self.backbone, split).open(self.backbone) for split in ("train", "validation")
        )
        self.splits = Splits(train=self.train, judged=self.validation)
        self.stored = search.stored.get(name)
        self.n = len(self.train.labels) + len(self.validation.labels)

    def spec(self, *actions, **settings):
        names = self.backbone.layer_groups
        plan = TransferPlan(tuple(GroupPlan(group=g, action=a) for g, a in zip(names, actions, strict=True)))
        sgd = Optimization(optimizer="sgd", learning_rate=0.05, batch_size=8)
        return TrialSpec(backbone=self.backbone.name, plan=plan, optimization=sgd, max_epochs=2, **settings)

    def reader(self, spec, **settings):
        return Reader(**{"spec": spec, "backbone": self.backbone, "stored": self.stored, "device": "cpu", **settings})

    def model(self, spec, seed=0):
        interface = self.search.prepared.interface(self.backbone)
        return assemble(spec, self.backbone, self.search.host.head("linear"), interface, seed=seed)

    def features(self, spec, **settings):
        return self.reader(spec, **settings).features(self.splits)

    def activations(self, spec, **settings):
        return self.reader(spec, **settings).activations(self.model(spec), self.splits)

    def entries(self, kind):
        return [facts.key for facts in self.stored.network.store.facts() if facts.key.kind == kind]

    def in_store(self, budget, root):
        """The same beside a store of outputs alone with this budget."""
        store = FeatureStore(root=root, budget=budget)
        scene = Scene(self.search, self.backbone.name)
        scene.stored = replace(self.stored, network=replace(self.stored.network, store=store))
        return scene

    def outcome(self, spec, inputs):
        """What a short training gives."""
        model = self.model(spec)
        data = TrainingData(
            train=inputs.train,
            validation=inputs.validation,
            kind="multiclass",
            metric="f1_macro",
            n_outputs=self.search.prepared.task.n_outputs,
        )
        return train(model, data, spec, device="cpu", seed=1)


@pytest.fixture
def pictures(picture_search, tmp_path):
    return Scene(picture_search, "trained0").in_store(GIB, tmp_path / "store")


@pytest.fixture
def texts(review_search, tmp_path):
    return Scene(review_search, "minilm_l6").in_store(GIB, tmp_path / "store")


@pytest.fixture
def few_steps(monkeypatch):
    monkeypatch.setattr(batches, "MIN_STEPS", 2)


def everything(rows):
    return rows.batch(np.arange(len(rows)), "cpu")


def outputs(scene, split):
    """The clean outputs of every group, for all samples of a split."""
    activation, found = everything(split.rows), []
    with torch.no_grad():
        for group in network_of(scene.backbone, scene.stored, "cpu"):
            activation = group(activation)
            found.append(activation)
    return found


# What is read from the store.


def test_where_only_the_head_trains_it_reads_pooled_outputs(pictures):
    spec = pictures.spec("freeze", "freeze", "drop", pooling="mean_std")
    inputs = pictures.features(spec)
    assert (inputs.note, inputs.passed) == ("stored features", pictures.n)
    assert inputs.train.start == inputs.validation.start == 2
    for got, split in ((inputs.train, pictures.train), (inputs.validation, pictures.validation)):
        expected = pool(outputs(pictures, split)[1], "mean_std")
        torch.testing.assert_close(everything(got.rows), expected, atol=3e-3, rtol=3e-3)
        assert np.array_equal(got.labels, split.labels)
    assert pictures.reader(spec).widths() == [24]


def test_several_taps_are_read_side_by_side(pictures):
    spec = pictures.spec("freeze", "freeze", "freeze", joined=("first",))
    inputs, reader = pictures.features(spec), pictures.reader(spec)
    first, _, third = outputs(pictures, pictures.train)
    expected = torch.cat([pool(first), pool(third)], 1)
    torch.testing.assert_close(everything(inputs.train.rows), expected, atol=3e-3, rtol=3e-3)
    assert reader.widths() == [12, 8]


@pytest.mark.parametrize(
    ("actions", "cut"),
    [(("freeze", "tune", "tune"), 1), (("freeze", "freeze", "tune"), 2), (("freeze", "reinit", "drop"), 1)],
)
def test_where_layer_groups_train_they_read_whole_outputs_at_the_cut(pictures, actions, cut):
    spec = pictures.spec(*actions)
    inputs = pictures.activations(spec)
    assert (inputs.note, inputs.passed) == (f"stored activations at cut {cut}", pictures.n)
    assert inputs.train.start == inputs.validation.start == cut
    expected = outputs(pictures, pictures.validation)[cut - 1]
    torch.testing.assert_close(everything(inputs.validation.rows), expected, atol=5e-3, rtol=5e-3)


@pytest.mark.parametrize("actions", [("freeze", "freeze", "tune"), ("freeze", "freeze", "drop")])
def test_a_second_trial_passes_nothing(pictures, actions):
    spec = pictures.spec(*actions)
    read = pictures.features if only_head_trains(spec) else pictures.activations
    assert read(spec).passed == pictures.n
    again = read(replace(spec, max_epochs=1))
    assert again.passed == 0
    assert again.note.startswith("stored")


def test_one_pass_serves_the_cuts_of_the_recipes(pictures):
    also = replace(pictures.stored, also=(1, 2))
    assert pictures.activations(pictures.spec("freeze", "freeze", "tune"), stored=also).passed == pictures.n
    inputs = pictures.activations(pictures.spec("freeze", "tune", "tune"))
    assert (inputs.note, inputs.passed) == ("stored activations at cut 1", 0)


@pytest.mark.parametrize("actions", [("freeze", "freeze", "tune"), ("freeze", "tune", "drop")])
def test_training_is_the_same_from_the_store_as_from_the_samples(pictures, few_steps, actions):
    spec = pictures.spec(*actions)
    stored = pictures.outcome(spec, pictures.activations(spec))
    plain = pictures.outcome(spec, pictures.activations(spec, stored=None, roomy=False))
    assert stored.loss == pytest.approx(plain.loss, rel=2e-2)


def test_the_deepest_stored_output_before_the_cut_is_better_than_none(pictures):
    pictures.activations(pictures.spec("freeze", "tune", "tune"))
    store = pictures.stored.network.store
    full = pictures.in_store(sum(facts.n_bytes for facts in store.facts()), store.root)
    spec = pictures.spec("freeze", "freeze", "tune")
    inputs = full.activations(spec)
    assert (inputs.note, inputs.passed) == ("stored activations at cut 1", 0)
    assert inputs.train.start == inputs.validation.start == 1
    assert np.isfinite(full.outcome(spec, inputs).loss)


@pytest.mark.parametrize(
    ("joined", "note"),
    [
        ((), "stored activations at cut 3"),
        (("second",), "stored activations at cut 1"),  # what is joined is read on the way
        (("first",), "kept in memory: the store has no room"),
    ],
)
def test_without_pooled_outputs_a_head_reads_whole_ones(pictures, joined, note):
    """Those of all groups may have no room where the whole output of one has."""
    spec = pictures.spec("freeze", "freeze", "freeze", joined=joined)
    inputs, model = pictures.activations(spec), pictures.model(spec)
    assert inputs.note == note
    with torch.no_grad():
        got = model.features(everything(inputs.train.rows), inputs.train.start)
        expected = model.features(everything(pictures.train.rows))
    torch.testing.assert_close(got, expected, atol=3e-3, rtol=3e-3)


@pytest.mark.parametrize("actions", [("freeze", "freeze", "drop"), ("freeze", "freeze", "tune")])
@pytest.mark.parametrize("settings", [{}, {"stored": None}], ids=["stored", "in memory"])
def test_rows_that_end_a_training_are_read_like_those_that_judge_it(pictures, actions, settings):
    """Clean, whatever the training rows are; and either may be missing."""
    spec, validation = pictures.spec(*actions), pictures.validation
    pictures.splits = Splits(train=pictures.train, judged=None, stopping=validation)
    from_features = only_head_trains(spec) and not settings
    inputs = pictures.features(spec) if from_features else pictures.activations(spec, **settings)
    assert inputs.validation is None
    assert inputs.stopping.start == inputs.train.start == 2
    assert np.array_equal(inputs.stopping.labels, validation.labels)
    whole = outputs(pictures, validation)[1]
    expected = pool(whole) if only_head_trains(spec) else whole
    torch.testing.assert_close(everything(inputs.stopping.rows), expected, atol=5e-3, rtol=5e-3)


# What is not, and why.


def assert_samples(inputs, scene):
    assert inputs.train.rows is scene.train.rows
    assert inputs.validation.rows is scene.validation.rows
    assert inputs.train.start == inputs.validation.start == inputs.passed == 0


def test_nothing_is_frozen(pictures):
    inputs = pictures.activations(pictures.spec("tune", "tune", "tune"))
    assert inputs.note == "nothing is frozen"
    assert_samples(inputs, pictures)


@pytest.mark.parametrize(
    ("settings", "note"),
    [
        ({"regularization": Regularization(augmentation=how)}, f"{how} augmentation changes what frozen groups see")
        for how in ("light", "strong")
    ]
    + [({"joint_source_weight": 0.3}, "source samples pass the shared groups too")],
)
@pytest.mark.parametrize("actions", [("freeze", "freeze", "tune"), ("freeze", "freeze", "freeze")])
def test_what_frozen_groups_see_anew_in_every_step_goes_around_the_store(pictures, actions, settings, note):
    spec = pictures.spec(*actions, **settings)
    assert pictures.features(spec) is None
    inputs = pictures.activations(spec)
    assert inputs.note == note
    assert_samples(inputs, pictures)
    assert pictures.entries("pooled") == pictures.entries("activations") == []


def test_weights_that_are_drawn_anew_are_kept_for_the_trial_alone(pictures):
    spec = pictures.spec("freeze", "freeze", "tune", weights="random")
    assert pictures.features(spec, stored=None) is None
    inputs = pictures.activations(spec, stored=None)
    assert inputs.note == "kept in memory: weights are drawn anew in every trial"
    assert isinstance(inputs.train.rows, ActivationRows)
    assert inputs.train.start == 2
    assert inputs.passed == pictures.n
    assert_samples(pictures.activations(spec, stored=None, roomy=False), pictures)
    assert pictures.entries("activations") == []


def test_without_room_outputs_are_kept_in_memory(pictures, tmp_path, few_steps):
    full = pictures.in_store(10, tmp_path / "small")
    spec = full.spec("freeze", "freeze", "tune")
    assert full.features(full.spec("freeze", "freeze", "drop")) is None
    inputs = full.activations(spec)
    assert inputs.note == "kept in memory: the store has no room"
    tight = full.activations(spec, roomy=False)
    assert tight.note == "the store has no room"
    assert_samples(tight, full)
    assert full.outcome(spec, inputs).loss == pytest.approx(full.outcome(spec, tight).loss, rel=1e-3)


def test_after_the_deadline_nothing_passes(pictures):
    late = time.time() - 1
    assert pictures.features(pictures.spec("freeze", "freeze", "drop"), deadline=late) is None
    assert_samples(pictures.activations(pictures.spec("freeze", "freeze", "tune"), deadline=late), pictures)


# Views.


def with_views(number, **settings):
    return {"regularization": Regularization(augmentation="light", views=number), **settings}


@pytest.mark.parametrize("actions", [("freeze", "freeze", "tune"), ("freeze", "freeze", "freeze")])
def test_training_rows_are_drawn_from_views_and_validation_is_clean(pictures, actions):
    spec = pictures.spec(*actions, **with_views(3))
    inputs = pictures.features(spec) if only_head_trains(spec) else pictures.activations(spec)
    assert isinstance(inputs.train.rows, ViewRows)
    assert len(inputs.train.rows.views) == 3
    assert isinstance(inputs.validation.rows, StoredRows)
    assert inputs.passed == 3 * len(pictures.train.labels) + len(pictures.validation.labels)
    clean = outputs(pictures, pictures.validation)[2 if only_head_trains(spec) else 1]
    expected = pool(clean) if only_head_trains(spec) else clean
    torch.testing.assert_close(everything(inputs.validation.rows), expected, atol=5e-3, rtol=5e-3)
    fewer = replace(spec, **with_views(2))
    again = pictures.features(fewer) if only_head_trains(spec) else pictures.activations(fewer)
    assert (again.passed, len(again.train.rows.views)) == (0, 2)


def test_one_view_is_read_as_it_is(pictures):
    inputs = pictures.activations(pictures.spec("freeze", "freeze", "tune", **with_views(1)))
    assert isinstance(inputs.train.rows, StoredRows)
    clean = pictures.activations(pictures.spec("freeze", "freeze", "tune"))
    assert not torch.allclose(everything(inputs.train.rows), everything(clean.train.rows))


def test_views_that_have_no_room_are_made_anew_in_every_step(pictures, tmp_path, few_steps):
    full = pictures.in_store(10, tmp_path / "small")
    spec = full.spec("freeze", "freeze", "tune", **with_views(2))
    inputs = full.activations(spec)
    assert inputs.note == "the store has no room"
    assert_samples(inputs, full)
    assert np.isfinite(full.outcome(spec, inputs).loss)


def test_a_head_that_is_solved_for_sees_the_clean_rows_and_all_views(pictures):
    spec = pictures.spec("freeze", "freeze", "freeze", fit="ridge", **with_views(2))
    views = pictures.features(spec).train.rows.views
    assert len(views) == 3
    torch.testing.assert_close(everything(views[0]), pool(outputs(pictures, pictures.train)[2]), atol=3e-3, rtol=3e-3)
    without = pictures.features(pictures.spec("freeze", "freeze", "freeze", fit="ridge", **with_views(0)))
    assert isinstance(without.train.rows, StoredRows)  # changes that differ in every step are of no use to it


@pytest.mark.parametrize("fit", ["descent", "ridge"])
@pytest.mark.parametrize("views", [1, 2])
def test_of_changed_texts_only_pooled_outputs_are_stored(texts, fit, views):
    names = texts.backbone.layer_groups
    head_only = texts.spec(*["freeze"] * len(names), fit=fit, **with_views(views))
    inputs = texts.features(head_only)
    assert inputs.note == "stored features"
    assert inputs.passed == (views + (fit == "ridge")) * len(texts.train.labels) + len(texts.validation.labels)
    spec = texts.spec(*["freeze"] * (len(names) - 1), "tune", **with_views(views))
    for each in (spec, head_only):
        plain = texts.activations(each)
        assert plain.note == "changed texts have tokens of their own, of which only pooled outputs are stored"
        assert_samples(plain, texts)


def test_texts_are_read_from_the_store_in_the_batches_of_their_lengths(texts):
    names = texts.backbone.layer_groups
    inputs = texts.activations(texts.spec(*["freeze"] * 5, "tune", "drop"))
    assert inputs.note == "stored activations at cut 5"
    assert np.array_equal(inputs.train.rows.lengths, texts.train.rows.lengths)
    pooled = texts.features(texts.spec(*["freeze"] * len(names)))
    assert np.array_equal(pooled.train.rows.lengths, texts.train.rows.lengths)


# What a trained model predicts from.


@pytest.mark.parametrize(
    ("actions", "start"),
    [
        (("freeze", "freeze", "freeze"), 3),
        (("freeze", "drop", "drop"), 1),
        (("freeze", "freeze", "tune"), 2),
        (("tune", "tune", "tune"), 0),
    ],
)
def test_a_trained_model_predicts_from_what_is_stored(pictures, actions, start):
    spec = pictures.spec(*actions)
    rows, passed = pictures.reader(spec).frozen(pictures.validation)
    assert passed == start
    model = pictures.model(spec).eval()
    with torch.no_grad():
        got, expected = model(everything(rows), passed), model(everything(pictures.validation.rows))
    torch.testing.assert_close(got, expected, atol=1e-2, rtol=1e-2)
    assert (rows is pictures.validation.rows) == (start == 0)


def test_a_trained_model_predicts_from_the_samples_where_nothing_is_stored(pictures, tmp_path):
    frozen = pictures.spec("freeze", "freeze", "freeze")
    for spec, settings in (
        (frozen, {"stored": None}),
        (pictures.spec("freeze", "freeze", "tune", joint_source_weight=0.1), {}),
        (frozen, {"stored": pictures.in_store(10, tmp_path / "small").stored}),
        (pictures.spec("freeze", "freeze", "tune"), {"stored": pictures.in_store(10, tmp_path / "small").stored}),
    ):
        rows, passed = pictures.reader(spec, **settings).frozen(pictures.validation)
        assert rows is pictures.validation.rows
        assert passed == 0


def test_a_prediction_is_of_clean_samples_whatever_the_training_saw(pictures):
    spec = pictures.spec("freeze", "freeze", "freeze", **with_views(2))
    rows, _ = pictures.reader(spec).frozen(pictures.validation)
    expected = pool(outputs(pictures, pictures.validation)[2])
    torch.testing.assert_close(everything(rows), expected, atol=3e-3, rtol=3e-3)


# The network.


def test_a_network_is_built_once_and_again_when_its_weights_change(pictures):
    one = network_of(pictures.backbone, pictures.stored, "cpu")
    assert network_of(pictures.backbone, pictures.stored, "cpu") is one
    changed = replace(pictures.stored, network=replace(pictures.stored.network, weights="other"))
    assert network_of(pictures.backbone, changed, "cpu") is not one
    assert all(not parameter.requires_grad for group in one for parameter in group.parameters())
    assert not any(group.training for group in one)


def test_random_weights_are_drawn_from_the_seed_of_what_is_stored(pictures):
    drawn = [network_of(pictures.backbone, replace(pictures.stored, random_seed=s), "cpu") for s in (1, 1, 2)]
    first, same, other = (torch.cat([p.flatten() for g in groups for p in g.parameters()]) for groups in drawn)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_the_head_alone_is_the_head_of_the_whole_model(pictures):
    spec = pictures.spec("freeze", "freeze", "drop")
    inputs, whole = pictures.features(spec), pictures.model(spec, seed=5).eval()
    alone = assemble_head(spec, pictures.search.host.head("linear"), in_features=12, n_outputs=10, seed=5).eval()
    rows = everything(inputs.train.rows)
    with torch.no_grad():
        assert torch.equal(alone(rows, 2), whole(rows, 2))
        torch.testing.assert_close(whole(everything(pictures.train.rows)), alone(rows, 2), atol=3e-3, rtol=3e-3)
    assert isinstance(pictures.train.rows, ImageRows)


def test_outputs_never_make_room_by_evicting_the_samples_of_their_own_run(make_picture_search, tmp_path):
    """However long they take to compute: without the samples no further trial could begin."""
    n_bytes = 60 * 3 * 16 * 16
    store = FeatureStore(root=tmp_path / "tight", budget=n_bytes + 80_000)
    search = make_picture_search(store=store, trained=(12, 6), backbones=("trained0", "trained1"))
    scene = Scene(search, "trained0")
    scene.stored = replace(scene.stored, network=replace(scene.stored.network, seconds_per_row=100.0))
    inputs = scene.activations(scene.spec("freeze", "tune", "tune"))
    assert inputs.note == "kept in memory: the store has no room"
    for name in ("trained0", "trained1"):
        backbone = search.host.backbone(name)
        assert len(search.prepared.files(backbone, "train").open(backbone).rows) == len(scene.train.labels)
