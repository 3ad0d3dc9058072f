"""What does the framework cost? One trial by the search, beside the same training in a script without it.

Same network, weights, batches, optimizer, schedule, clipping, evaluation after each epoch and the best epoch saved to
disk. The trial's time is all that its supervisor waits for: suggesting, sending, plugins, assembling, training,
reporting, saving, telling. Both run in the same child process, in turns; the median of the paired ratios counts.
Close other programs first.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from fixed_search import BACKBONE, fixed_search, fixed_spec, with_trials
from results import circumstances, keep
from safetensors.torch import save_file
from sklearn.metrics import f1_score
from torch import Tensor, nn
from torch.nn import functional

from automl_tl.engine.child import warm_torch
from automl_tl.engine.slot import Children
from automl_tl.engine.slots import Slot, parse_slots
from automl_tl.features.rows import ImageRows, Rows
from automl_tl.features.task import SplitFiles
from automl_tl.host import load_host
from automl_tl.model.spec import TrialSpec, spec_from_json
from automl_tl.search.search import Search, run_search
from automl_tl.search.study import completed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=6, help="epochs of the trial")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    slots = parse_slots("cpu", cores=options.threads)
    about = circumstances()
    with tempfile.TemporaryDirectory() as directory, Children(slots, warm=warm_torch) as children:
        search = fixed_search(Path(directory), trials=0, epochs=options.epochs)

        def by_the_search() -> tuple[float, float]:
            return one_trial(search, slots, children)

        def by_the_script() -> tuple[float, float]:
            return bare_trial(search, slots[0], children)

        by_the_search(), by_the_script()  # imports, caches
        trials, scripts = in_turns(by_the_search, by_the_script, options.repeats)
        inside = [t.user_attrs["seconds"] for t in sorted(completed(search.study), key=lambda t: t.number)][1:]

    ratios = [trial / script for (trial, _), (script, _) in zip(trials, scripts, strict=True)]
    rows = [
        ["trial of the search", f"{median(s for s, _ in trials):.2f}", f"{median(f1 for _, f1 in trials):.3f}"],
        ["of this in the child", f"{median(inside):.2f}", ""],
        ["script", f"{median(s for s, _ in scripts):.2f}", f"{median(f1 for _, f1 in scripts):.3f}"],
    ]
    keep(
        "overhead",
        ["", "seconds", "validation macro-F1"],
        rows,
        {
            "circumstances": about,
            "options": vars(options),
            "trial_seconds": [s for s, _ in trials],
            "child_seconds": inside,
            "script_seconds": [s for s, _ in scripts],
            "ratio": median(ratios),
            "ratios": ratios,
        },
        f"A trial takes {median(ratios):.3f} times as long as the script (median of {options.repeats} pairs, "
        f"{min(ratios):.3f} to {max(ratios):.3f}).",
    )


def in_turns(
    first: Callable[[], tuple[float, float]], second: Callable[[], tuple[float, float]], repeats: int
) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """Call both `repeats` times, as in ABBAAB, so that a machine that slows down slows down both."""
    firsts, seconds = [], []
    for repeat in range(repeats):
        if repeat % 2:
            seconds.append(second())
            firsts.append(first())
        else:
            firsts.append(first())
            seconds.append(second())
        print(f"pair {repeat + 1}: {firsts[-1][0]:.2f} s and {seconds[-1][0]:.2f} s", flush=True)
    return firsts, seconds


def one_trial(search: Search, slots: tuple[Slot, ...], children: Children) -> tuple[float, float]:
    """One more trial of the search: seconds from asking to telling, and its score."""
    done = len(completed(search.study))
    began = time.perf_counter()
    run_search(with_trials(search, done + 1), slots, children, threading.Event(), lambda: None)
    seconds = time.perf_counter() - began
    latest = max(completed(search.study), key=lambda trial: trial.number)
    return seconds, float(latest.value or 0.0)


def bare_trial(search: Search, slot: Slot, children: Children) -> tuple[float, float]:
    """The same training without the framework, in the same child: its seconds and its score."""
    backbone = search.host.backbone(BACKBONE)
    files = (search.prepared.files(backbone, "train"), search.prepared.files(backbone, "validation"))
    spec = fixed_spec(search.context)
    n_classes = search.prepared.task.n_outputs
    return children.run(slot, train_by_hand, files, spec.to_json(), n_classes, search.directory.parent / "by-hand")


def train_by_hand(
    files: tuple[SplitFiles, SplitFiles], values: dict[str, Any], n_classes: int, out: Path
) -> tuple[float, float]:
    """What an engineer would write for this spec; timed from the weights on disk to the best epoch's on disk."""
    spec = spec_from_json(values)
    backbone = load_host().backbone(BACKBONE)
    assert backbone.weights is not None
    train, validation = (split.open(backbone) for split in files)

    began = time.perf_counter()
    torch.manual_seed(0)
    x, y = images(train.rows), torch.from_numpy(train.labels).long()
    x_validation = images(validation.rows)
    body = backbone.build(input_shape=tuple(x.shape[1:]), weights=backbone.weights.find())
    with torch.no_grad():
        width = body.eval()(x[:1]).shape[1]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(spec.regularization.dropout), nn.Linear(width, n_classes)]
    model = nn.Sequential(body, *head)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    optimizer, schedule = adamw(model, spec, steps=spec.max_epochs * round(len(x) / spec.optimization.batch_size))
    best, best_state = -1.0, model.state_dict()
    for _ in range(spec.max_epochs):
        model.train()
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eval()  # keeps the transferred statistics
        for batch in torch.randperm(len(x)).tensor_split(round(len(x) / spec.optimization.batch_size)):
            loss = functional.cross_entropy(
                model(x[batch]), y[batch], label_smoothing=spec.regularization.label_smoothing
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]  # torch's stubs
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        model.eval()
        with torch.no_grad():
            said = torch.cat([model(part).argmax(1) for part in torch.split(x_validation, 128)])
        score = float(f1_score(validation.labels, said.numpy(), average="macro"))
        if score > best:
            best, best_state = score, copy.deepcopy(model.state_dict())
    out.mkdir(exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in best_state.items()}, out / "model.safetensors")
    return time.perf_counter() - began, best


def images(rows: Rows) -> Tensor:
    """All images at once as normalized floats (N, 3, S, S), channels last."""
    assert isinstance(rows, ImageRows)
    mean, std = torch.tensor(rows.mean).view(3, 1, 1), torch.tensor(rows.std).view(3, 1, 1)
    floats = torch.from_numpy(rows.pixels.gather(np.arange(len(rows)))).float() / 255
    return floats.sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)


def adamw(
    model: nn.Module, spec: TrialSpec, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW that decays no vectors, with a linear warm-up and half a cosine."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": spec.regularization.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=spec.optimization.learning_rate, fused=True)
    warm_up = max(1, round(0.05 * steps))
    rise = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / warm_up, total_iters=warm_up)
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps - warm_up)
    return optimizer, torch.optim.lr_scheduler.SequentialLR(optimizer, [rise, fall], milestones=[warm_up])


if __name__ == "__main__":
    main()
