from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits, load_wine

from automl_tl.config import DataConfig
from automl_tl.data import ImageSamples, TextSamples, load_task
from automl_tl_builtins.backbones import minilm_l6, mobilenet_v2, source_cnn, source_mlp
from automl_tl_builtins.heads import linear

TEXTS = (
    "a warm and funny film",
    "dull",
    "the actors do what they can, but there is nothing to be done with a script like this one",
    "a joy from start to end",
    "I left before it was over",
    "not bad, not good, and over soon",
    "one of the best of its year",
    "a waste of two hours",
)


def ids(n):
    return tuple(f"sample {index}" for index in range(n))


@pytest.fixture(scope="session")
def backbones():
    """Return the built-in backbones by name."""
    modules = (source_cnn, source_mlp, mobilenet_v2, minilm_l6)
    return {backbone.name: backbone for module in modules for backbone in module.automl_tl_backbones()}


@pytest.fixture(scope="session")
def linear_head():
    (head,) = linear.automl_tl_heads()
    return head


@pytest.fixture(scope="session")
def pictures():
    """Return 20 digits, as images without files."""
    images = load_digits().images[:20].astype(np.float64)
    return ImageSamples(sources=tuple(images), ids=ids(20), value_range=(0.0, 16.0))


@pytest.fixture(scope="session")
def texts():
    return TextSamples(texts=TEXTS, ids=ids(len(TEXTS)))


@pytest.fixture(scope="session")
def wine():
    """Return the wine task."""
    return load_task(DataConfig(path="sklearn:wine"), seed=0)


@pytest.fixture(scope="session")
def minilm(backbones):
    """Return MiniLM, where it can be used."""
    pytest.importorskip("tokenizers")
    backbone = backbones["minilm_l6"]
    if backbone.weights.find() is None:
        pytest.skip("the weights of minilm_l6 are not installed")
    return backbone


@pytest.fixture(scope="session")
def mobilenet(backbones):
    """Return MobileNetV2, where its weights are installed."""
    backbone = backbones["mobilenet_v2"]
    if backbone.weights.find() is None:
        pytest.skip("the weights of mobilenet_v2 are not installed")
    return backbone


@pytest.fixture(scope="session")
def wine_table():
    """Return the standardized wine table and its classes."""
    rows, labels = load_wine(return_X_y=True)
    return ((rows - rows.mean(0)) / rows.std(0)).astype(np.float32), labels
