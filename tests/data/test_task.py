from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from automl_tl.config import DataConfig
from automl_tl.data import SealedTest, Split, TextSamples, load_task, task_from_python
from automl_tl.errors import DataError


def test_the_test_split_opens_once():
    sealed = SealedTest("pets", Split(TextSamples(("secret",), ("a",)), np.array([1])))
    assert (len(sealed), sealed.opened) == (1, False)
    assert repr(sealed) == "SealedTest('pets', 1 samples, sealed)"
    assert sealed.open().samples.texts == ("secret",)
    assert sealed.opened
    assert repr(sealed) == "SealedTest('pets', 1 samples, opened)"
    with pytest.raises(DataError, match="the test split of task 'pets' was already opened"):
        sealed.open()


@pytest.mark.parametrize(
    ("name", "kind", "n_outputs", "modality"),
    [
        ("digits", "multiclass", 10, "image"),
        ("wine", "multiclass", 3, "tabular"),
        ("iris", "multiclass", 3, "tabular"),
        ("breast_cancer", "binary", 2, "tabular"),
    ],
)
def test_bundled_tasks(name, kind, n_outputs, modality):
    task = load_task(DataConfig(path=f"sklearn:{name}"), seed=0)
    assert (task.name, task.kind, task.n_outputs, task.modality) == (name, kind, n_outputs, modality)
    assert task.notes


def test_digits_can_be_rows():
    task = load_task(DataConfig(path="sklearn:digits", modality="tabular", per_class=10), seed=0)
    assert (task.modality, len(task.schema.feature_columns)) == ("tabular", 64)
    assert np.bincount(np.concatenate([task.train.labels, task.validation.labels])).tolist() == [10] * 10


def test_digits_keep_their_gray_values():
    task = load_task(DataConfig(path="sklearn:digits"), seed=0)
    assert task.schema.value_range == (0.0, 16.0)
    assert task.train.samples.median_side() == 8


def test_bundled_columns_can_be_dropped():
    task = load_task(DataConfig(path="sklearn:wine", drop=("alcohol",)), seed=0)
    assert len(task.schema.feature_columns) == 12


def test_an_unknown_bundled_task_lists_the_known_ones():
    with pytest.raises(DataError, match=r"'wines'. Known: breast_cancer, digits, iris, wine. Did you mean 'wine'\?"):
        load_task(DataConfig(path="sklearn:wines"), seed=0)
    with pytest.raises(DataError, match=r"remove data\.test"):
        load_task(DataConfig(path="sklearn:wine", test="x.csv"), seed=0)


def test_the_seed_decides_the_splits():
    def ids(seed):
        return load_task(DataConfig(path="sklearn:wine"), seed=seed).train.samples.ids

    assert ids(1) == ids(1)
    assert ids(1) != ids(2)


def test_fractions_are_of_everything_and_of_what_is_not_test():
    task = load_task(DataConfig(path="sklearn:iris", test_fraction=0.4, validation_fraction=0.5), seed=0)
    assert (len(task.train), len(task.validation), len(task.test)) == (45, 45, 60)


def test_the_notes_say_how_the_splits_came_about():
    assert load_task(DataConfig(path="sklearn:iris"), seed=3).notes == (
        "The inputs are 4 numeric and 0 categorical columns.",
        "The test split is 30 of 150 samples, stratified, drawn with seed 3.",
        "No validation split is given: what is trained is judged by 20% of what is not test, drawn anew for each "
        "configuration, and what is solved for by samples left out of the fit.",
    )


def test_splits_share_no_sample():
    task = load_task(DataConfig(path="sklearn:iris"), seed=3)
    parts = [set(part.samples.ids) for part in (task.train, task.validation, task.test.open())]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 150


def texts_of(task):
    """The texts of what is learnt from, and of the test split."""
    development = {*task.train.samples.texts, *task.validation.samples.texts}
    return development, task.test.open().samples.texts


