"""One good recipe and no search: what AutoGluon MultiModal does by default, in plain PyTorch.

AdamW at 1e-4, falling by 0.9 a stage towards the input and ten times as high in the new head, warm-up and cosine, up to
15 epochs, two validations an epoch, patience, and a greedy soup of the best three (Wortsman et al. 2022). The cosine
ends with the epochs or with the budget, whichever is first, so a short budget gets a whole schedule too.
"""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
from torch import Tensor

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
from rivals.plain_optuna import split
from rivals.reading import Task, parser_of, read_task, shortened, use_all_cores

EPOCHS = 15
LONGEST = 128  # tokens: the usual compromise on a CPU
LEARNING_RATE, HEAD_RATE = 1e-4, 1e-3
STAGE_DECAY = 0.9
WEIGHT_DECAY = 1e-3
WARM_UP = 0.1  # of the schedule
PATIENCE = 10  # validations
SOUP = 3
RESERVE = 0.03  # of the budget, for the last validation and the soup

State = dict[str, Tensor]


def main() -> None:
    options = parser_of(__doc__).parse_args()
    use_all_cores(options.seed)
    clock = Clock(options.began, options.budget)
    task = read_task(options.task, options.backbone)
    curve = Curve(clock, task.test.labels)
    validation, ended, bf16 = follow(task, clock, curve, options.seed)
    facts = {"validation": round(validation, 5), "ended_by_itself": ended, "bf16": bf16}
    curve.finish(task.classes, options.predictions, facts=facts)


def follow(task: Task, clock: Clock, curve: Curve, seed: int) -> tuple[float, bool, bool]:
    """Train by the recipe; validation macro-F1, whether the budget was enough, and whether in bf16."""
    stages, train, test = pretrained_stages(task), shortened(task.train, LONGEST), shortened(task.test, LONGEST)
    network = Network(stages, feature_width(stages, train.rows), len(task.classes), dropout=0.1, n_frozen=0)
    bf16 = bf16_is_faster(network, train)
    fit, held = split(train.labels, seed)
    optimizer = torch.optim.AdamW(layer_wise(network), weight_decay=WEIGHT_DECAY)
    peaks = [group["lr"] for group in optimizer.param_groups]
    batches = endless_batches(train.rows, fit, np.random.default_rng(seed))
    steps = EPOCHS * max(1, len(fit) // BATCH)
    each = max(1, steps // (2 * EPOCHS))
    augmentation = "shift" if task.backbone.input.modality == "image" else "none"
    best: list[tuple[float, State]] = []
    since, began, end = 0, clock.seconds(), clock.budget * (1 - RESERVE)

    def scored() -> float:
        return macro_f1(train.labels[held], predict(network, train.rows, held, bf16=bf16))

    def offer() -> None:
        """The network as it is becomes the incumbent."""
        kept = copy.deepcopy(network)
        curve.add(lambda: predict(kept, test.rows, np.arange(len(test)), bf16=bf16))

    done = 0
    while not best or (done < steps and since < PATIENCE and clock.seconds() < end):
        network.train()
        for _ in range(each):
            share = max(done / steps, (clock.seconds() - began) / max(end - began, 1e-9))
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * warm_cosine(min(share, 1.0))
            step(network, optimizer, train, next(batches), bf16=bf16, augmentation=augmentation)
            done += 1
            if clock.seconds() >= end:
                break
        score = scored()
        since += 1
        if not best or score > best[0][0]:
            since = 0
            offer()
        best = sorted([*best, (score, copy.deepcopy(network.state_dict()))], key=lambda each: -each[0])[:SOUP]
    ended = clock.seconds() < end
    final, members = best[0][0], [best[0][1]]
    for _, state in best[1:]:
        network.load_state_dict(mean_of([*members, state]))
        score = scored()
        if score >= final:
            final, members = score, [*members, state]
    network.load_state_dict(mean_of(members))
    offer()
    return final, ended, bf16


def layer_wise(network: Network) -> list[dict[str, object]]:
    """Parameter groups: the head, and each stage at 0.9 of the learning rate of the one after it."""
    groups: list[dict[str, object]] = [{"params": list(network.head.parameters()), "lr": HEAD_RATE}]
    for depth, stage in enumerate(reversed(list(network.stages)), start=1):
        groups.append({"params": list(stage.parameters()), "lr": LEARNING_RATE * STAGE_DECAY**depth})
    return groups


def warm_cosine(share: float) -> float:
    """Factor of the learning rate when a share (0 to 1) of the schedule is over."""
    if share < WARM_UP:
        return max(share / WARM_UP, 0.01)
    return 0.5 * (1 + math.cos(math.pi * (share - WARM_UP) / (1 - WARM_UP)))


def mean_of(states: list[State]) -> State:
    """The weights' mean; counters are taken from the first."""
    return {
        name: torch.stack([state[name] for state in states]).mean(0) if value.is_floating_point() else value
        for name, value in states[0].items()
    }


if __name__ == "__main__":
    main()
