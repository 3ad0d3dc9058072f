"""Whole runs that share a cache: what frozen layers put out for a sample is computed in the first one only."""

import shutil

import pytest
from PIL import Image
from sklearn.datasets import load_digits

from automl_tl import api

PER_CLASS = 12


def write_images(folder, first, last):
    """Write digits of three classes as image files, a folder a class."""
    digits = load_digits()
    for label in (0, 1, 4):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(digits.images[digits.target == label][first:last], start=first):
            Image.fromarray((image * 15).astype("uint8")).save(folder / str(label) / f"{number}.png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "digits"
    write_images(folder, 0, PER_CLASS)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def run(cache):
    """Return a function that searches a folder of images with the shared cache, and returns the result."""

    def search(folder, directory, **settings):
        config = {
            "data": {"path": str(folder), "image_size": 32},
            "backbones": "mobilenet_v2",
            "heads": "linear",
            "strategies": ["linear_probe", "suffix"],
            "search": {"trials": 5, "max_epochs": 2, "prune": False},
            "finish": {"finalists": 1},
            "cache": {"directory": str(cache)},
            "slots": "inline",
            "run_dir": str(directory),
            **settings,
        }
        return api.search(config).result

    return search


PROBES = {"strategies": ["linear_probe"], "search": {"trials": 2}, "seed": 7}


@pytest.fixture(scope="module")
def first(run, folder, tmp_path_factory):
    """Return the directory of the first run on the folder, and its result."""
    directory = tmp_path_factory.mktemp("runs") / "first"
    return directory, run(folder, directory)


def test_a_second_run_passes_nothing_and_finds_the_same(run, folder, first, cache, tmp_path):
    _, result = first
    assert result["store"]["rows_passed"] > 0
    assert result["store"]["rows_passed_in"]["survey"] == result["task"]["n_train"] + result["task"]["n_validation"]
    assert result["store"]["rows_passed_in"]["finish"] == result["task"]["n_test"]  # once, whatever reads them
    assert result["store"]["directory"] == str(cache)
    second = run(folder, tmp_path / "second")
    assert second["store"]["rows_passed"] == 0
    assert second["validation"] == result["validation"]
    assert second["test"] == result["test"]
    assert second["best"]["plan"] == result["best"]["plan"]


def test_renamed_files_and_other_splits_are_the_same_samples(run, folder, first, tmp_path):
    """A sample is known by what it is."""
    for path in sorted(folder.rglob("*.png")):
        renamed = tmp_path / "renamed" / path.parent.name / f"{100 - int(path.stem)}.png"
        renamed.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, renamed)
    run(folder, tmp_path / "all", **PROBES)  # of its training samples, the first run read some only as test samples
    assert run(tmp_path / "renamed", tmp_path / "again", **PROBES)["store"]["rows_passed"] == 0


def test_of_images_that_were_added_only_those_pass(run, folder, first, tmp_path):
    run(folder, tmp_path / "before", **PROBES)
    more = shutil.copytree(folder, tmp_path / "more")
    write_images(more, PER_CLASS, PER_CLASS + 2)
    assert run(more, tmp_path / "after", **PROBES)["store"]["rows_passed"] == 3 * 2


def test_the_run_directory_holds_facts_of_the_splits_and_the_cache_the_rest(first):
    directory, _ = first
    assert {path.name for path in (directory / "features" / "target").iterdir()} == {
        "development.npz",
        "train.npz",
        "validation.npz",
        "test.npz",
    }
    assert not (directory / "features" / "store").exists()
    assert list((directory / "trials").glob("*/model.safetensors"))


def test_a_cache_of_ones_own_lies_in_the_run_directory(run, folder, tmp_path):
    result = run(folder, tmp_path / "own", **PROBES, cache={"directory": "run", "budget_gib": 0.5})
    assert result["store"]["directory"] == str(tmp_path / "own" / "features" / "store")
    assert result["store"]["rows_passed"] == 3 * PER_CLASS
    assert any((tmp_path / "own" / "features" / "store").iterdir())
