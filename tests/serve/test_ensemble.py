"""An ensemble as files: it says what its members say together, and keeps once what they share."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, load_wine

from automl_tl.data import TableEncoder, task_from_python
from automl_tl.errors import RunError
from automl_tl.features.samples import InputFormat, rows_in_memory
from automl_tl.host import load_host
from automl_tl.metrics.scores import decide
from automl_tl.model.assemble import Interface, assemble
from automl_tl.model.checkpoint import load_tensors, save_tensors
from automl_tl.model.ensemble import UNADJUSTED, Adjustment, Member
from automl_tl.model.spec import Regularization, TrialSpec
from automl_tl.plugin import GroupPlan, TransferPlan
from automl_tl.serve import model as module
from automl_tl.serve.model import load_model, save_model
from automl_tl.training.evaluation import predict_probabilities

LITE, MOBILE = "efficientnet_lite0", "mobilenet_v2"


@pytest.fixture(scope="module")
def host():
    return load_host()


@pytest.fixture(scope="module")
def pictures():
    images, labels = load_digits(n_class=4, return_X_y=True)
    return task_from_python(images[:60].reshape(-1, 8, 8), labels[:60], seed=0)


@pytest.fixture
def wine():
    return task_from_python(*load_wine(return_X_y=True), seed=0)


@pytest.fixture
def wine_formats(wine):
    return {"source_mlp": table_format(wine)}


def table_format(task):
    return InputFormat(encoder=TableEncoder.fit(task.train.samples.frame, task.schema.categorical_columns))


def planned(host, name, *, kept=None, tuned=0, **settings):
    """A spec that keeps the first groups of a backbone and fine-tunes the last `tuned` of them."""
    names = host.backbone(name).layer_groups
    kept = kept or len(names)
    actions = ["freeze"] * (kept - tuned) + ["tune"] * tuned + ["drop"] * (len(names) - kept)
    plan = TransferPlan(tuple(GroupPlan(group=g, action=a) for g, a in zip(names, actions, strict=True)))
    return TrialSpec(backbone=name, plan=plan, **settings)


def trained(host, spec, task, formats, seed):
    """A model whose trained part has moved, and whose features are scaled, as training leaves it."""
    backbone = host.backbone(spec.backbone)
    if backbone.weights is not None and backbone.weights.find() is None:
        pytest.skip(f"the weights of {backbone.name} are not installed")
    interface = Interface(input_shape=formats[backbone.name].input_shape(backbone), n_outputs=task.n_outputs)
    model = assemble(spec, backbone, host.head("linear"), interface, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for plan, _, parameter in model.trained_parameters():
            spread = 1.0 if plan is None else 0.1 * float(parameter.std(correction=0))
            parameter.add_(spread * torch.randn(parameter.shape, generator=generator))
        rows = rows_in_memory(task.validation.samples, backbone, formats[backbone.name])
        model.set_feature_scale(model.eval().features(rows.batch(np.arange(len(rows)), "cpu")))
    return model


@pytest.fixture(scope="module")
def several(host, pictures):
    """Two networks: probes at two taps, one that joins, a fine-tuned suffix, and a probe of the other one."""
    formats = {LITE: InputFormat(size=64), MOBILE: InputFormat(size=64)}
    specs = [
        planned(host, LITE, kept=5),
        planned(host, MOBILE, kept=8),
        planned(host, LITE, joined=("stage2", "stage5"), pooling="mean_std"),
        planned(host, LITE, tuned=1),
    ]
    members = [
        Member(model=trained(host, spec, pictures, formats, seed), weight=seed + 1) for seed, spec in enumerate(specs)
    ]
    return members, formats


ADJUSTMENT = Adjustment(temperature=1.5, bias=(0.5, 0.0, -1.0, 0.25))


@pytest.fixture(scope="module")
def said(host, pictures, several):
    """What the members say of the validation samples, each by itself, (M, N, K)."""
    members, formats = several
    samples = pictures.validation.samples
    backbones = [host.backbone(member.model.spec.backbone) for member in members]
    rows = [rows_in_memory(samples, backbone, formats[backbone.name]) for backbone in backbones]
    return np.stack(
        [predict_probabilities(m.model, r, pictures.kind, "cpu") for m, r in zip(members, rows, strict=True)]
    )


@pytest.fixture(scope="module")
def saved(host, pictures, several, said, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    members, formats = several
    save_model(folder, members, pictures, formats, host, adjustment=ADJUSTMENT)
    return folder


def test_it_says_what_its_members_say_together(pictures, said, saved):
    model, samples = load_model(saved), pictures.validation.samples
    mean = np.average(said, axis=0, weights=[1, 2, 3, 4])
    expected = ADJUSTMENT.apply(mean, "multiclass")
    assert np.ptp(said, axis=0).max() > 0.1  # they differ
    np.testing.assert_allclose(model.probabilities(samples), expected, atol=1e-5)
    np.testing.assert_allclose(replace(model, adjustment=UNADJUSTED).probabilities(samples), mean, atol=1e-5)
    table = model.predictions(samples)
    assert list(table["class"]) == [model.classes[k] for k in decide(expected, "multiclass")]


def test_members_come_back_with_specs_and_weights(several, saved):
    loaded = load_model(saved)
    expected = {(member.model.spec.digest(), member.weight) for member in several[0]}
    assert {(member.model.spec.digest(), member.weight) for member in loaded.members} == expected
    assert sorted((part.backbone.name, len(part.family.members)) for part in loaded.parts) == [(LITE, 3), (MOBILE, 1)]
    assert loaded.adjustment == ADJUSTMENT


def test_frozen_groups_are_kept_once(saved):
    keys = load_tensors(saved / "model.safetensors")
    stems = [key for key in keys if ".stem." in key and key.endswith("weight") and keys[key].ndim == 4]
    assert sorted(stems) == sorted({key for key in stems if ".frozen." in key})
    assert len(stems) == 2  # one a backbone
    tops = [key for key in keys if ".groups.top." in key and keys[key].ndim == 4]
    assert len(tops) == 2  # the frozen one and the fine-tuned one
    lite = next(part for part in load_model(saved).parts if part.backbone.name == LITE)
    held = {id(member.model.groups["stem"]) for member in lite.family.members}
    assert held == {id(lite.family.trunk[0])}


def test_samples_are_decoded_once_for_networks_that_read_them_alike(pictures, saved, monkeypatch):
    calls = []

    def count(samples, backbone, layout):
        calls.append(backbone.name)
        return rows_in_memory(samples, backbone, layout)

    monkeypatch.setattr(module, "rows_in_memory", count)
    load_model(saved).probabilities(pictures.validation.samples)
    assert len(calls) == 1


def test_networks_may_read_pictures_of_their_own_size(host, pictures, several, tmp_path):
    members, formats = several
    formats = {**formats, MOBILE: InputFormat(size=32)}
    save_model(tmp_path, members[:2], pictures, formats, host)
    samples, apart = pictures.validation.samples, []
    for member in members[:2]:
        backbone = host.backbone(member.model.spec.backbone)
        rows = rows_in_memory(samples, backbone, formats[backbone.name])
        apart.append(predict_probabilities(member.model, rows, pictures.kind, "cpu"))
    np.testing.assert_allclose(
        load_model(tmp_path).probabilities(samples), np.average(apart, axis=0, weights=[1, 2]), atol=1e-5
    )


def test_chunks_views_and_pickles_change_nothing(pictures, saved, monkeypatch):
    model, samples = load_model(saved), pictures.validation.samples
    plain, viewed = model.probabilities(samples), model.probabilities(samples, views=2)
    assert not np.allclose(plain, viewed, atol=1e-3)
    assert viewed.sum(1) == pytest.approx(1, abs=1e-5)
    monkeypatch.setattr(module, "CHUNK", 5)
    np.testing.assert_allclose(model.probabilities(samples), plain, atol=1e-5)
    np.testing.assert_allclose(model.probabilities(samples, views=2), viewed, atol=1e-5)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_allclose(again.probabilities(samples), plain, atol=1e-5)


@pytest.mark.parametrize(
    ("trained_with", "used"),
    [(("none",), "light"), (("strong",), "strong"), (("strong", "strong"), "strong"), (("strong", "none"), "light")],
)
def test_views_are_made_as_all_members_know_them(host, wine, wine_formats, tmp_path, monkeypatch, trained_with, used):
    specs = [
        planned(host, "source_mlp", regularization=Regularization(augmentation=augmentation))
        for augmentation in trained_with
    ]
    models = [trained(host, spec, wine, wine_formats, seed) for seed, spec in enumerate(specs)]
    save_model(tmp_path, [Member(model=model) for model in models], wine, wine_formats, host)
    names, made = [], module.ChangedRows
    monkeypatch.setattr(
        module, "ChangedRows", lambda rows, digests, name: names.append(name) or made(rows, digests, name)
    )
    load_model(tmp_path).probabilities(wine.validation.samples, views=2)
    assert set(names) == {f"{used}-1", f"{used}-2"}


def test_weights_that_were_drawn_are_kept_for_each_member(host, wine, wine_formats, tmp_path):
    """Nothing is shared, so each member is a family of its own."""
    specs = [planned(host, "source_mlp", weights="random"), planned(host, "source_mlp", tuned=1, weights="random")]
    members = [Member(model=trained(host, spec, wine, wine_formats, seed)) for seed, spec in enumerate(specs)]
    save_model(tmp_path, members, wine, wine_formats, host)
    model, samples = load_model(tmp_path), wine.validation.samples
    assert len(model.parts) == 2
    rows = rows_in_memory(samples, host.backbone("source_mlp"), wine_formats["source_mlp"])
    apart = [predict_probabilities(member.model, rows, wine.kind, "cpu") for member in members]
    np.testing.assert_allclose(model.probabilities(samples), np.mean(apart, axis=0), atol=1e-6)


@pytest.mark.parametrize("tuned", [0, 2])
def test_a_model_of_the_first_layout_still_loads(host, wine, wine_formats, tmp_path, tuned):
    spec = planned(host, "source_mlp", tuned=tuned)
    network = trained(host, spec, wine, wine_formats, 0)
    save_tensors(network.state_dict(), tmp_path / "model.safetensors")
    encoder = wine_formats["source_mlp"].encoder
    card = {
        "schema_version": 1,
        "spec": spec.to_json(),
        "kind": wine.kind,
        "classes": list(wine.classes),
        "schema": wine.schema.to_json(),
        "size": None,
        "encoder": encoder.to_json(),
        "input_shape": [encoder.width],
        "plugins": {"dirs": [], "disabled": []},
        "versions": {},
    }
    (tmp_path / "model.json").write_text(json.dumps(card))
    model, samples = load_model(tmp_path), wine.validation.samples
    rows = rows_in_memory(samples, host.backbone("source_mlp"), wine_formats["source_mlp"])
    assert np.array_equal(model.probabilities(samples), predict_probabilities(network, rows, wine.kind, "cpu"))
    assert [member.weight for member in model.members] == [1.0]


def test_a_single_model_says_exactly_what_it_said(host, wine, wine_formats, tmp_path):
    network = trained(host, planned(host, "source_mlp", tuned=1), wine, wine_formats, 0)
    save_model(tmp_path, [Member(model=network, weight=3)], wine, wine_formats, host)
    samples = wine.validation.samples
    rows = rows_in_memory(samples, host.backbone("source_mlp"), wine_formats["source_mlp"])
    expected = predict_probabilities(network, rows, wine.kind, "cpu")
    assert np.array_equal(load_model(tmp_path).probabilities(samples), expected)


def test_several_labels_a_sample(host, wine, tmp_path):
    X, y = load_wine(return_X_y=True)
    task = task_from_python(X, np.stack([y == 0, y != 1, X[:, 0] > 13], 1).astype(int), seed=0)
    formats = {"source_mlp": table_format(task)}
    models = [trained(host, planned(host, "source_mlp"), task, formats, seed) for seed in (0, 1)]
    adjustment = Adjustment(temperature=0.5, bias=(2.0, 0.0, -2.0))
    save_model(tmp_path, [Member(model=m) for m in models], task, formats, host, adjustment=adjustment)
    samples = task.validation.samples
    rows = rows_in_memory(samples, host.backbone("source_mlp"), formats["source_mlp"])
    apart = [predict_probabilities(model, rows, "multilabel", "cpu") for model in models]
    expected = adjustment.apply(np.mean(apart, axis=0), "multilabel")
    model = load_model(tmp_path)
    np.testing.assert_allclose(model.probabilities(samples), expected, atol=1e-5)
    labels = [";".join(np.array(task.classes)[row >= 0.5]) for row in model.probabilities(samples)]
    assert list(model.predictions(samples)["class"]) == labels


def test_what_was_half_written_does_not_load(host, wine, wine_formats, tmp_path, monkeypatch):
    """Nor does the model that was there before: its weights may be gone already."""
    members = [Member(model=trained(host, planned(host, "source_mlp"), wine, wine_formats, 0))]
    save_model(tmp_path, members, wine, wine_formats, host)
    for broken in ("save_tensors", "json.dumps"):

        def killed(*args, **settings):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(f"automl_tl.serve.model.{broken}", killed)
            with pytest.raises(KeyboardInterrupt):
                save_model(tmp_path, members, wine, wine_formats, host)
        with pytest.raises(RunError, match="holds no trained model"):
            load_model(tmp_path)
        save_model(tmp_path, members, wine, wine_formats, host)
        load_model(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.safetensors"]


def test_a_place_that_cannot_be_written_is_named(host, wine, wine_formats, tmp_path):
    (tmp_path / "file").write_text("")
    members = [Member(model=trained(host, planned(host, "source_mlp"), wine, wine_formats, 0))]
    with pytest.raises(RunError, match=r"cannot write .*model\.json"):
        save_model(tmp_path / "file", members, wine, wine_formats, host)
