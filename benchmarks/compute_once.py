"""What does it save to compute frozen layer groups once? Steps with and without the store, beside the bound.

Four tables, all ratios of one run, each pair in turns:
    steps   fine-tuning everything after a cut, from stored activations and from samples. With F the work of a forward
            pass, a share phi of it before the cut, and a backward pass twice as dear as a forward one, a step from
            samples takes phi F + 3 (1 - phi) F and a step from the store 3 (1 - phi) F, so no store can be faster by
            more than 1 + phi / (3 (1 - phi)). phi is counted (FLOPs) and timed (the prefix's share of a forward pass):
            early groups do their FLOPs more slowly, so a store may beat the bound of the counted one.
    pass    storing the pooled outputs of every layer group, beside a bare forward pass of the same batches
    probe   a linear-probe trial on 1,000 stored samples: ask, solve, judge, save, tell
Close other programs first.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from results import circumstances, keep
from rich.console import Console
from tasks import draw
from torch import nn

from automl_tl.config import load_config
from automl_tl.data import task_from_python
from automl_tl.engine.slot import Children
from automl_tl.engine.slots import parse_slots
from automl_tl.engine.spread import Crew
from automl_tl.features.frozen import Source, pooled_rows, rows_at, store_outputs
from automl_tl.features.network import Network
from automl_tl.features.passes import Pass, compute
from automl_tl.features.store import FeatureStore
from automl_tl.features.task import OpenedSplit, prepare_task
from automl_tl.model.assemble import TransferModel, assemble, frozen_groups
from automl_tl.model.spec import Optimization, TrialSpec
from automl_tl.plugin import GroupPlan, TransferPlan
from automl_tl.report.live import Display
from automl_tl.run import Loaded, Run, _open_search, lay_out, load
from automl_tl.rundir import RunDirectory
from automl_tl.search.crew import warm_child
from automl_tl.search.search import Search, run_next
from automl_tl.search.survey import survey
from automl_tl.training.optimizers import build_optimizer

BACKBONES = {"efficientnet_lite0": "mnist", "mobilenet_v2": "mnist", "minilm_l6": "r8"}
BATCH = 32
PASS_SAMPLES = 256  # that the two passes are compared on


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A backbone with 1,000 samples of a real task."""

    loaded: Loaded
    search: Search
    split: OpenedSplit
    network: Network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=list(BACKBONES), choices=list(BACKBONES))
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=4.0, help="about so long is each cut measured")
    parser.add_argument("--device", default="cpu", help="cpu or cuda:0")
    options = parser.parse_args()
    about, started = circumstances(), time.perf_counter()
    steps: list[list[str]] = []
    others: list[list[str]] = []
    facts: dict[str, Any] = {"circumstances": about, "options": vars(options), "steps": [], "backbones": {}}
    for name in options.backbones:
        with tempfile.TemporaryDirectory() as directory:
            subject = prepare(name, options.samples, Path(directory))
            store, bare = pass_seconds(subject, name, options.device)
            for cut in range(1, len(subject.network.groups)):
                step = measure_cut(subject, name, cut, options.device, options.seconds)
                facts["steps"].append({"backbone": name, "cut": cut, **step})
                steps.append(
                    [
                        name,
                        f"{cut} {subject.network.groups[cut - 1].name}",
                        f"{step['phi']:.3f}",
                        f"{step['phi_timed']:.3f}",
                        f"{step['bound']:.2f}",
                        f"{step['bound_timed']:.2f}",
                        f"{1000 * step['without']:.1f}",
                        f"{1000 * step['with']:.1f}",
                        f"{step['faster']:.2f}",
                        f"{step['faster'] / step['bound']:.0%}",
                    ]
                )
                print(*steps[-1], flush=True)
            probe = probe_seconds(subject, Path(directory), name)
            ratio = median(a / b for a, b in zip(store, bare, strict=True))
            facts["backbones"][name] = {"pass": store, "bare_pass": bare, "pass_ratio": ratio, "probe": probe}
            others.append([name, f"{median(bare):.2f}", f"{ratio:.3f}", f"{median(probe):.3f}"])
            print(*others[-1], flush=True)
    header = ["backbone", "cut", "phi", "phi timed", "bound", "bound timed", "samples (ms)", "store (ms)", "faster by"]
    facts["seconds"] = time.perf_counter() - started
    note = f"Steps of {BATCH} samples, medians; on a GPU: " + (
        "this table" if options.device != "cpu" else "not measured"
    )
    keep("compute_once", [*header, "of bound"], steps, facts, note)
    keep(
        "compute_once_passes",
        ["backbone", "bare pass (s)", "storing it takes times as long", "linear-probe trial (s)"],
        others,
        facts,
        f"Passes of {PASS_SAMPLES} samples, trials on {options.samples}, in a slot's child process; one thread.",
    )


