"""How much faster do M heads train as one batched computation than one after the other?

Both ways train the same heads on the same stored features: by M calls of `train`, and by one call of `train_heads`.
Each head has its own rates, dropout, weight decay and label smoothing, as trials of a search have; none stops early, so
both take the same number of steps. Ratios are taken between neighbors in time; the median counts. The features are the
handwritten digits' pixels, repeated to the width of a common backbone's output: good enough for speed, and only for
that. Close other programs first.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

import numpy as np
import torch
from results import circumstances, keep
from sklearn.datasets import load_digits

from automl_tl.features.rows import ArrayValues, StoredRows
from automl_tl.host import load_host
from automl_tl.model.assemble import TransferModel, assemble_head
from automl_tl.model.spec import Optimization, Regularization, TrialSpec
from automl_tl.plugin import GroupPlan, TransferPlan
from automl_tl.training.heads import train_heads
from automl_tl.training.train import Labelled, Outcome, TrainingData, train

N_TRAIN, WIDTH, N_CLASSES = 1000, 1280, 10
HEADS: dict[str, dict[str, Any]] = {"linear": {}, "mlp": {"hidden": 256}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Seconds and mean best validation macro-F1 of both ways."""

    apart: float
    at_once: float
    f1_apart: float
    f1_at_once: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, nargs="+", default=[1, 4, 8, 16, 32], help="M, heads to train")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of the CPU; a slot has one unless told otherwise")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    about = circumstances()
    devices = {"cpu": f"CPU, {options.threads} thread(s)"}
    if torch.cuda.is_available():
        devices["cuda:0"] = torch.cuda.get_device_name("cuda:0")
    measured: dict[tuple[str, str, int], list[Pair]] = {}
    for device in devices:
        for head in HEADS:
            both_ways(head, 2, 1, device)  # imports, caches
            for m in options.models:
                pairs = [both_ways(head, m, options.epochs, device, turn) for turn in range(options.repeats)]
                measured[device, head, m] = pairs
                print(f"{device}, {m} {head}: {median(p.apart / p.at_once for p in pairs):.2f}", flush=True)

    rows = [
        [
            devices[device],
            f"{m} {head}",
            f"{1e3 * median(p.apart for p in pairs) / m:.0f}",
            f"{1e3 * median(p.at_once for p in pairs) / m:.0f}",
            f"{median(p.apart / p.at_once for p in pairs):.2f}",
            f"{mean(p.f1_apart for p in pairs):.3f} and {mean(p.f1_at_once for p in pairs):.3f}",
        ]
        for (device, head, m), pairs in measured.items()
    ]
    if len(devices) == 1:
        rows.append(["GPU", "", "not measured", "not measured", "not measured", ""])
    keep(
        "many_heads",
        ["device", "heads", "ms a head, apart", "ms a head, at once", "at once is faster by", "mean macro-F1"],
        rows,
        {
            "circumstances": about,
            "options": vars(options),
            "pairs": [
                {"device": devices[device], "head": head, "models": m, "apart": p.apart, "at_once": p.at_once}
                for (device, head, m), pairs in measured.items()
                for p in pairs
            ],
        },
        f"{options.epochs} epochs on {N_TRAIN} x {WIDTH} features, {N_CLASSES} classes, batches of 32; medians of "
        f"{options.repeats} pairs.",
    )


def both_ways(head: str, m: int, epochs: int, device: str, turn: int = 0) -> Pair:
    """Train the same M heads both ways; every other turn the other way comes first."""
    data = digits()

    def apart(models: Sequence[TransferModel]) -> list[Outcome]:
        return [train(model, data, model.spec, device=device, seed=0) for model in models]

    def at_once(models: Sequence[TransferModel]) -> list[Outcome]:
        return train_heads(models, data, device=device, seed=0)

    found = {}
    for way in (at_once, apart) if turn % 2 else (apart, at_once):
        models = [untrained(head, number, epochs) for number in range(m)]
        began = time.perf_counter()
        outcomes = way(models)
        found[way] = (time.perf_counter() - began, mean(outcome.score or 0.0 for outcome in outcomes))
    (seconds_apart, f1_apart), (seconds_at_once, f1_at_once) = found[apart], found[at_once]
    return Pair(apart=seconds_apart, at_once=seconds_at_once, f1_apart=f1_apart, f1_at_once=f1_at_once)


def untrained(head: str, number: int, epochs: int) -> TransferModel:
    """The head of a trial whose settings are drawn at random."""
    draw = np.random.default_rng(number)
    spec = TrialSpec(
        backbone="none",
        plan=TransferPlan((GroupPlan(group="all", action="freeze"),)),
        head=head,
        head_parameters=HEADS[head],
        regularization=Regularization(
            dropout=draw.uniform(0, 0.5),
            weight_decay=10 ** draw.uniform(-6, -1),
            label_smoothing=float(draw.choice([0.0, 0.05, 0.1])),
            patience=epochs,
        ),
        optimization=Optimization(learning_rate=10 ** draw.uniform(-4, -2), batch_size=32),
        max_epochs=epochs,
    )
    plugin = load_host().head(head)
    return assemble_head(spec, plugin, in_features=WIDTH, n_outputs=N_CLASSES, seed=number)


def digits() -> TrainingData:
    """Real features as the store gives them: 1,000 rows to train on, the rest to validate by."""
    pixels, labels = load_digits(return_X_y=True)
    features = np.tile(pixels / 16, (1, WIDTH // pixels.shape[1])).astype(np.float16)
    train_rows, validation = (
        Labelled(rows=StoredRows(ArrayValues(part), "float16"), labels=its_labels, start=1)
        for part, its_labels in (
            (features[:N_TRAIN], labels[:N_TRAIN]),
            (features[N_TRAIN:], labels[N_TRAIN:]),
        )
    )
    return TrainingData(
        train=train_rows, validation=validation, kind="multiclass", metric="f1_macro", n_outputs=N_CLASSES
    )


if __name__ == "__main__":
    main()
