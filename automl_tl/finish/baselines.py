"""What a result is compared with: the majority class, and a linear model on raw inputs without any backbone.

Both learn from all that is not test, like the model itself, before the test split is opened. scikit-learn is imported
when they are asked for, at the end of a run: it is slow to import, and the first probe does not need it.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from automl_tl.data import ImageSamples, Samples, Task, TextSamples
from automl_tl.data.encoder import TableEncoder
from automl_tl.probes.ridge import fit_ridge

PIXELS = 16  # pixels a side of the raw images
WORDS = r"\w+|[^\w\s]"  # single letters, digits and signs too: some texts have nothing else
COMPONENTS = 256  # of texts, where one number a word would be too many
MOST_ROWS = 5000  # samples that the raw baseline learns from; it is a yardstick, not a contender


@dataclass(frozen=True, slots=True)
class RawInputs:
    """A linear model of raw inputs, fitted."""

    model: Any  # of scikit-learn
    encoder: TableEncoder | None  # of tables
    n_train: int  # samples that it learned from

    def predict(self, samples: Samples) -> np.ndarray:
        """Predictions in the form of the labels."""
        return np.asarray(self.model.predict(_readable(samples, self.encoder)))


def majority(task: Task, n_test: int) -> np.ndarray:
    """Predictions of the most frequent class, or of the labels that most samples carry."""
    from sklearn.dummy import DummyClassifier

    labels = task.development.labels
    if task.kind == "multilabel":
        usual = (labels.mean(0) >= 0.5).astype(np.int64)
        return np.tile(usual, (n_test, 1))
    model = DummyClassifier(strategy="most_frequent").fit(np.zeros((len(labels), 1)), labels)
    return np.asarray(model.predict(np.zeros((n_test, 1))))


def fit_raw_inputs(task: Task, *, seed: int) -> RawInputs:
    """A logistic regression on 16-pixel images, TF-IDF of words, or the table itself, of up to MOST_ROWS samples."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    development = task.development
    chosen = _subset(development.labels, seed, MOST_ROWS)
    train, labels = development.samples.take(chosen), development.labels[chosen]
    if task.kind == "multilabel":
        linear = OneVsRestClassifier(LogisticRegression(max_iter=300))
    else:
        linear = LogisticRegression(max_iter=300)
    words = TfidfVectorizer(sublinear_tf=True, token_pattern=WORDS)
    model = make_pipeline(words if isinstance(train, TextSamples) else StandardScaler(), linear)
    encoder = _encoder(train, task)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a yardstick need not be the last digit
        warnings.filterwarnings("ignore", "Label .* is present in all training examples")  # then it is the answer
        model.fit(_readable(train, encoder), labels)
    return RawInputs(model=model, encoder=encoder, n_train=len(chosen))


def raw_inputs_left_out(task: Task, *, metric: str, seed: int, most: int = MOST_ROWS) -> float:
    """What ridge on raw inputs scores on up to `most` samples left out of its fit; words by 256 components."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    split = task.judging
    chosen = _subset(split.labels, seed, most)
    train, labels = split.samples.take(chosen), split.labels[chosen]
    if isinstance(train, TextSamples):
        words = TfidfVectorizer(sublinear_tf=True, token_pattern=WORDS).fit_transform(train.texts)
        few = min(words.shape) <= COMPONENTS
        features = words.toarray() if few else TruncatedSVD(COMPONENTS, random_state=seed).fit_transform(words)
    else:
        features = _readable(train, _encoder(train, task))
    together = None if split.groups is None else split.groups[chosen]
    fit = fit_ridge(features.astype(np.float32), labels, task.kind, task.n_outputs, metric=metric, groups=together)
    return fit.score


def _subset(labels: np.ndarray, seed: int, most: int) -> np.ndarray:
    """Indices of up to so many rows at random, among them one of every class, however rare."""
    order = np.random.default_rng(seed).permutation(len(labels))
    if labels.ndim == 1:
        first = np.unique(labels[order], return_index=True)[1]
        order = np.concatenate([order[first], np.delete(order, first)])
    return order[:most]


def _encoder(train: Samples, task: Task) -> TableEncoder | None:
    """What makes numbers of a table's columns, learned from training samples; None where there is no table."""
    if isinstance(train, ImageSamples | TextSamples):
        return None
    return TableEncoder.fit(train.frame, task.schema.categorical_columns)


def _readable(samples: Samples, encoder: TableEncoder | None) -> Any:
    """Samples as a linear model reads them; texts stay texts."""
    if isinstance(samples, TextSamples):
        return samples.texts
    if isinstance(samples, ImageSamples):
        return _pixels(samples)
    assert encoder is not None
    return encoder.transform(samples.frame)


def _pixels(samples: ImageSamples) -> np.ndarray:
    """(N, 3 * PIXELS * PIXELS) in [0, 1]."""
    rows = [samples.pixels(index, PIXELS).reshape(-1) for index in range(len(samples))]
    return np.stack(rows).astype(np.float32) / 255
