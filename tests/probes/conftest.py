from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits, load_wine


@pytest.fixture(scope="session")
def wine():
    """178 samples, 13 columns of very different scales, 3 classes."""
    return load_wine(return_X_y=True)


@pytest.fixture(scope="session")
def digits():
    """60 samples, 64 columns of which some are constant, 10 classes: fewer samples than columns."""
    features, labels = load_digits(return_X_y=True)
    return features[:60], labels[:60]


@pytest.fixture(scope="session")
def multilabel(wine):
    """Wine with three labels a sample: its last class, and whether two of its columns are large."""
    features, classes = wine
    labels = np.stack([classes == 2, features[:, 0] > 13, features[:, 9] > 6], 1).astype(np.int64)
    columns = np.delete(features, [0, 9], axis=1)
    return columns / columns.std(0), labels
