"""Who learns and who judges: how development samples are divided, and how scores on different ones compare.

    a head solved for in closed form    learns from all; each sample is judged by the fit that left it out
    everything that is trained          learns from most; the rest, drawn anew for each configuration, judges it
    the user gave a validation split    all learn from the training samples, and it judges all

Holdouts that are drawn anew generalize better than one that all configurations share and the best of them fits by
chance (Nagler et al., NeurIPS 2024). But some are easier than others. The yardstick, the first closed-form probe of the
study, was judged on every sample, so it tells how hard a holdout is, and what it says is taken off:

    score = F1(trained, its holdout) + b (F1(yardstick, all samples) - F1(yardstick, the same holdout))

where b says how far both err on the same samples, 0 where they do not: then the yardstick would only add its own noise
(a control variate; b is estimated on the holdout).
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from automl_tl.data.folds import holdout
from automl_tl.errors import RunError, TrialError
from automl_tl.features.task import Development
from automl_tl.metrics.scores import Kind, decide, validation_score

SAID = "said.npz"


@dataclass(frozen=True, slots=True)
class Said:
    """What a model said of samples that it had not learnt from."""

    rows: np.ndarray  # (n,) indices of development samples
    probabilities: np.ndarray  # (n, K) float32


def divide(development: Development, draw: int, *, multilabel: bool) -> tuple[np.ndarray, np.ndarray]:
    """Indices of development samples to train on and to judge by; `draw` numbers the division."""
    if development.given is not None:
        return np.arange(development.n_train), development.given
    return holdout(
        development.labels, fraction=development.fraction, seed=draw, groups=development.groups, multilabel=multilabel
    )


def comparable_score(
    score: float, said: Said, yardstick: Said | None, labels: np.ndarray, kind: Kind, metric: str
) -> float:
    """The score as it would be on all samples, as far as the yardstick can tell; at most 1.

    Parameters
    ----------
    score
        On the samples that `said` is about.
    yardstick
        What it said of all development samples; None: there is none yet, and the score stays what it is.
    labels
        Of all development samples.
    """
    if yardstick is None or len(said.rows) >= len(yardstick.rows):
        return score
    place = np.full(len(labels), -1)
    place[yardstick.rows] = np.arange(len(yardstick.rows))
    there = place[said.rows]
    if (there < 0).any():
        return score
    overall = validation_score(labels[yardstick.rows], yardstick.probabilities, kind, metric)
    here = validation_score(labels[said.rows], yardstick.probabilities[there], kind, metric)
    shared = _shared_errors(labels[said.rows], said.probabilities, yardstick.probabilities[there], kind)
    return min(1.0, score + shared * (overall - here))


def _shared_errors(labels: np.ndarray, said: np.ndarray, beside: np.ndarray, kind: Kind) -> float:
    """Slope of the errors of one on those of the other, from 0 to 1."""
    wrong, expected = ((decide(each, kind) != labels).astype(np.float64).reshape(-1) for each in (said, beside))
    spread = expected.var()
    return 0.0 if spread == 0 else float(np.clip(np.cov(wrong, expected, bias=True)[0, 1] / spread, 0, 1))


def save_said(directory: Path, said: Said) -> None:
    """Keep it in a trial's folder; raises RunError when the disk does not take it."""
    partial = directory / f"{SAID}.partial"
    try:
        with partial.open("wb") as file:
            np.savez(file, rows=said.rows, probabilities=said.probabilities.astype(np.float32))
        partial.replace(directory / SAID)
    except OSError as error:  # the disk, not the trial: whatever comes next would meet the same
        raise RunError(f"cannot write {directory / SAID}: {error.strerror or error}; free some space") from None


def load_said(directory: Path) -> Said:
    """What a trial said of the samples that judged it; raises TrialError when it is not there."""
    path = directory / SAID
    try:
        with path.open("rb") as file, np.load(file) as kept:
            return Said(kept["rows"], kept["probabilities"])
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise TrialError(
            f"{path} is missing or damaged ({error}); delete the trial's folder {directory}, and the others stay usable"
        ) from None
