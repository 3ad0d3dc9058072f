"""Several heads on the same frozen features: is the best alone, the samples' choice of several, or their mean better?

As in a search that had no time for more than its first trials: five heads that read one or four taps are solved for,
and each sample is judged by fits that left it out. Each rule decides by those; samples that nobody has seen, of the
task's training part and never of its test split, say what the rule ended with. No adjustment is made.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from incumbents import open_run
from results import circumstances, keep
from sklearn.model_selection import train_test_split
from tasks import CONTESTS, draw, write_part

from automl_tl.finish.choice import Candidate, choose
from automl_tl.finish.confirm import as_searched
from automl_tl.finish.ensemble import mixture_gain, select_ensemble
from automl_tl.finish.members import choose_members
from automl_tl.finish.refit import load_chosen
from automl_tl.metrics.scores import Kind, validation_score
from automl_tl.model.spec import spec_from_json
from automl_tl.rundir import RunDirectory
from automl_tl.search.finalists import Finalist

UNSEEN, HEADS = 600, 5
KIND: Kind = "multiclass"
METRIC = "f1_macro"


@dataclass(frozen=True, kw_only=True)
class Heads:
    """What each head says, (M, N, K), and what is true."""

    names: tuple[str, ...]
    costs: tuple[float, ...]  # parameters
    left_out: np.ndarray
    labels: np.ndarray
    unseen: np.ndarray
    labels_unseen: np.ndarray
    searched: np.ndarray  # (M,) weights that the search's own rule gives them


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["digits", "mnist", "fashion", "emoji", "r8", "20newsgroups"])
    parser.add_argument("--samples", nargs="+", type=int, default=[200, 1000])
    parser.add_argument("--seeds", nargs="+", type=int, default=[10, 11])
    options = parser.parse_args()
    facts: list[dict[str, Any]] = []
    for task, n, seed in product(options.tasks, options.samples, options.seeds):
        with tempfile.TemporaryDirectory() as directory:
            heads = solve(task, n, seed, Path(directory))
        found = {rule: round(score(heads, weigh(heads)), 5) for rule, weigh in RULES.items()}
        facts.append({"task": task, "samples": n, "seed": seed, **found})
        print(facts[-1], flush=True)
    rows = []
    for task, n in product(options.tasks, options.samples):
        some = [fact for fact in facts if (fact["task"], fact["samples"]) == (task, n)]
        rows.append([task, str(n), *(f"{np.mean([fact[rule] for fact in some]):.4f}" for rule in RULES)])
    rows.append(["mean", "", *(f"{np.mean([fact[rule] for fact in facts]):.4f}" for rule in RULES)])
    worst = [min(fact[rule] - fact["as the search has it"] for fact in facts) for rule in RULES]
    rows.append(["worst beside the search", "", *(f"{each:+.4f}" for each in worst)])
    note = f"Macro-F1 of {UNSEEN} unseen samples, mean of {len(options.seeds)} draws."
    keep("heads_together", ["task", "samples", *RULES], rows, {"circumstances": circumstances(), "draws": facts}, note)


def solve(task: str, n: int, seed: int, directory: Path) -> Heads:
    """The probes of a search on so many samples, and what their models say of unseen ones."""
    contest = CONTESTS[task]
    drawn = draw(contest.data, n + UNSEEN, 100, seed=seed)
    x, unseen, y, labels_unseen = train_test_split(
        drawn.x, drawn.y, train_size=n, test_size=UNSEEN, stratify=drawn.y, random_state=seed
    )
    data = directory / "data"
    data.mkdir()
    write_part(data, "train", x, y)
    write_part(data, "test", unseen, labels_unseen)  # a test split to the search, which nothing of it is chosen by
    os.environ["AUTOML_TL_CACHE"] = str(directory / "cache")
    settings = {
        "data": {"path": str(data)},
        "backbones": contest.backbone,
        "strategies": ["linear_probe", "suffix"],
        "space": {"suffix.n_train": 0, "fit": ["ridge", "logistic"]},  # nothing trains
        "search": {"trials": 2 * HEADS, "keep_checkpoints": 1000},  # recipes make half of them
        "seed": seed,
    }
    (directory / "search.yaml").write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "automl_tl", "search", str(directory / "search.yaml")]
    subprocess.run([*command, "--run-dir", str(directory / "run")], check=True, stdout=subprocess.DEVNULL)
    measurer, trials = open_run(RunDirectory(directory / "run"))
    search = measurer.search
    recipes = [trial for trial in trials if "recipe" in trial.user_attrs]
    finalists = [Finalist(trial, spec_from_json(trial.user_attrs["spec"]), 0.0) for trial in recipes]
    confirmed = [as_searched(search, finalist) for finalist in finalists]
    members = choose_members(search, "auto", confirmed)
    said = []
    for finalist in finalists:
        model = load_chosen(search, finalist.spec, search.directory / str(finalist.number), measurer.device)
        said.append(measurer.probabilities(finalist.spec, model))
    return Heads(
        names=tuple(str(finalist.trial.user_attrs.get("recipe")) for finalist in finalists),
        costs=tuple(float(finalist.trial.user_attrs["total_parameters"]) for finalist in finalists),
        left_out=np.stack([each.probabilities for each in confirmed]),
        labels=np.asarray(search.prepared.development().labels),
        unseen=np.stack(said),
        labels_unseen=measurer.test.labels,
        searched=members.weights,
    )


def score(heads: Heads, weights: np.ndarray) -> float:
    """Macro-F1 of a mixture on the unseen samples."""
    mixed = np.tensordot(weights / weights.sum(), heads.unseen, 1)
    return float(validation_score(heads.labels_unseen, mixed, KIND, METRIC))


def scores(heads: Heads) -> np.ndarray:
    return np.array([validation_score(heads.labels, each, KIND, METRIC) for each in heads.left_out])


def best_alone(heads: Heads) -> np.ndarray:
    return one(heads, int(scores(heads).argmax()))


def cheapest_alone(heads: Heads) -> np.ndarray:
    candidates = [
        Candidate(name=name, probabilities=said, cost=cost, floor=True)
        for name, said, cost in zip(heads.names, heads.left_out, heads.costs, strict=True)
    ]
    return one(heads, choose(heads.labels, candidates, KIND, metric=METRIC, seed=0).index)


def greedy(heads: Heads) -> np.ndarray:
    return select_ensemble(heads.labels, heads.left_out, KIND, metric=METRIC, most=5, seed=0)


def all_alike(heads: Heads) -> np.ndarray:
    return np.ones(len(heads.names))


def not_clearly_worse(heads: Heads) -> np.ndarray:
    """All alike but those that are worse than the best in both measures, by more than 1.5 standard errors."""
    best = heads.left_out[int(scores(heads).argmax())]
    gains = [mixture_gain(heads.labels, each, best, KIND, metric=METRIC) for each in heads.left_out]
    return np.array([0.0 if gain.below(1.5) else 1.0 for gain in gains])


def best_of_each_kind(heads: Heads) -> np.ndarray:
    """Half the best ridge, half the best logistic regression."""
    found, logistic = scores(heads), np.array(["logistic" in name for name in heads.names])
    best = (int(np.where(of_kind, found, -1).argmax()) for of_kind in (logistic, ~logistic))
    return np.asarray(sum(one(heads, index) for index in best))


def one(heads: Heads, index: int) -> np.ndarray:
    return np.asarray(np.eye(len(heads.names))[index])


RULES: Mapping[str, Callable[[Heads], np.ndarray]] = {
    "as the search has it": lambda heads: heads.searched,
    "the best alone": best_alone,
    "the cheapest within one SE": cheapest_alone,
    "greedy": greedy,
    "all alike": all_alike,
    "all alike, but the clearly worse": not_clearly_worse,
    "best ridge and best logistic": best_of_each_kind,
}


if __name__ == "__main__":
    main()
