"""How should what a search trained come to learn from the samples that judged it, too?

A search trains a network on four fifths of the samples, at a constant rate, for 1, 3 or 9 epochs. What is handed over
learns from all of them: trained anew for as many epochs, or on from where the search left it for a few more, in both
cases while the rate falls to zero. Samples that nobody has seen say what came of it. They are of each task's training
part, never its test split.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from statistics import fmean
from typing import Any

import numpy as np
import torch
from results import circumstances, keep
from tasks import TASKS
from tuned_beside_floor import BACKBONE, BEST_TAP, SIZE, TUNED, UNSEEN, features_of

from automl_tl.data import ImageSamples
from automl_tl.data.folds import holdout
from automl_tl.engine.slots import usable_cores
from automl_tl.features.rows import ActivationRows
from automl_tl.features.samples import InputFormat, rows_in_memory
from automl_tl.host import load_host
from automl_tl.metrics.scores import log_loss, validation_score
from automl_tl.model.assemble import Interface, TransferModel, assemble
from automl_tl.model.spec import Optimization, Regularization, TrialSpec
from automl_tl.plugin import GroupPlan, TransferPlan
from automl_tl.probes.ridge import fit_ridge
from automl_tl.training.evaluation import predict_probabilities
from automl_tl.training.state import TrainingState
from automl_tl.training.train import Labelled, LinearStart, Stage, TrainingData, train

RUNGS = (1, 3, 9)  # epochs of the search
FURTHER = (1, 2, 3, 6)  # epochs more
SEARCHED, ANEW = "as searched", "anew"
WAYS = (SEARCHED, ANEW, *(f"{more} more" for more in FURTHER))


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Samples of a task, passed through the groups that stay frozen, and the network that learns from them."""

    maps: torch.Tensor
    labels: np.ndarray
    n: int  # of them to learn from; the others are unseen
    learn: np.ndarray  # what the search learns from
    build: Callable[[], TransferModel]
    seed: int

    @property
    def n_classes(self) -> int:
        return int(self.labels.max()) + 1

    def part(self, rows: np.ndarray, start: int) -> Labelled:
        return Labelled(
            rows=ActivationRows(self.maps[torch.from_numpy(rows)].clone()), labels=self.labels[rows], start=start
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(BEST_TAP), choices=list(BEST_TAP))
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--samples", type=int, default=500)
    options = parser.parse_args()
    about = circumstances()
    facts: list[dict[str, Any]] = []
    draws = list(product(options.tasks, range(options.draws)))
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(usable_cores(), spawned, torch.set_num_threads, (1,)) as processes:
        results = processes.map(of_draw, *zip(*((task, options.samples, seed) for task, seed in draws), strict=True))
        for (task, seed), ways in zip(draws, results, strict=True):
            for epochs, found in ways.items():
                facts.append({"task": task, "draw": seed, "epochs": epochs, "found": found})
                print(task, seed, epochs, {way: f"{f1:.4f}" for way, (f1, _) in found.items()}, flush=True)
    rows = []
    for epochs, task in product(RUNGS, [*options.tasks, "mean"]):
        some = [fact["found"] for fact in facts if fact["epochs"] == epochs and task in (fact["task"], "mean")]
        rows.append([str(epochs), task, *(f"{fmean(each[way][0] for each in some):.4f}" for way in WAYS)])
    for epochs in RUNGS:
        some = [fact["found"] for fact in facts if fact["epochs"] == epochs]
        rows.append([str(epochs), "log loss, mean", *(f"{fmean(each[way][1] for each in some):.4f}" for way in WAYS)])
    note = (
        f"Macro-F1 of up to {UNSEEN} unseen samples, mean of {options.draws} draws of {options.samples} samples: "
        f"{BACKBONE} with the last {TUNED} groups before the best tap tuned, its head from a ridge probe."
    )
    keep("all_samples", ["epochs", "task", *WAYS], rows, {"circumstances": about, "draws": facts}, note)


def of_draw(task: str, n: int, seed: int) -> dict[int, dict[str, tuple[float, float]]]:
    """In a process of its own, on one core: `ways_of` the samples that it draws."""
    return ways_of(drawn(task, n, seed))


