"""Copies that were planted among real pictures: found, kept together, and told of when they are in the test split."""

import threading

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from automl_tl.features.frozen import Source, store_outputs
from automl_tl.search import copies
from automl_tl.search.copies import copies_in_test, joined
from automl_tl.search.inputs import network_of
from automl_tl.search.survey import survey

PER_CLASS = 8


@pytest.fixture
def folder(tmp_path):
    """Return digits of three classes, two of them equal to others: one in the training data, one in the test split."""
    data = load_digits()
    for part, first in (("train", 0), ("test", PER_CLASS)):
        for label in range(3):
            images = data.images[data.target == label][first : first + PER_CLASS]
            place = tmp_path / "data" / part / str(label)
            place.mkdir(parents=True)
            for number, image in enumerate(images):
                Image.fromarray((image * 15).astype(np.uint8)).resize((16, 16)).save(place / f"{number}.png")
    root = tmp_path / "data"
    (root / "train/0/copy.png").write_bytes((root / "train/0/0.png").read_bytes())
    (root / "test/1/copy.png").write_bytes((root / "train/1/3.png").read_bytes())
    return root


@pytest.fixture
def search(make_search, folder):
    return make_search(data={"path": str(folder)}, backbones=("trained0",), trained=(12,), trials=1, recipes=True)


def test_copies_are_told_of_and_never_parted(search, crew):
    told = []
    survey(search, crew, threading.Event(), told.append, lambda what, done, n: None)
    [note] = [line for line in told if "near-duplicates" in line]
    assert "0/0.png" in note
    assert "0/copy.png" in note
    ids = [*search.prepared.task.train.samples.ids, *search.prepared.task.validation.samples.ids]
    groups = dict(zip(ids, search.prepared.development().groups, strict=True))
    of_copy = {groups[name] for name in ids if name.endswith(("0/0.png", "0/copy.png"))}
    assert len(of_copy) == 1


def test_copies_in_the_test_split_are_told_of(search, crew, monkeypatch):
    found, _ = survey(search, crew, threading.Event(), lambda text: None, lambda what, done, n: None)
    backbone, network = search.host.backbone("trained0"), found.stored["trained0"].network
    test = search.prepared.task.test.open()
    search.prepared.note("test", test)
    search.prepared.prepare(backbone, "test", test, lambda what, done, n: None)
    assert copies_in_test(backbone, network, search.prepared, test.samples.ids) is None  # nothing of it is stored yet
    split = search.prepared.files(backbone, "test").open(backbone)
    source = Source(groups=network_of(backbone, found.stored["trained0"], "cpu"), device="cpu")
    assert store_outputs(network, split.samples, None, source)
    said = copies_in_test(backbone, network, search.prepared, test.samples.ids)
    assert "1/copy.png in " in said
    assert "which raises the test score" in said
    monkeypatch.setattr(copies, "MOST_ROWS", 1)
    counted = copies_in_test(backbone, network, search.prepared, test.samples.ids)
    assert f" of {len(test.labels)} test samples are equal to a training sample" in counted


def test_what_either_keeps_together_stays_together():
    one, other = np.array([0, 0, 1, 2, 3]), np.array([5, 6, 6, 7, 8])
    assert joined(one, other).tolist() == [0, 0, 0, 1, 2]
