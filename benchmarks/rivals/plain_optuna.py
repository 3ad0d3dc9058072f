"""A plain search, as a good engineer writes it in a day: Optuna's TPE and Hyperband around a PyTorch training loop.

Searched: learning rate, weight decay, dropout, how many stages stay frozen, augmentation of images and length of texts.
The first two trials are what one would try by hand. A trial is validated every epoch, or every 100 steps where epochs
are longer, pruned by Hyperband and stopped early; the best network of all validations is the incumbent.
"""

from __future__ import annotations

import copy

import numpy as np
import optuna
import torch
from sklearn.model_selection import train_test_split
from torch import nn

from automl_tl.features.rows import Rows
from rivals.curve import Clock, Curve, macro_f1
from rivals.network import (
    BATCH,
    Network,
    bf16_is_faster,
    endless_batches,
    feature_width,
    predict,
    pretrained_stages,
    step,
)
from rivals.reading import Part, Task, parser_of, read_task, shortened, use_all_cores

MOST_VALIDATIONS = 20
MOST_STEPS = 100  # between two validations
PATIENCE = 5  # validations without a better one


class Plain:
    """The objective, and what it shares between trials."""

    def __init__(self, task: Task, clock: Clock, curve: Curve, seed: int) -> None:
        self.task, self.clock, self.curve = task, clock, curve
        self.stages = pretrained_stages(task)
        self.width = feature_width(self.stages, task.train.rows)
        self.bf16 = bf16_is_faster(self.network(dropout=0.0, n_frozen=0), task.train)
        self.fit, self.held = split(task.train.labels, seed)
        self.generator = np.random.default_rng(seed)
        self.best = 0.0

    def network(self, *, dropout: float, n_frozen: int) -> Network:
        stages: nn.ModuleList = copy.deepcopy(self.stages)
        return Network(stages, self.width, len(self.task.classes), dropout=dropout, n_frozen=n_frozen)

    def __call__(self, trial: optuna.Trial) -> float:
        """Validation macro-F1 of one configuration."""
        rate = trial.suggest_float("learning_rate", 1e-5, 1e-2, log=True)
        decay = trial.suggest_float("weight_decay", 1e-6, 1e-1, log=True)
        augmentation, longest = "none", 0
        if self.task.backbone.input.modality == "image":
            augmentation = trial.suggest_categorical("augmentation", ["none", "shift", "shift and flip"])
        if self.task.backbone.input.modality == "text":
            longest = trial.suggest_categorical("longest", [64, 128, 256])
        train, test = shortened(self.task.train, longest), shortened(self.task.test, longest)
        network = self.network(
            dropout=trial.suggest_float("dropout", 0.0, 0.5),
            n_frozen=trial.suggest_int("n_frozen", 0, len(self.stages)),
        )
        optimizer = torch.optim.AdamW(
            [parameter for parameter in network.parameters() if parameter.requires_grad], lr=rate, weight_decay=decay
        )
        batches = endless_batches(train.rows, self.fit, self.generator)
        steps = min(MOST_STEPS, max(1, len(self.fit) // BATCH))
        best, since = 0.0, 0
        for validation in range(MOST_VALIDATIONS):
            network.train()
            for _ in range(steps):
                step(network, optimizer, train, next(batches), bf16=self.bf16, augmentation=augmentation)
                if self.clock.over():
                    trial.study.stop()
                    return best
            score = self.validated(network, train, test.rows)
            best, since = (score, 0) if score > best else (best, since + 1)
            trial.report(score, validation)
            if since >= PATIENCE:
                break
            if trial.should_prune():
                raise optuna.TrialPruned
        return best

    def validated(self, network: Network, train: Part, test: Rows) -> float:
        """Validation macro-F1; a new best network becomes the incumbent."""
        score = macro_f1(train.labels[self.held], predict(network, train.rows, self.held, bf16=self.bf16))
        if score > self.best:
            self.best, kept = score, copy.deepcopy(network)
            self.curve.add(lambda: predict(kept, test, np.arange(len(test)), bf16=self.bf16))
        return score


def split(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices to fit and to validate on, four to one."""
    rare = np.bincount(labels).min() < 2
    parts = train_test_split(
        np.arange(len(labels)), test_size=0.2, stratify=None if rare else labels, random_state=seed
    )
    return parts[0], parts[1]


def main() -> None:
    options = parser_of(__doc__).parse_args()
    use_all_cores(options.seed)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    clock = Clock(options.began, options.budget)
    task = read_task(options.task, options.backbone)
    curve = Curve(clock, task.test.labels)
    plain = Plain(task, clock, curve, options.seed)
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=options.seed),
        pruner=optuna.pruners.HyperbandPruner(min_resource=1, max_resource=MOST_VALIDATIONS),
    )
    by_hand = {"weight_decay": 1e-2, "dropout": 0.1, "augmentation": "none", "longest": 128}
    n_stages = len(plain.stages)
    study.enqueue_trial({**by_hand, "learning_rate": 1e-3, "n_frozen": n_stages // 2})
    study.enqueue_trial({**by_hand, "learning_rate": 3e-4, "n_frozen": 0})
    # Scoring for the curve takes time that is not the search's, so the objective looks at the clock itself.
    study.optimize(plain)
    states = [trial.state.name.lower() for trial in study.trials]
    trials = {state: states.count(state) for state in sorted(set(states))}
    curve.finish(
        task.classes,
        options.predictions,
        facts={"validation": round(plain.best, 5), "trials": trials, "bf16": plain.bf16},
    )


if __name__ == "__main__":
    main()
