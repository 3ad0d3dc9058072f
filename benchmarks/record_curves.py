"""Record learning curves for `schedulers.py`: random configurations of the default space, each trained to its end.

They are trained as in a search, by `train` itself, stage by stage from rung to rung, with what their frozen layer
groups put out read from the store. What is written down of each rung: the score of the validation samples, which is
what a scheduler sees; that of test samples; and the seconds from the rung before, the first ones with all it takes to
begin. Configurations of which only a head trains are left out: they are so cheap that no scheduler is asked.

All configurations of a task are judged by the same validation samples, and nothing is annealed. It takes hours on two
cores; `--slots cuda` trains on a GPU.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from results import RESULTS, circumstances
from rich.console import Console
from tasks import Drawn, draw

from automl_tl.config import load_config
from automl_tl.data import task_from_python
from automl_tl.engine.slot import Children
from automl_tl.engine.slots import Slot, parse_slots
from automl_tl.engine.supervise import supervise
from automl_tl.features.task import SplitFiles, prepare_task
from automl_tl.metrics.scores import validation_score
from automl_tl.model.plan import cut, tap
from automl_tl.model.spec import TrialSpec, spec_from_json
from automl_tl.report.live import Display
from automl_tl.run import Run, lay_out, load, space_context, stored_networks
from automl_tl.rundir import RunDirectory
from automl_tl.search.crew import warm_child
from automl_tl.search.order import climbs_rungs, trial_seed
from automl_tl.search.plugins import host_in_child
from automl_tl.search.schedule import rungs
from automl_tl.search.space import SpaceContext, default_space, suggest_spec
from automl_tl.search.trial import TrialOrder, prepare, training_data
from automl_tl.training.fastest import fastest, precision_memory
from automl_tl.training.train import Labelled, Stage, predict_probabilities, train

METRIC = "f1_macro"
IMAGE_SIZE = 64
WORDS = 24  # of a text
FEWEST = 5  # training samples of a class that is kept


@dataclass(frozen=True)
class Setting:
    """What is recorded of a task."""

    backbones: tuple[str, ...]
    samples: int  # to train and to validate by
    test: int


SETTINGS = {
    "digits": Setting(("efficientnet_lite0", "mobilenet_v2"), 600, 1000),
    "fashion": Setting(("efficientnet_lite0", "mobilenet_v2"), 600, 1000),
    "r8": Setting(("minilm_l6",), 300, 500),
}


@dataclass(frozen=True)
class Recording:
    """What is about to be trained: the order of each configuration, and the samples that test it."""

    specs: tuple[TrialSpec, ...]
    orders: tuple[TrialOrder, ...]
    tests: tuple[SplitFiles, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--configurations", type=int, default=60, help="of each task")
    parser.add_argument("--samples", type=int, help="fewer training samples than a task has by default")
    parser.add_argument("--epochs", type=int, default=27)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slots", default="cpu*2")
    parser.add_argument("--out", type=Path, default=RESULTS / "curves")
    options = parser.parse_args()
    about = circumstances()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    slots = parse_slots(options.slots)
    with Children(slots, warm=warm_child) as children:
        for name in options.tasks:
            with tempfile.TemporaryDirectory() as directory:
                recording = lay_open(name, Path(directory), options, slots[0].device)
                found = record_all(recording, slots, children, rungs(options.epochs))
            facts = {
                "task": name,
                "metric": METRIC,
                "rungs": rungs(options.epochs),
                "slots": [slot.name for slot in slots],
                "circumstances": about,
            }
            write(options.out / f"{name}.json", facts, found)


def lay_open(name: str, directory: Path, options: argparse.Namespace, device: str) -> Recording:
    """Prepare a task, its test samples too, and draw the configurations that are to be trained on it."""
    setting = SETTINGS[name]
    drawn = shortened(without_rare(draw(name, options.samples or setting.samples, setting.test, seed=options.seed)))
    values = {
        "data": {"path": name, "image_size": IMAGE_SIZE},
        "backbones": list(setting.backbones),
        "search": {"max_epochs": options.epochs, "metric": METRIC},
        "cache": {"directory": "run"},
        "seed": options.seed,
    }
    config = load_config(values)
    task = task_from_python(drawn.x, drawn.y, seed=options.seed, test=(drawn.x_test, drawn.y_test), config=config.data)
    story = Run(config=config, directory=RunDirectory(directory), display=Display(Console(quiet=True)), task=task)
    loaded = load(story)
    prepared = lay_out(story, loaded)
    backbones = tuple(loaded.host.backbone(name) for name in setting.backbones)
    prepare_task(prepared, backbones, lambda what, done, n: None)
    test = task.test.open()
    prepared.note("test", test)
    context = space_context(story, loaded, prepared, "transferred", joint=False)
    stored = stored_networks(story, loaded, prepared, context, None)
    files: dict[str, dict[str, SplitFiles]] = {}
    for backbone in backbones:
        prepared.prepare(backbone, "test", test, lambda what, done, n: None)
        files[backbone.name] = {part: prepared.files(backbone, part) for part in ("train", "validation", "test")}
    specs, sitting = random_specs(context, options.configurations, options.seed), time.time()
    orders = [
        TrialOrder(
            database=directory / "no-study.db",
            study="",
            trial_id=None,
            directory=directory / spec.digest(),
            sources=loaded.host.sources,
            versions=loaded.host.versions(),
            spec=spec.to_json(),
            interface=prepared.interface(loaded.host.backbone(spec.backbone)),
            train=files[spec.backbone]["train"],
            judged=files[spec.backbone]["validation"],
            kind=task.kind,
            metric=METRIC,
            source=None,
            seed=trial_seed(options.seed, spec),
            device=device,
            sitting=sitting,
            stored=stored.get(spec.backbone),
        )
        for spec in specs
    ]
    return Recording(tuple(specs), tuple(orders), tuple(files[spec.backbone]["test"] for spec in specs))


def without_rare(drawn: Drawn) -> Drawn:
    """Without the classes that have too few training samples to be split."""
    classes, counts = np.unique(drawn.y, return_counts=True)
    train, test = (np.isin(y, classes[counts >= FEWEST]) for y in (drawn.y, drawn.y_test))
    return Drawn(drawn.x[train], drawn.y[train], drawn.x_test[test], drawn.y_test[test])


def shortened(drawn: Drawn) -> Drawn:
    """With the first words of each text only; whole ones would take many times as long."""
    if not isinstance(drawn.x[0], str):
        return drawn
    x, x_test = ([" ".join(text.split()[:WORDS]) for text in texts] for texts in (drawn.x, drawn.x_test))
    return Drawn(x, drawn.y, x_test, drawn.y_test)


def random_specs(context: SpaceContext, number: int, seed: int) -> list[TrialSpec]:
    """So many different ones that are trained rung by rung."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    found: dict[str, TrialSpec] = {}
    while len(found) < number:
        spec = suggest_spec(default_space, study.ask(), context)
        if climbs_rungs(spec):
            found[spec.digest()] = spec
    return list(found.values())