@pytest.mark.parametrize("seed", range(5))
def test_copies_lie_on_one_side_of_a_drawn_test_split(seed):
    texts = [f"{word} {number}" for word in ("good", "bad") for number in range(40)]
    labels = ["pos"] * 40 + ["neg"] * 40
    task = task_from_python(texts + texts[:20] + texts[:20], labels + labels[:20] * 2, seed=seed)
    development, test = texts_of(task)
    assert not development & set(test)
    assert len(test) > len(set(test))  # some of what was drawn has copies, and these came along
    assert 0.15 < len(test) / 120 < 0.25
    assert "Copies of other samples: 40; equal ones lie on one side of the test split." in task.notes


def test_copies_with_another_label_lie_on_the_same_side():
    texts = [f"text {number}" for number in range(50)]
    task = task_from_python(texts * 2, ["pos"] * 50 + ["neg"] * 50, seed=0)
    development, test = texts_of(task)
    assert not development & set(test)
    assert len(test) == 2 * len(set(test)) == 20


def test_many_copies_of_one_sample_do_not_make_the_test_split():
    others = [f"text {number}" for number in range(400)]
    for seed in range(5):
        task = task_from_python(["n/a"] * 600 + others, ["other"] * 610 + ["text"] * 390, seed=seed)
        development, test = texts_of(task)
        assert not development & set(test)
        assert "n/a" in development
        assert len(test) >= 0.2 * 390


def test_copies_of_validation_samples_are_never_drawn_for_testing(image_folder):
    folder = image_folder("both/train", cat=30, dog=30).parent
    for label in ("cat", "dog"):
        (folder / "val" / label).mkdir(parents=True)
        for number in range(12):
            (folder / "val" / label / f"{number}.png").write_bytes(
                (folder / "train" / label / f"{number + 5}.png").read_bytes()
            )
    task = load_task(DataConfig(path=str(folder)), seed=0)
    test = task.test.open().samples.sources
    assert len(test) >= 4
    assert not {path.read_bytes() for path in test} & {
        path.read_bytes() for part in (task.train, task.validation) for path in part.samples.sources
    }


def test_copies_of_several_labels_lie_on_one_side():
    texts = [f"text {number}" for number in range(60)]
    labels = [["a"] if number % 2 else ["a", "b"] for number in range(60)]
    task = task_from_python(texts + texts[:30], labels + [["b"]] * 30, seed=0)
    development, test = texts_of(task)
    assert test
    assert not development & set(test)


def test_a_class_of_copies_alone_is_split_all_the_same():
    texts = [f"text {number}" for number in range(50)] + ["the same"] * 10
    task = task_from_python(texts, ["many"] * 50 + ["one"] * 10, seed=0)
    assert [len(set(part.labels)) for part in (task.train, task.validation, task.test.open())] == [2, 2, 2]
    assert "Copies may lie on both sides where classes have no others: one." in task.notes


def test_equal_pictures_are_copies_whatever_they_are_called(image_folder):
    folder = image_folder(cat=20, dog=20)
    for label in ("cat", "dog"):
        for number in range(20):
            (folder / label / f"again{number}.png").write_bytes((folder / label / f"{number}.png").read_bytes())
    task = load_task(DataConfig(path=str(folder)), seed=0)
    held_out = {path.name for path in task.test.open().samples.sources if path.parent.name == "cat"}
    assert held_out
    assert {name for name in held_out if not name.startswith("again")} == {
        name.removeprefix("again") for name in held_out if name.startswith("again")
    }


def test_equal_rows_of_a_table_are_no_copies():
    task = task_from_python(np.tile([[0.0], [1.0]], (50, 1)), ["a", "b"] * 50, seed=0)
    assert len(task.test) == 20
    assert not any("Copies" in note for note in task.notes)


def test_importing_the_package_loads_no_heavy_package():
    code = "import sys, automl_tl.data; print({'torch', 'sklearn', 'optuna'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_a_bundled_dataset_takes_no_label_column():
    with pytest.raises(DataError, match=r"brings its labels; remove data\.label, got 'x'"):
        load_task(DataConfig(path="sklearn:wine", label="x"), seed=0)
