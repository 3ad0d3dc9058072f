"""A tuned network beside heads on frozen features: when should both make the final model, and when the heads alone?

As at the end of a short search: a network is judged by a fifth of the training samples, after it learned from the other
four fifths, and a head by the same fifth, each sample left out of its own fit. Each rule decides by those, all models
learn from all training samples, and samples that nobody has seen say what the rule ended with. One epoch makes a
network that is worse than the heads, nine make one that is often better. The samples are of each task's training part,
never its test split.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results import circumstances, keep
from tasks import TASKS

from automl_tl.data import ImageSamples
from automl_tl.data.folds import holdout
from automl_tl.features.rows import ActivationRows
from automl_tl.features.samples import InputFormat, rows_in_memory
from automl_tl.finish.ensemble import choosing_gain, mixture_gain, select_ensemble
from automl_tl.finish.members import WORSE
from automl_tl.host import load_host
from automl_tl.metrics.scores import validation_score
from automl_tl.model.assemble import Interface, TransferModel, assemble
from automl_tl.model.spec import Optimization, Regularization, TrialSpec
from automl_tl.plugin import GroupPlan, TransferPlan
from automl_tl.probes.ridge import fit_ridge
from automl_tl.training.evaluation import predict_probabilities
from automl_tl.training.train import Labelled, LinearStart, TrainingData, train

BACKBONE, SIZE = "efficientnet_lite0", 64
BEST_TAP = {"fashion": 6, "mnist": 6, "emoji": 7, "digits": 6}  # groups kept; of digits a guess
JOINED = (4, 5, 6, 7)  # taps that the second head reads, from 0
TUNED, UNSEEN = 2, 1500
RULES = (
    "head alone",
    "network alone",
    "half and half",
    "by the samples, if it pays",
    "half and half, unless clearly worse",
)


@dataclass(frozen=True)
class Trained:
    """Probabilities by each model, two heads and the network: (3, n, K)."""

    left_out: np.ndarray  # of the samples that judge
    unseen: np.ndarray
    labels: np.ndarray
    labels_unseen: np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(BEST_TAP), choices=list(BEST_TAP))
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--samples", type=int, nargs="+", default=[200, 900])
    parser.add_argument("--epochs", type=int, nargs="+", default=[1, 9])
    parser.add_argument("--kept", type=Path, help="a directory for what was trained; the same command goes on from it")
    options = parser.parse_args()
    about = circumstances()
    if options.kept:
        about["command"] = about["command"].replace(str(options.kept), "KEPT")
    rows, facts = list[list[str]](), list[dict[str, Any]]()
    for epochs, task, n in product(options.epochs, options.tasks, options.samples):
        found = [rule_scores(trained(task, n, epochs, seed, options.kept)) for seed in range(options.draws)]
        facts += [{"epochs": epochs, "task": task, "samples": n, "draw": i, **each} for i, each in enumerate(found)]
        rows.append([str(epochs), task, str(n), *(f"{np.mean([each[rule] for each in found]):.4f}" for rule in RULES)])
        print(*rows[-1], flush=True)
    for epochs in options.epochs:
        some = [fact for fact in facts if fact["epochs"] == epochs]
        rows.append([str(epochs), "mean", "", *(f"{np.mean([fact[rule] for fact in some]):.4f}" for rule in RULES)])
        worst = [min(fact[rule] - fact[RULES[0]] for fact in some) for rule in RULES]
        rows.append([str(epochs), "worst beside the head alone", "", *(f"{each:+.4f}" for each in worst)])
    note = (
        f"Macro-F1 of up to {UNSEEN} unseen samples, mean of {options.draws} draws: ridge on four taps (by the samples "
        f"also on the best one), and {BACKBONE} with the last {TUNED} groups before the best tap tuned. Clearly worse: "
        f"by {WORSE} standard errors in F1 and in log loss."
    )
    header = ["epochs", "task", "samples", *RULES]
    keep("tuned_beside_floor", header, rows, {"circumstances": about, "draws": facts}, note)


def rule_scores(found: Trained) -> Mapping[str, float]:
    """What each rule ends with."""
    head, network, halves = np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, 1.0]), np.array([0.0, 0.5, 0.5])

    def by_samples(some: np.ndarray) -> np.ndarray:
        return select_ensemble(found.labels[some], found.left_out[:, some], "multiclass", most=5)

    more = choosing_gain(found.labels, found.left_out, by_samples, lambda some: head, "multiclass")
    beside = mixture_gain(found.labels, found.left_out[2], found.left_out[1], "multiclass")
    weights = [
        head,
        network,
        halves,
        by_samples(np.arange(len(found.labels))) if more.pays else head,
        head if beside.below(WORSE) else halves,
    ]
    return {rule: score(found, each) for rule, each in zip(RULES, weights, strict=True)}


def score(found: Trained, weights: np.ndarray) -> float:
    said = np.tensordot(weights, found.unseen, 1)
    return validation_score(found.labels_unseen, said, "multiclass", "f1_macro")


def trained(task: str, n: int, epochs: int, seed: int, kept: Path | None) -> Trained:
    """Two heads and a network on n samples; from the directory where it was trained before."""
    file = None if kept is None else kept / f"{task}-{n}-{epochs}-{seed}.npz"
    if file is not None and file.exists():
        return Trained(**np.load(file))
    found = train_all(task, n, epochs, seed)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, **asdict(found))
    return found


def train_all(task: str, n: int, epochs: int, seed: int) -> Trained:
    x, named, _, _ = TASKS[task]()
    y = np.unique(named, return_inverse=True)[1]
    drawn = np.random.default_rng(seed).permutation(len(y))[: n + UNSEEN]
    host = load_host()
    backbone, tap, n_classes = host.backbone(BACKBONE), BEST_TAP[task], int(y.max()) + 1
    samples = ImageSamples(tuple(np.asarray(x[i]) for i in drawn), tuple(map(str, drawn)))
    images, labels = rows_in_memory(samples, backbone, InputFormat(size=SIZE)), y[drawn]

    def model(actions: list[str]) -> TransferModel:
        groups = [GroupPlan(group=g, action=a) for g, a in zip(backbone.layer_groups, actions, strict=True)]  # type: ignore[arg-type]
        spec = TrialSpec(
            backbone=BACKBONE,
            plan=TransferPlan(tuple(groups)),
            init_head="probe",
            regularization=Regularization(dropout=0.1, weight_decay=1e-3, label_smoothing=0.05),
            optimization=Optimization(learning_rate=1e-3),
            max_epochs=epochs,
        )
        interface = Interface(input_shape=(3, SIZE, SIZE), n_outputs=n_classes)
        return assemble(spec, backbone, host.head("linear"), interface, seed=seed)

    def passed(frozen: TransferModel) -> torch.Tensor:
        """What the frozen groups make of all images, (N, channels, height, width)."""
        parts = []
        with torch.inference_mode():
            for rows in np.array_split(np.arange(len(drawn)), -(-len(drawn) // 64)):
                maps = frozen.eval().prefix(images.batch(rows, "cpu"))
                assert isinstance(maps, torch.Tensor)
                parts.append(maps)
        return torch.cat(parts).clone()

    def read(kept: int) -> np.ndarray:
        """Mean and spread of the outputs of the group before `kept`, centered, at one scale."""
        maps = passed(model(["freeze"] * kept + ["drop"] * (len(backbone.layer_groups) - kept)))
        found = torch.cat([maps.mean((2, 3)), maps.std((2, 3))], 1).numpy()
        found = found - found[:n].mean(0)
        return np.asarray(found / np.sqrt((found[:n] ** 2).sum(1).mean()), dtype=np.float32)

    learn, judge = holdout(labels[:n], fraction=0.2, seed=seed, groups=None, multilabel=False)
    left_out, unseen = [], []
    four = np.concatenate([read(each + 1) for each in JOINED], 1)
    for features in (read(tap), four):
        fit = fit_ridge(features[:n], labels[:n], "multiclass", n_classes)
        left_out.append(fit.out_of_fold[judge])
        logits = features[n:] @ fit.weight + fit.bias
        likely = np.exp(logits - logits.max(1, keepdims=True))
        unseen.append(likely / likely.sum(1, keepdims=True))

    cut = tap - TUNED
    actions = ["freeze"] * cut + ["tune"] * TUNED + ["drop"] * (len(backbone.layer_groups) - tap)
    maps = passed(model(actions))

    def tuned(rows: np.ndarray, asked: np.ndarray) -> np.ndarray:
        network = model(actions).eval()
        data = labelled(maps, labels, rows, cut)
        features = features_of(network, data)
        fit = fit_ridge(features, data.labels, "multiclass", n_classes)
        training = TrainingData(
            train=data,
            validation=None,
            stopping=None,
            head_start=LinearStart(weight=fit.weight, bias=fit.bias),
            kind="multiclass",
            metric="f1_macro",
            n_outputs=n_classes,
            source=None,
        )
        train(network, training, network.spec, device="cpu", seed=seed)
        return predict_probabilities(network, labelled(maps, labels, asked, cut), "multiclass", "cpu")

    left_out.append(tuned(learn, judge))
    unseen.append(tuned(np.arange(n), np.arange(n, len(drawn))))
    return Trained(np.stack(left_out), np.stack(unseen), labels[:n][judge], labels[n:])


def labelled(maps: torch.Tensor, labels: np.ndarray, rows: np.ndarray, cut: int) -> Labelled:
    return Labelled(rows=ActivationRows(maps[torch.from_numpy(rows)].clone()), labels=labels[rows], start=cut)


def features_of(network: TransferModel, data: Labelled) -> np.ndarray:
    """What the head of a network in eval mode reads of these rows, (N, D)."""
    with torch.inference_mode():
        parts = [
            network.features(data.rows.batch(rows, "cpu"), data.start)
            for rows in np.array_split(np.arange(len(data.labels)), -(-len(data.labels) // 64))
        ]
    return torch.cat(parts).numpy()


if __name__ == "__main__":
    main()