def record_all(
    recording: Recording, slots: Sequence[Slot], children: Children, epochs: tuple[int, ...]
) -> list[dict[str, Any]]:
    """Train all configurations, one on each slot at a time; what was written down of them, in their order."""
    waiting, found, taking = list(range(len(recording.orders))), dict[int, dict[str, Any]](), threading.Lock()

    def ticket(slot: Slot) -> bool:
        with taking:
            if not waiting:
                return False
            number = waiting.pop(0)
        recorded = children.run(slot, record, recording.orders[number], recording.tests[number], epochs)
        found[number] = {"spec": in_short(recording.specs[number]), **recorded}
        print(f"{len(found)} of {len(recording.orders)}: {recorded['scores']}", flush=True)
        return True

    supervise(slots, ticket, stop=threading.Event(), on_interrupt=children.stop)
    return [found[number] for number in sorted(found)]


def record(order: TrialOrder, test: SplitFiles, epochs: tuple[int, ...]) -> dict[str, Any]:
    """In a child: train a configuration to its end and write down scores and seconds at each rung."""
    began = time.perf_counter()
    spec, host, device = spec_from_json(order.spec), host_in_child(order.sources, order.sitting), order.device
    backbone = host.backbone(spec.backbone)
    ready = prepare(order, spec, host, backbone, device)
    data = training_data(order, ready)
    precision = fastest(
        ready.model, data.train, spec, device, precision_memory(), micro_batch=spec.optimization.batch_size
    )
    opened, resumed = test.open(backbone), None
    found: dict[str, Any] = {"scores": [], "test": [], "seconds": [], "curve": [], "ending": "stage"}
    for until in epochs:
        stage = Stage(until=until)
        outcome = train(
            ready.model, data, spec, device=device, seed=order.seed, stage=stage, resumed=resumed, precision=precision
        )
        seconds = time.perf_counter() - began
        found["ending"] = outcome.ending
        if outcome.score is None:
            break
        rows, passed = ready.reader.frozen(opened)
        labelled = Labelled(rows=rows, labels=opened.labels, start=passed)
        said = predict_probabilities(ready.model, labelled, order.kind, device)
        found["scores"].append(round(outcome.score, 5))
        found["test"].append(round(validation_score(opened.labels, said, order.kind, order.metric), 5))
        found["seconds"].append(round(seconds, 4))
        found["curve"] = [round(score, 5) for score in outcome.curve]
        resumed = outcome.state
        if resumed is None:
            break
        began = time.perf_counter()
    return found


def in_short(spec: TrialSpec) -> dict[str, Any]:
    """What a reader of the curves may want to know of a configuration."""
    return {
        "backbone": spec.backbone,
        "strategy": spec.strategy,
        "tap": tap(spec.plan) + 1,
        "cut": cut(spec.plan),
        "init_head": spec.init_head,
        "optimizer": spec.optimization.optimizer,
        "learning_rate": float(f"{spec.optimization.learning_rate:.3g}"),
        "batch_size": spec.optimization.batch_size,
    }


def write(path: Path, facts: dict[str, Any], configurations: Sequence[dict[str, Any]]) -> None:
    """One configuration a line, so that a change of the file can be read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    *head, _ = json.dumps(facts, indent=1).splitlines()
    lines = ",\n".join(f"  {json.dumps(each)}" for each in configurations)
    path.write_text("\n".join(head) + f',\n "configurations": [\n{lines}\n ]\n}}\n')
    print(f"wrote {path}", flush=True)


if __name__ == "__main__":
    main()