def prepare(name: str, samples: int, directory: Path) -> Subject:
    """Draw the task, lay everything out in `directory`, and store nothing yet but the prepared samples."""
    drawn = draw(BACKBONES[name], samples, 200)
    config = load_config(
        {"data": {"path": BACKBONES[name], "validation_fraction": 0.2}, "backbones": name, "search": {"trials": 10_000}}
    )
    task = task_from_python(drawn.x, drawn.y, config=config.data, seed=0, test=(drawn.x_test, drawn.y_test))
    story = Run(
        config=config, directory=RunDirectory(directory / "run"), display=Display(Console(quiet=True)), task=task
    )
    story.directory.make()
    loaded = load(story)
    prepared = lay_out(story, loaded)
    prepared = replace(prepared, store=FeatureStore(root=directory / "store", budget=1 << 40))
    backbone = loaded.host.backbone(name)
    prepare_task(prepared, (backbone,), lambda what, done, n: None)
    search = _open_search(story, loaded, prepared, "transferred", None)
    split = prepared.files(backbone, "train").open(backbone)
    return Subject(loaded=loaded, search=search, split=split, network=search.stored[name].network)


def pass_seconds(subject: Subject, name: str, device: str) -> tuple[list[float], list[float]]:
    """Seconds of storing all pooled outputs anew, and of a bare forward pass of the same batches."""
    torch.set_num_threads(1)
    backbone = subject.loaded.host.backbone(name)
    shape = subject.search.prepared.interface(backbone).input_shape
    groups = list(frozen_groups(backbone, shape).to(device).values())
    rows, chosen = subject.split.rows, np.arange(min(PASS_SAMPLES, len(subject.split.rows)))
    order = chosen if rows.lengths is None else chosen[np.argsort(rows.lengths[chosen], kind="stable")]
    n = len(order)

    def bare() -> None:
        with torch.inference_mode():
            for start in range(0, n, 64):
                activation = rows.batch(order[start : start + 64], device)
                for group in groups:
                    activation = group(activation)

    def stored() -> None:
        with tempfile.TemporaryDirectory() as directory:
            network = replace(subject.network, store=FeatureStore(root=Path(directory), budget=1 << 40))
            entry = network.pooled("float16")
            with entry.building():
                one = Pass(groups=groups, rows=rows, digests=subject.split.digests, pooled=entry, device=device)
                compute(one, chosen)

    return in_turns(stored, bare, repeats=5)


