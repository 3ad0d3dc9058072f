from __future__ import annotations

import pytest

from automl_tl.config import DataConfig
from automl_tl.data.locate import locate
from automl_tl.errors import DataError


def test_relative_paths_start_here_and_then_at_the_base(tmp_path, monkeypatch):
    here, base = tmp_path / "here", tmp_path / "base"
    for folder in (here, base):
        folder.mkdir()
        (folder / "a.csv").touch()
    (base / "b.csv").touch()
    monkeypatch.chdir(here)
    assert locate(DataConfig(path="a.csv"), base).root == here / "a.csv"
    assert locate(DataConfig(path="b.csv"), base).root == base / "b.csv"


def test_a_path_that_does_not_exist_suggests_its_sibling(tmp_path):
    (tmp_path / "flowers.csv").touch()
    with pytest.raises(DataError, match=r"flower\.csv does not exist.*Did you mean 'flowers\.csv'\?"):
        locate(DataConfig(path=str(tmp_path / "flower.csv")))
    with pytest.raises(DataError, match="does not exist; expected a file or folder"):
        locate(DataConfig(path=str(tmp_path / "zzz" / "q")))


def test_an_unknown_suffix_lists_the_known_ones(tmp_path):
    (tmp_path / "data.xlsx").touch()
    with pytest.raises(
        DataError, match=r"unknown suffix '\.xlsx'; known are \.csv, \.tsv, \.jsonl, \.parquet and \.npz"
    ):
        locate(DataConfig(path=str(tmp_path / "data.xlsx")))


def test_the_test_split_must_be_of_the_same_format(tmp_path):
    (tmp_path / "a.csv").touch()
    (tmp_path / "b.npz").touch()
    with pytest.raises(DataError, match=r"test split .* is a npz, but the training data .* is a table"):
        locate(DataConfig(path=str(tmp_path / "a.csv"), test=str(tmp_path / "b.npz")))


def test_two_test_splits_are_an_error(tmp_path):
    for name in ("train.csv", "test.csv", "other.csv"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match="already has a test split"):
        locate(DataConfig(path=str(tmp_path), test=str(tmp_path / "other.csv")))


def test_two_files_of_one_part_are_an_error(tmp_path):
    for name in ("train.csv", "train.tsv"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=r"two train files, train\.csv and train\.tsv"):
        locate(DataConfig(path=str(tmp_path)))
