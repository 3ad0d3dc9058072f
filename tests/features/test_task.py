from __future__ import annotations

import numpy as np
import pytest

from automl_tl.config import DataConfig
from automl_tl.data import TableEncoder, load_task
from automl_tl.features.task import lay_out_task, prepare_task


@pytest.fixture(scope="module")
def digits():
    return load_task(DataConfig(path="sklearn:digits", per_class=4), seed=0)


def test_training_and_validation_lie_on_disk_and_the_test_split_stays_sealed(digits, backbones, tmp_path):
    cnn, heard = backbones["source_cnn"], []
    prepared = lay_out_task(digits, (cnn,), tmp_path / "run")
    prepare_task(prepared, (cnn,), lambda *facts: heard.append(facts))
    assert not digits.test.opened
    for name, split in (("train", digits.train), ("validation", digits.validation)):
        rows, labels = prepared.files(cnn, name).open(cnn)
        assert len(rows) == len(split)
        assert np.array_equal(labels, split.labels)
        assert (f"preparing {name} samples", 0, len(split)) in heard
    assert not prepared.files(cnn, "test").samples.exists()


def test_two_backbones_of_one_size_share_the_files(digits, backbones, tmp_path):
    both = (backbones["source_cnn"], backbones["mobilenet_v2"])
    shared = lay_out_task(digits, both, tmp_path, image_size=48)
    own = lay_out_task(digits, both, tmp_path)
    assert shared.files(both[0], "train") == shared.files(both[1], "train")
    assert own.files(both[0], "train").samples != own.files(both[1], "train").samples


def test_the_interface_is_what_the_model_takes_and_puts_out(digits, wine, backbones, tmp_path):
    cnn, mlp = backbones["source_cnn"], backbones["source_mlp"]
    interface = lay_out_task(digits, (cnn,), tmp_path, image_size=24).interface(cnn)
    assert (interface.input_shape, interface.n_outputs) == ((3, 24, 24), 10)
    interface = lay_out_task(wine, (mlp,), tmp_path).interface(mlp)
    assert (interface.input_shape, interface.n_outputs) == ((13,), 3)


def test_a_table_is_scaled_by_the_source_task_where_there_is_one(wine, backbones, tmp_path):
    mlp = backbones["source_mlp"]
    own = lay_out_task(wine, (mlp,), tmp_path).formats[mlp.name].encoder
    assert own == TableEncoder.fit(wine.train.samples.frame, ())
    source = TableEncoder(own.numbers, tuple(mean + 1 for mean in own.means), own.deviations, ())
    prepared = lay_out_task(wine, (mlp,), tmp_path, encoder=source)
    prepare_task(prepared, (mlp,), lambda *facts: None)
    rows, _ = prepared.files(mlp, "train").open(mlp)
    assert np.array_equal(rows.values, source.transform(wine.train.samples.frame))
