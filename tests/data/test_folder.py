from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from automl_tl.config import DataConfig
from automl_tl.data import load_task
from automl_tl.errors import DataError


def load(path, seed=0, **settings):
    return load_task(DataConfig(path=str(path), **settings), seed=seed)


def test_class_folders_become_a_task(image_folder):
    task = load(image_folder(cat=10, dog=15))
    assert (task.name, task.kind, task.classes, task.modality) == ("pets", "binary", ("cat", "dog"), "image")
    assert (len(task.train), len(task.validation), len(task.test)) == (16, 4, 5)
    every = [*task.train.samples.ids, *task.validation.samples.ids, *task.test.open().samples.ids]
    assert len(set(every)) == 25
    assert [task.classes[label] for label in task.train.labels] == [
        name.split("/")[0] for name in task.train.samples.ids
    ]


def test_images_below_class_folders_are_found_and_hidden_ones_ignored(image_folder):
    root = image_folder(cat=4, dog=4)
    (root / "cat" / "deep").mkdir()
    shutil.copy(root / "cat" / "0.png", root / "cat" / "deep" / "9.PNG")
    shutil.copy(root / "cat" / "0.png", root / "cat" / ".8.png")
    (root / "cat" / "notes.txt").write_text("no image")
    (root / ".cache").mkdir()
    task = load(root)
    assert sum(map(len, (task.train, task.validation, task.test))) == 9


def test_class_folders_are_in_natural_order(image_folder):
    assert load(image_folder(**{"10": 3, "9": 3, "1": 3})).classes == ("1", "9", "10")


@pytest.mark.parametrize("validation", ["val", "valid", "validation"])
def test_given_splits_are_honored(image_folder, validation):
    for part, count in (("train", 3), (validation, 2), ("test", 1)):
        image_folder(f"pets/{part}", cat=count, dog=count)
    task = load(image_folder("pets"))
    assert (len(task.train), len(task.validation), len(task.test)) == (6, 4, 2)
    assert any("given test split" in note for note in task.notes)


def test_validation_is_carved_from_train_when_only_test_is_given(image_folder):
    image_folder("pets/train", cat=5, dog=5)
    image_folder("pets/test", cat=1, dog=1)
    task = load(image_folder("pets"))
    assert (len(task.train), len(task.validation), len(task.test)) == (8, 2, 2)


def test_a_second_folder_can_be_the_test_split(image_folder):
    task = load(image_folder("a", cat=2, dog=2), test=str(image_folder("b", cat=3, dog=1)))
    assert (len(task.train), len(task.validation), len(task.test)) == (2, 2, 4)


def test_a_folder_called_train_that_holds_images_is_a_class(image_folder):
    assert load(image_folder(car=3, train=3)).classes == ("car", "train")


def test_folder_names_may_join_several_labels(image_folder):
    task = load(image_folder(**{"red;round": 6, "red": 6, "round": 6}), label_separator=";")
    assert (task.kind, task.classes) == ("multilabel", ("red", "round"))
    assert task.train.labels.shape == (len(task.train), 2)


def test_two_validation_folders_are_an_error(image_folder):
    for part in ("train", "val", "valid"):
        image_folder(f"pets/{part}", cat=2, dog=2)
    with pytest.raises(DataError, match="has 2 validation folders, val and valid; keep one"):
        load(image_folder("pets"))


def test_an_unreadable_image_is_named(image_folder):
    root = image_folder(cat=4, dog=4)
    (root / "dog" / "2.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"dog/2\.png cannot be read as an image.*on_bad_sample: skip"):
        load(root)


def test_a_truncated_jpeg_is_named(image_folder):
    root = image_folder(cat=4, dog=4)
    path = root / "dog" / "x.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(DataError, match=r"dog/x\.jpg cannot be read as an image"):
        load(root)


def test_unreadable_images_can_be_skipped(image_folder):
    root = image_folder(cat=4, dog=4)
    (root / "dog" / "2.png").write_bytes(b"not an image")
    task = load(root, on_bad_sample="skip")
    assert sum(map(len, (task.train, task.validation, task.test))) == 7
    assert any("1 of 8 samples" in note and "2.png" in note for note in task.notes)


def test_nothing_left_is_an_error(image_folder):
    root = image_folder(cat=1, dog=1)
    for path in root.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="no usable sample is left"):
        load(root, on_bad_sample="skip")


def test_an_empty_class_folder_is_named(image_folder):
    root = image_folder(cat=4, dog=4)
    (root / "fox").mkdir()
    with pytest.raises(DataError, match=r"class folder .*fox holds no image"):
        load(root)


def test_a_folder_without_class_folders_shows_the_layout(image_folder):
    with pytest.raises(DataError, match="no class subfolders; expected the layout CLASS/IMAGE"):
        load(image_folder(cat=4) / "cat")


def test_a_folder_is_no_table(image_folder):
    root = image_folder(cat=4, dog=4)
    with pytest.raises(DataError, match=r"data.label names a column of a table"):
        load(root, label="class")
    with pytest.raises(DataError, match=r"data.modality says 'text'"):
        load(root, modality="text")


@pytest.mark.parametrize("names", [("Training", "Testing"), ("seg_train", "seg_test"), ("training_set", "test_set")])
def test_splits_are_known_by_their_usual_names(image_folder, names):
    for part, count in zip(names, (5, 2), strict=True):
        image_folder(f"pets/{part}", cat=count, dog=count)
    task = load(image_folder("pets"))
    assert task.classes == ("cat", "dog")
    assert (len(task.train) + len(task.validation), len(task.test)) == (10, 4)


def test_classes_named_after_tests_are_classes(image_folder):
    root = image_folder(**{"blood test": 3, "urine test": 3})
    assert load(root).classes == ("blood test", "urine test")


def test_what_is_not_read_is_named(image_folder):
    for part in ("train", "test", "more"):
        image_folder(f"pets/{part}", cat=4, dog=4)
    (image_folder("pets") / "train" / "cat" / "new.heic").write_bytes(b"")
    notes = "\n".join(load(image_folder("pets")).notes)
    assert "Beside test, train, not read: more." in notes
    assert "not read: 1 of .heic." in notes


def test_splits_of_unknown_names_are_doubted(image_folder):
    for part in ("here", "there"):
        image_folder(f"pets/{part}", cat=4, dog=4)
    assert any("hold the same folders, cat, dog" in note for note in load(image_folder("pets")).notes)
    assert not any("the same folders" in note for note in load(image_folder("others", cat=4, dog=4)).notes)


def test_a_test_folder_without_labels_says_what_to_do(image_folder):
    image_folder("pets/train", cat=4, dog=4)
    (image_folder("pets") / "test").mkdir()
    with pytest.raises(DataError, match="if they have no labels, search the training folder beside test"):
        load(image_folder("pets"))