def ways_of(draw: Draw) -> dict[int, dict[str, tuple[float, float]]]:
    """Macro-F1 and log loss of the unseen samples, by the epochs of the search and what followed it."""
    found: dict[int, dict[str, tuple[float, float]]] = {}
    searched: TrainingState | None = None
    for epochs in RUNGS:
        f1, searched_on = train_to(draw, draw.learn, Stage(until=epochs), searched)
        ways = {SEARCHED: f1, ANEW: train_to(draw, np.arange(draw.n), Stage(until=epochs, anneal=True), None)[0]}
        for more in FURTHER:
            stage = Stage(until=epochs + more, anneal=True)
            ways[f"{more} more"] = train_to(draw, np.arange(draw.n), stage, searched_on)[0]
        found[epochs], searched = ways, searched_on
    return found


def train_to(
    draw: Draw, rows: np.ndarray, stage: Stage, resumed: TrainingState | None
) -> tuple[tuple[float, float], TrainingState | None]:
    """Train on these rows, anew or on from a state; what the unseen samples say of it, and where it stands."""
    network = draw.build().eval()
    data = draw.part(rows, network.cut)
    start = None
    if resumed is None:
        features = features_of(network, data)
        fit = fit_ridge(features, data.labels, "multiclass", draw.n_classes)
        start = LinearStart(weight=fit.weight, bias=fit.bias)
    training = TrainingData(
        train=data,
        validation=None,
        stopping=None,
        head_start=start,
        kind="multiclass",
        metric="f1_macro",
        n_outputs=draw.n_classes,
        source=None,
    )
    outcome = train(
        network, training, network.spec, device="cpu", seed=draw.seed, stage=stage, resumed=copy.deepcopy(resumed)
    )
    unseen = draw.part(np.arange(draw.n, len(draw.labels)), network.cut)
    said = predict_probabilities(network, unseen, "multiclass", "cpu")
    f1 = validation_score(unseen.labels, said, "multiclass", "f1_macro")
    return (f1, log_loss(unseen.labels, said)), outcome.state


def drawn(task: str, n: int, seed: int) -> Draw:
    """Samples of a task's training part, with what the frozen groups make of them."""
    x, named, _, _ = TASKS[task]()
    y = np.unique(named, return_inverse=True)[1]
    rows = np.random.default_rng(seed).permutation(len(y))[: n + UNSEEN]
    host = load_host()
    backbone, tap = host.backbone(BACKBONE), BEST_TAP[task]
    groups = backbone.layer_groups
    actions = ["freeze"] * (tap - TUNED) + ["tune"] * TUNED + ["drop"] * (len(groups) - tap)
    plan = [GroupPlan(group=g, action=a) for g, a in zip(groups, actions, strict=True)]  # type: ignore[arg-type]
    spec = TrialSpec(
        backbone=BACKBONE,
        plan=TransferPlan(tuple(plan)),
        init_head="probe",
        regularization=Regularization(dropout=0.1, weight_decay=1e-3, label_smoothing=0.05),
        optimization=Optimization(learning_rate=1e-3),
        max_epochs=max(RUNGS) + max(FURTHER),
    )
    interface = Interface(input_shape=(3, SIZE, SIZE), n_outputs=int(y.max()) + 1)

    def build() -> TransferModel:
        return assemble(spec, backbone, host.head("linear"), interface, seed=seed)

    samples = ImageSamples(tuple(np.asarray(x[i]) for i in rows), tuple(map(str, rows)))
    images, frozen = rows_in_memory(samples, backbone, InputFormat(size=SIZE)), build().eval()
    parts = []
    with torch.inference_mode():
        for some in np.array_split(np.arange(len(rows)), -(-len(rows) // 64)):
            maps = frozen.prefix(images.batch(some, "cpu"))
            assert isinstance(maps, torch.Tensor)
            parts.append(maps)
    learn = holdout(y[rows][:n], fraction=0.2, seed=seed, groups=None, multilabel=False)[0]
    return Draw(maps=torch.cat(parts).clone(), labels=y[rows], n=n, learn=learn, build=build, seed=seed)


if __name__ == "__main__":
    main()
