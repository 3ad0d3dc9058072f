"""How much do unlabeled samples add to a probe of few labeled ones?

For each task, number of labels a class and seed, all on the same frozen features, those of the tap that the survey's
rule picks by the labeled samples: a probe that learns from the labeled samples alone (ridge or logistic regression,
whichever predicts left-out samples better), pseudo-labels, and labels that spread along neighbors. The last column is
what a search would do: whichever of the four predicts left-out labeled samples best. All gains are test macro-F1 over
the plain probe's. The settings of both methods were chosen with other seeds, in part on the same tasks; on `emoji` and
`fashion` nothing was chosen.

In `digits in noise` little is left to see, and what the features call neighbors are not of one class.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from results import circumstances, keep
from tasks import TASKS, digits

from automl_tl.data import ImageSamples, TextSamples
from automl_tl.features.samples import InputFormat, image_size_for, rows_in_memory
from automl_tl.host import PluginHost, load_host
from automl_tl.metrics.scores import validation_score
from automl_tl.model.assemble import frozen_groups
from automl_tl.model.pooling import pool
from automl_tl.probes.knn import knn_loo
from automl_tl.probes.logistic import fit_logistic
from automl_tl.probes.ranking import rank_taps
from automl_tl.probes.ridge import fit_ridge
from automl_tl.probes.unlabeled import Method, fit_with_unlabeled
from automl_tl.search.scores import POOLING
from automl_tl.training.batches import evaluation_batches

NOISE = 120.0  # standard deviation, of pixels from 0 to 255
PLAIN = ("ridge", "logistic")
METHODS: tuple[Method, ...] = ("pseudo_labels", "propagation")
COLUMNS = (*METHODS, "chosen")
DRAWS = 10_000
BATCH = 64


@dataclass(frozen=True)
class Setting:
    """Where samples come from, and what they pass; None: columns are standardized and taken as they are."""

    load: Callable[[], tuple[Any, ...]]
    backbone: str | None
    informative: bool = True
    chosen_on: bool = False  # settings of the methods were chosen on it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--labels", nargs="+", type=int, default=[3, 5, 10, 50], help="of each class")
    parser.add_argument("--seeds", nargs="+", type=int, default=[5, 6, 7, 8, 9])
    parser.add_argument("--unlabeled", type=int, default=1000, help="samples, fewer where a task has fewer")
    parser.add_argument("--samples", type=int, default=2400, help="of a task, a third of them to test with")
    options = parser.parse_args()
    about = circumstances()
    torch.set_num_threads(1)
    host = load_host()
    began = time.process_time()
    cells: list[dict[str, Any]] = []
    for name in options.tasks:
        taps, labels = features_of(SETTINGS[name], options.samples, host)
        for per_class in options.labels:
            for seed in options.seeds:
                found = compare(taps, labels, per_class, options.unlabeled, seed)
                cells.append({"task": name, "per_class": per_class, "seed": seed, **found})
            print(*row(name, of(cells, name, per_class)), flush=True)
    report(cells, about, vars(options), time.process_time() - began)


def features_of(setting: Setting, most: int, host: PluginHost) -> tuple[Mapping[str, np.ndarray], np.ndarray]:
    """Features (N, D) of every tap, and labels (N,), of up to so many samples in random order."""
    x, y, x_test, y_test = setting.load()
    if x_test is not None:
        x, y = np.concatenate([x, x_test]), np.concatenate([y, y_test])
    chosen = np.random.default_rng(0).permutation(len(y))[:most]
    x, labels = x[chosen], np.unique(y[chosen], return_inverse=True)[1]
    if setting.backbone is None:
        values = x.astype(np.float64)
        return {"columns": ((values - values.mean(0)) / values.std(0).clip(min=1e-9)).astype(np.float32)}, labels
    return passed(setting.backbone, x, host), labels


@torch.inference_mode()
def passed(name: str, x: np.ndarray, host: PluginHost) -> dict[str, np.ndarray]:
    """Pooled outputs (N, D) of each layer group."""
    backbone, ids = host.backbone(name), tuple(map(str, range(len(x))))
    if x.ndim == 1:
        rows = rows_in_memory(TextSamples(tuple(x), ids), backbone, InputFormat())
    else:
        images = ImageSamples(tuple(x), ids)
        layout = InputFormat(size=image_size_for(backbone, images.median_side(), None))
        rows = rows_in_memory(images, backbone, layout)
    groups = frozen_groups(backbone, ())
    pooled: dict[str, np.ndarray] = {}
    for indices in evaluation_batches(len(rows), BATCH, rows.lengths):
        values = rows.batch(indices, "cpu")
        for group, module in groups.items():
            values = module(values)
            features = pool(values, POOLING).numpy()
            pooled.setdefault(group, np.empty((len(x), features.shape[1]), np.float32))[indices] = features
    return pooled


def compare(taps: Mapping[str, np.ndarray], labels: np.ndarray, per_class: int, most: int, seed: int) -> dict[str, Any]:
    """Left-out and test F1 of the four, and what each way to choose gets."""
    order = np.random.default_rng(seed).permutation(len(labels))  # test samples are the same for each number of labels
    n_test = min(1000, len(labels) // 3)
    test, rest = order[:n_test], order[n_test:]
    known = np.concatenate([few(rest[labels[rest] == label], per_class) for label in np.unique(labels)])
    others = rest[~np.isin(rest, known)][:most]
    n_classes = int(labels.max()) + 1
    tap = best_tap(taps, labels, known, n_classes)
    x, y = taps[tap][known], labels[known]
    ridge = fit_ridge(x, y, "multiclass", n_classes)
    fits = {"ridge": ridge, "logistic": fit_logistic(x, y, "multiclass", n_classes, start=ridge)}
    for method in METHODS:
        fits[method] = fit_with_unlabeled(x, y, taps[tap][others], "multiclass", n_classes, method=method).fit
    left_out = {name: fit.score for name, fit in fits.items()}
    tested = {
        name: validation_score(labels[test], taps[tap][test] @ fit.weight + fit.bias, "multiclass", "f1_macro")
        for name, fit in fits.items()
    }
    plain = max(PLAIN, key=left_out.__getitem__)
    chosen = max(left_out, key=left_out.__getitem__)  # of equal ones, the plain one
    return {
        "tap": tap,
        "labeled": len(known),
        "unlabeled": len(others),
        "test": n_test,
        "left_out_f1": left_out,
        "test_f1": tested,
        "plain": plain,
        "chosen": chosen,
        "gain": {
            **{method: tested[method] - tested[plain] for method in METHODS},
            "chosen": tested[chosen] - tested[plain],
        },
    }


def few(members: np.ndarray, n: int) -> np.ndarray:
    """The first n of a class, but no more than half of it: unlabeled samples are of all classes."""
    return members[: min(n, len(members) // 2)]


def best_tap(taps: Mapping[str, np.ndarray], labels: np.ndarray, known: np.ndarray, n_classes: int) -> str:
    """The tap that a survey would read, by labeled samples alone."""
    if len(taps) == 1:
        return next(iter(taps))
    y, scores, loss = labels[known], {}, {}
    for tap, features in taps.items():
        fit = fit_ridge(features[known], y, "multiclass", n_classes)
        near = knn_loo(features[known], y, "multiclass", n_classes)
        scores[tap] = fit.score, validation_score(y, near, "multiclass", "f1_macro")
        loss[tap] = fit.log_loss
    return rank_taps(scores, log_loss=loss)[0]


def of(cells: Sequence[dict[str, Any]], task: str, per_class: int) -> list[dict[str, Any]]:
    return [cell for cell in cells if (cell["task"], cell["per_class"]) == (task, per_class)]


def row(task: str, cells: Sequence[dict[str, Any]]) -> list[str]:
    """What the seeds of one task and number of labels came to."""
    plain = np.mean([cell["test_f1"][cell["plain"]] for cell in cells])
    samples = [f"{np.mean([cell[of_which] for cell in cells]):.0f}" for of_which in ("labeled", "unlabeled")]
    return [task, str(cells[0]["per_class"]), ", ".join(samples), f"{plain:.3f}", *(seeds(cells, c) for c in COLUMNS)]


def seeds(cells: Sequence[dict[str, Any]], column: str) -> str:
    """Mean gain, worst seed, and seeds won and lost."""
    gains = np.array([cell["gain"][column] for cell in cells])
    return f"{gains.mean():+.3f} ({gains.min():+.3f}) {np.sum(gains > 0)}:{np.sum(gains < 0)}"


def overall(cells: Sequence[dict[str, Any]], column: str) -> dict[str, Any]:
    """Mean gain, and its interval by the bootstrap of task and seed: what they share moves all numbers of labels."""
    pairs = sorted({(cell["task"], cell["seed"]) for cell in cells})
    gains = np.array([[c["gain"][column] for c in cells if (c["task"], c["seed"]) == pair] for pair in pairs])
    drawn = np.random.default_rng(0).integers(0, len(pairs), (DRAWS, len(pairs)))
    low, high = np.percentile(gains.mean(1)[drawn].mean(1), [2.5, 97.5])
    return {
        "gain": float(gains.mean()),
        "ci95": [float(low), float(high)],
        "worst": float(gains.min()),
        "won": int(np.sum(gains > 0)),
        "lost": int(np.sum(gains < 0)),
        "cases": gains.size,
    }


def report(cells: Sequence[dict[str, Any]], about: dict[str, Any], options: dict[str, Any], seconds: float) -> None:
    """Print and write a row for each task and number of labels, and means over those of informative features."""
    tasks = list(dict.fromkeys(cell["task"] for cell in cells))
    counts = list(dict.fromkeys(cell["per_class"] for cell in cells))
    rows = [row(task, of(cells, task, per_class)) for task in tasks for per_class in counts]
    informative = [cell for cell in cells if SETTINGS[cell["task"]].informative]
    groups = {str(n): [cell for cell in informative if cell["per_class"] == n] for n in counts}
    groups["all"] = informative
    groups["new"] = [cell for cell in informative if not SETTINGS[cell["task"]].chosen_on]
    groups["noise"] = [cell for cell in cells if not SETTINGS[cell["task"]].informative]
    means = {name: {c: overall(each, c) for c in COLUMNS} for name, each in groups.items() if each}
    for name, found in means.items():
        which = {"new": "mean of emoji, fashion", "noise": "mean of noise"}.get(name, "mean but noise")
        rows.append([which, name if name.isdigit() else "all", "", "", *(_mean(found[column]) for column in COLUMNS)])
    note = (
        "Gains in test macro-F1 over the plain probe: the mean over seeds, in brackets the worst seed, then seeds won "
        "and lost; the rest are draws. Lower rows: the mean, in square brackets its 95 % interval by the bootstrap "
        "of pairs of task and seed (what other tasks would give, it does not cover), the worst of all, won and lost. "
        f"Seeds {', '.join(map(str, options['seeds']))}; {seconds:.0f} s of one core."
    )
    header = ["task", "labels a class", "labeled, unlabeled", "plain F1", "pseudo-labels", "propagation", "chosen"]
    keep("unlabeled", header, rows, {"circumstances": about, "options": options, "means": means, "cells": cells}, note)


def _mean(found: dict[str, Any]) -> str:
    low, high = found["ci95"]
    return f"{found['gain']:+.3f} [{low:+.3f}, {high:+.3f}] ({found['worst']:+.3f}) {found['won']}:{found['lost']}"


def noisy_digits() -> tuple[Any, ...]:
    x, y, *_ = digits()
    noise = np.random.default_rng(0).normal(0, NOISE, x.shape)
    return (x + noise).clip(0, 255).astype(np.uint8), y, None, None


SETTINGS: Mapping[str, Setting] = {
    "digits": Setting(TASKS["digits"], "efficientnet_lite0", chosen_on=True),
    "mnist": Setting(TASKS["mnist"], "mobilenet_v2", chosen_on=True),
    "r8": Setting(TASKS["r8"], "minilm_l6", chosen_on=True),
    "pen digits": Setting(TASKS["pen_digits"], None, chosen_on=True),
    "emoji": Setting(TASKS["emoji"], "efficientnet_lite0"),
    "fashion": Setting(TASKS["fashion"], "mobilenet_v2"),
    "digits in noise": Setting(noisy_digits, "efficientnet_lite0", informative=False),
}


if __name__ == "__main__":
    main()
