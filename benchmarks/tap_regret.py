"""How much F1 does it cost to believe the score that picks a tap, rather than to train a probe on every tap?

For each task, backbone and number of training samples: the same ridge probe is fitted on every tap and measured on test
samples that no score saw. Regret of a rule = best test macro-F1 over taps - test macro-F1 of the tap that the rule
picks. The best over taps is picked by the test samples themselves, so even a perfect rule has a little regret.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from results import circumstances, keep
from rich.console import Console
from tasks import draw

from automl_tl.config import load_config
from automl_tl.data import task_from_python
from automl_tl.engine.slot import Children
from automl_tl.engine.slots import parse_slots
from automl_tl.engine.spread import Crew
from automl_tl.features.frozen import pooled_rows
from automl_tl.features.task import prepare_task
from automl_tl.metrics.scores import validation_score
from automl_tl.probes.diagnostics import logme
from automl_tl.probes.knn import knn_loo
from automl_tl.probes.ranking import rank_taps
from automl_tl.probes.ridge import fit_ridge
from automl_tl.report.live import Display
from automl_tl.run import Run, lay_out, load, space_context, stored_networks
from automl_tl.rundir import RunDirectory
from automl_tl.search.crew import warm_child
from automl_tl.search.passes import pass_backbone
from automl_tl.search.scores import POOLING, subset

SETTINGS = {
    "digits": ("efficientnet_lite0", "mobilenet_v2"),
    "mnist": ("efficientnet_lite0", "mobilenet_v2"),
    "fashion": ("efficientnet_lite0", "mobilenet_v2"),
    "r8": ("minilm_l6",),
    "20newsgroups": ("minilm_l6",),
}
Features = Callable[[str, int], np.ndarray]  # split, tap -> (N, D)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--sizes", nargs="+", type=int, default=[100, 300, 1000])
    parser.add_argument("--test", type=int, default=1000, help="test samples, fewer where a task has fewer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slots", default="cpu*2")
    options = parser.parse_args()
    about = circumstances()
    rows: list[list[str]] = []
    facts: list[dict[str, Any]] = []
    slots = parse_slots(options.slots)
    with Children(slots, warm=warm_child) as children, tempfile.TemporaryDirectory() as directory:
        crew = Crew(slots=slots, children=children)
        for name in options.tasks:
            drawn = draw(name, max(options.sizes), options.test, seed=options.seed)
            task = task_from_python(drawn.x, drawn.y, seed=options.seed, test=(drawn.x_test, drawn.y_test))
            for backbone in SETTINGS[name]:
                values = {"data": {"path": name}, "backbones": backbone}
                story = Run(
                    config=load_config(values),
                    directory=RunDirectory(Path(directory) / f"{name}-{backbone}"),
                    display=Display(Console(quiet=True)),
                    task=task_from_python(
                        drawn.x, drawn.y, seed=options.seed, test=(drawn.x_test, drawn.y_test), config=None
                    ),
                )
                features, labels, n_taps = passed(story, backbone, crew)
                for size in options.sizes:
                    found = regrets(features, labels, task.n_outputs, n_taps, size, options.seed)
                    facts.append({"task": name, "backbone": backbone, "size": size, **found})
                    rows.append(
                        [
                            name,
                            backbone,
                            str(size),
                            f"{found['best']:.3f}",
                            *(f"{v:.3f}" for v in found["regret"].values()),
                        ]
                    )
                    print(*rows[-1], flush=True)
    rules = list(facts[0]["regret"])
    means = {rule: float(np.mean([each["regret"][rule] for each in facts])) for rule in rules}
    worst = {rule: float(np.max([each["regret"][rule] for each in facts])) for rule in rules}
    rows.append(["mean", "", "", "", *(f"{means[rule]:.4f}" for rule in rules)])
    rows.append(["largest", "", "", "", *(f"{worst[rule]:.3f}" for rule in rules)])
    keep(
        "tap_regret",
        ["task", "backbone", "samples", "best F1", *rules],
        rows,
        {"circumstances": about, "options": vars(options), "settings": facts, "mean": means, "largest": worst},
        "Columns from the fifth on: test macro-F1 lost by picking the tap by that rule. `score` is what a search uses.",
    )


def passed(story: Run, name: str, crew: Crew) -> tuple[Features, Mapping[str, np.ndarray], int]:
    """Pass all samples, those of the test split too; features by split and tap, and labels by split.

    Training and validation samples are joined again: nothing here needs a validation split.
    """
    loaded = load(story)
    backbone = loaded.host.backbone(name)
    prepared = lay_out(story, loaded)
    prepare_task(prepared, (backbone,), lambda what, done, n: None)
    test = loaded.task.test.open()
    prepared.note("test", test)
    prepared.prepare(backbone, "test", test, lambda what, done, n: None)
    context = space_context(story, loaded, prepared, "transferred", joint=False)
    stored = stored_networks(story, loaded, prepared, context, None)[name]
    files = {split: prepared.files(backbone, split) for split in ("train", "validation", "test")}
    done = pass_backbone(
        loaded.host, backbone, stored, list(files.values()), crew, lambda what, d, n: None, sitting=time.time()
    )
    opened = {split: each.open(backbone) for split, each in files.items()}

    def features(split: str, tap: int) -> np.ndarray:
        parts = ("train", "validation") if split == "train" else (split,)
        found = [pooled_rows(done.network, opened[part].samples, [tap], POOLING) for part in parts]
        return np.concatenate([each.features() for each in found if each is not None])

    labels = {
        "train": np.concatenate([opened["train"].labels, opened["validation"].labels]),
        "test": opened["test"].labels,
    }
    return features, labels, len(backbone.layer_groups)


def regrets(
    features: Features, labels: Mapping[str, np.ndarray], n_classes: int, n_taps: int, size: int, seed: int
) -> dict[str, Any]:
    """Best test F1 over taps, and what each rule's pick loses."""
    chosen = subset(labels["train"], size, seed, multilabel=False)
    train, test = labels["train"][chosen], labels["test"]
    f1: dict[int, float] = {}
    ridge: dict[int, float] = {}
    near: dict[int, float] = {}
    loss: dict[int, float] = {}
    evidence: dict[int, float] = {}
    for tap in range(1, n_taps + 1):
        x = features("train", tap)[chosen]
        fit = fit_ridge(x, train, "multiclass", n_classes)
        ridge[tap], loss[tap] = fit.score, fit.log_loss
        near[tap] = validation_score(train, knn_loo(x, train, "multiclass", n_classes), "multiclass", "f1_macro")
        evidence[tap] = logme(x, train, n_classes)
        f1[tap] = validation_score(test, features("test", tap) @ fit.weight + fit.bias, "multiclass", "f1_macro")
    ranked = rank_taps({tap: (ridge[tap], near[tap]) for tap in f1}, log_loss=loss)
    picks = {
        "score": ranked[0],
        "ridge alone": max(ridge, key=ridge.__getitem__),
        "kNN alone": max(near, key=near.__getitem__),
        "LogME": max(evidence, key=evidence.__getitem__),
        "always the last": n_taps,
    }
    best = max(f1.values())
    return {
        "best": best,
        "regret": {rule: best - f1[tap] for rule, tap in picks.items()},
        "picks": picks,
        "test_f1": f1,
        "scores": {"ridge": ridge, "knn": near, "logme": evidence},
    }


if __name__ == "__main__":
    main()