def in_turns(first: Callable[[], None], second: Callable[[], None], *, repeats: int) -> tuple[list[float], list[float]]:
    """Seconds of each call, in turns, after one of each that does not count."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats + 1):
        for which, call in enumerate((first, second)):
            began = time.perf_counter()
            call()
            if repeat:
                seconds[which].append(time.perf_counter() - began)
    return seconds


def measure_cut(subject: Subject, name: str, cut: int, device: str, seconds: float) -> dict[str, float]:
    """Step times from the store and from samples, in turns on the same batches."""
    torch.set_num_threads(1)
    backbone = subject.loaded.host.backbone(name)
    model = assemble(
        spec_of(subject, name, cut),
        backbone,
        subject.loaded.host.head("linear"),
        subject.search.prepared.interface(backbone),
        seed=0,
    ).to(device)
    source = Source(groups=list(model.groups.values()), device=device)
    assert store_outputs(subject.network, subject.split.samples, cut, source)
    stored = rows_at(subject.network, subject.split.samples, cut)
    assert stored is not None
    labels = torch.from_numpy(subject.split.labels).to(device)
    optimizer = build_optimizer(model, model.spec)
    generator = np.random.default_rng(0)
    model.begin_epoch(0)
    times: dict[str, list[float]] = {"with": [], "without": [], "prefix": [], "forward": []}
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(times["with"]) < 4:
        batch = similar(generator, subject.split, BATCH)
        for which, rows, start in (("with", stored, cut), ("without", subject.split.rows, 0)):
            began = time.perf_counter()
            step(model, rows.batch(batch, device), start, labels[torch.from_numpy(batch)], optimizer)
            times[which].append(time.perf_counter() - began)
        inputs = subject.split.rows.batch(batch, device)
        with torch.no_grad():
            began = time.perf_counter()
            entering = model.prefix(inputs)
            middle = time.perf_counter()
            for group in list(model.groups.values())[cut:]:
                entering = group(entering)
            times["prefix"].append(middle - began)
            times["forward"].append(time.perf_counter() - began)
    pairs = list(zip(times["without"], times["with"], strict=True))[1:]
    phi = sum(group.flop_share for group in subject.network.groups[:cut])
    phi_timed = median(a / b for a, b in zip(times["prefix"][1:], times["forward"][1:], strict=True))
    return {
        "phi": phi,
        "phi_timed": phi_timed,
        "bound": bound(phi),
        "bound_timed": bound(phi_timed),
        "without": median(a for a, _ in pairs),
        "with": median(b for _, b in pairs),
        "faster": median(a / b for a, b in pairs),
        "pairs": len(pairs),
    }


def bound(phi: float) -> float:
    """The most that not passing the prefix again can save."""
    return 1 + phi / (3 * (1 - phi))


def similar(generator: np.random.Generator, split: OpenedSplit, size: int) -> np.ndarray:
    """A random batch; of texts, one of similar lengths, as in training."""
    if split.rows.lengths is None:
        return generator.permutation(len(split.rows))[:size]
    first = int(generator.integers(0, len(split.rows) - size))
    return np.argsort(split.rows.lengths, kind="stable")[first : first + size]


def step(model: TransferModel, batch: Any, start: int, labels: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
    """One training step as `training.train` makes it."""
    optimizer.zero_grad(set_to_none=True)
    loss = nn.functional.cross_entropy(model(batch, start), labels)
    torch.autograd.backward(loss)
    nn.utils.clip_grad_norm_(
        [p for g in optimizer.param_groups for p in g["params"]], model.spec.optimization.clip_norm
    )
    optimizer.step()
    if labels.is_cuda:
        torch.cuda.synchronize()


def spec_of(subject: Subject, name: str, cut: int) -> TrialSpec:
    """Freeze up to the cut, fine-tune the rest."""
    names = [group.name for group in subject.network.groups]
    plans = [GroupPlan(group=g, action="freeze" if i < cut else "tune") for i, g in enumerate(names)]
    return TrialSpec(
        backbone=name, plan=TransferPlan(tuple(plans)), optimization=Optimization(learning_rate=1e-4, batch_size=BATCH)
    )


def probe_seconds(subject: Subject, directory: Path, name: str, *, repeats: int = 5) -> list[float]:
    """Seconds of linear-probe trials, from asking to telling, after the survey stored the features."""
    slots = parse_slots("cpu", cores=1)
    stop = threading.Event()
    with Children(slots, warm=warm_child) as children:
        crew = Crew(slots=slots, children=children)
        quiet = replace(subject.search, budget=replace(subject.search.budget, recipes=False))
        search, _ = survey(quiet, crew, stop, lambda text: None, lambda what, done, n: None)
        assert pooled_rows(search.stored[name].network, subject.split.samples, [1], "mean") is not None
        seconds = []
        for repeat in range(repeats + 1):
            search.study.enqueue_trial(PROBE)
            began = time.perf_counter()
            run_next(search, slots[0], children, stop, threading.Lock())
            if repeat:
                seconds.append(time.perf_counter() - began)
        trials: Sequence[Any] = search.study.get_trials()
        assert all(trial.user_attrs["spec"]["fit"] == "ridge" for trial in trials)
    return seconds


PROBE = {
    **{"strategy": "linear_probe", "head": "linear", "fit": "ridge", "joined_taps": 1, "pooling": "mean"},
    **{"augmentation": "none", "views": 0, "class_weight": "none"},  # changed views would be solved for as well
}

if __name__ == "__main__":
    main()
