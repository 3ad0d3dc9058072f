"""Record learning curves for `schedulers.py`: configurations that a search would propose, each trained to its end.

They are proposed by the search itself (recipes first, then some like them and some at random: its sampler is told of no
score) and trained by `train` itself, stage by stage from rung to rung, with what their frozen layer groups put out read
from the store. What is written down of each rung: the score of the samples that were left out, made comparable as in a
search, which is what a scheduler sees; that of many test samples; and seconds. Configurations of which only a head
trains are left out: they are so cheap that no scheduler is asked.

Seconds are those of one processor core that the trial's process used, so that a busy machine changes them little; the
first ones are with all it takes to begin. What it takes to begin again, from the files, is written down by itself. What
is done is kept after each configuration: what a killed recording lacks, the next one adds.
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from results import circumstances
from rich.console import Console
from schedulers import CURVES, read_curves
from tasks import TASKS, Drawn, draw, keel

from automl_tl.config import load_config
from automl_tl.data import task_from_python
from automl_tl.engine.slot import Children
from automl_tl.engine.slots import parse_slots
from automl_tl.engine.spread import Crew
from automl_tl.features.task import SplitFiles, prepare_task
from automl_tl.metrics.scores import validation_score
from automl_tl.model.checkpoint import save_tensors
from automl_tl.model.plan import cut, tap
from automl_tl.model.spec import TrialSpec, spec_from_json
from automl_tl.report.live import Display
from automl_tl.run import TRANSFERRED, Run, _open_search, _train_source, lay_out, load
from automl_tl.rundir import RunDirectory
from automl_tl.search.crew import warm_child
from automl_tl.search.judging import Said, comparable_score, divide
from automl_tl.search.order import climbs_rungs, training_order, trial_seed
from automl_tl.search.plugins import host_in_child
from automl_tl.search.proposals import enqueue_recipes
from automl_tl.search.schedule import rungs
from automl_tl.search.search import Search, said_of, take
from automl_tl.search.study import completed, waiting
from automl_tl.search.survey import survey
from automl_tl.search.trial import CHECKPOINT, STATE, TrialOrder, _source_task, prepare, training_data
from automl_tl.training.fastest import fastest, precision_memory
from automl_tl.training.state import load_state, save_state
from automl_tl.training.train import Labelled, Stage, predict_probabilities, train

METRIC = "f1_macro"
MOST_SOURCE = 6000  # samples that train a source model
FEWEST = 5  # training samples of a class that is kept


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is recorded of a task: small enough for one core, real all the same."""

    data: str  # one of TASKS, or of WHOLE
    backbone: str
    samples: int  # to learn from and to judge by
    test: int
    epochs: int = 20  # a run's default
    configurations: int = 60
    batch_sizes: tuple[int, ...] = (16, 32)  # an epoch has 30 batches at least
    image_size: int | None = None
    words: int | None = None  # of a text
    source_classes: tuple[str, ...] = ()  # whose samples train the source model; the target task has the other classes


FIRST_HALF = ("0", "1", "2", "3", "4")
SETTINGS = {
    "pen_digits_5_9": Setting(
        data="pen_digits",
        backbone="source_mlp",
        samples=600,
        test=3000,
        source_classes=FIRST_HALF,
    ),
    "letters_n_z": Setting(
        data="letters",
        backbone="source_mlp",
        samples=600,
        test=3000,
        source_classes=tuple(str(number) for number in range(13)),
    ),
    "mnist_5_9": Setting(
        data="mnist",
        backbone="source_cnn",
        samples=600,
        test=1500,
        image_size=16,
        source_classes=FIRST_HALF,
    ),
    "fashion_5_9": Setting(
        data="fashion",
        backbone="source_cnn",
        samples=600,
        test=1500,
        image_size=16,
        source_classes=FIRST_HALF,
    ),
    "emoji": Setting(
        data="emoji", backbone="mobilenet_v2", samples=600, test=1000, epochs=9, configurations=40, image_size=32
    ),
    "fashion": Setting(
        data="fashion",
        backbone="efficientnet_lite0",
        samples=600,
        test=1000,
        epochs=9,
        configurations=40,
        image_size=32,
    ),
    "r8": Setting(
        data="r8",
        backbone="minilm_l6",
        samples=600,
        test=500,
        epochs=9,
        configurations=32,
        words=8,
        batch_sizes=(16,),
    ),
}


@dataclass(frozen=True)
class Ready:
    """A search that knows its taps, whose first probe is done, and the samples that test."""

    search: Search
    crew: Crew
    test: SplitFiles


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--configurations", type=int, help="fewer or more than a task has by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=CURVES)
    options = parser.parse_args()
    about = circumstances()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    slots = parse_slots("cpu", cores=1)  # one thread
    for name in options.tasks:
        setting = SETTINGS[name]
        if options.configurations:
            setting = replace(setting, configurations=options.configurations)
        with tempfile.TemporaryDirectory() as directory, Children(slots, warm=warm_child) as children:
            ready = lay_open(setting, Path(directory), Crew(slots=slots, children=children), options.seed)
            facts = {
                "metric": METRIC,
                "rungs": rungs(setting.epochs),
                "setting": asdict(setting),
                "seed": options.seed,
                "circumstances": about,
                "probe": completed(ready.search.study)[0].value,
            }
            record_all(name, facts, ready, setting, options.out)


def lay_open(setting: Setting, directory: Path, crew: Crew, seed: int) -> Ready:
    """Do what a run does before its search: train the source model, prepare, score the taps, solve for a first head."""
    drawn, source = draw_task(setting, seed)
    values: dict[str, Any] = {
        "data": {"path": setting.data, "image_size": setting.image_size},
        "backbones": setting.backbone,
        "space": {"batch_size": list(setting.batch_sizes)},
        "search": {"max_epochs": setting.epochs, "metric": METRIC, "trials": 1000},
        "cache": {"directory": "run"},
        "seed": seed,
    }
    if source is not None:
        np.savez(directory / "source.npz", x=source[0], y=source[1])
        data = {"path": str(directory / "source.npz"), "image_size": setting.image_size}
        values["source"] = {"data": data, "backbone": setting.backbone}
    config = load_config(values)
    task = task_from_python(drawn.x, drawn.y, seed=seed, test=(drawn.x_test, drawn.y_test), config=config.data)
    run_directory = RunDirectory(directory / "run")
    run_directory.make()
    story = Run(config=config, directory=run_directory, display=Display(Console(quiet=True)), task=task)
    loaded = load(story)
    model, encoder = None, None
    if config.source is not None and loaded.source_task is not None:
        model, encoder = _train_source(config.source, loaded.source_task, loaded, story, crew)
    prepared = lay_out(story, loaded, encoder=encoder)
    backbone = loaded.host.backbone(setting.backbone)
    prepare_task(prepared, (backbone,), lambda what, done, n: None)
    test = task.test.open()
    prepared.note("test", test)
    files = prepared.prepare(backbone, "test", test, lambda what, done, n: None)
    search = _open_search(story, loaded, prepared, TRANSFERRED, model)
    search, _ = survey(
        search, crew, threading.Event(), lambda said: print(said, flush=True), lambda what, done, n: None
    )
    return Ready(search, crew, files)


def tell(said: str) -> None:
    """Print at once, though it may go to a file."""
    print(said, flush=True)


def draw_task(setting: Setting, seed: int) -> tuple[Drawn, tuple[Any, Any] | None]:
    """The samples of the target task, and those of its source task where it has one."""
    if not setting.source_classes:
        return shortened(
            without_rare(draw(setting.data, setting.samples, setting.test, seed=seed)), setting.words
        ), None
    x, y = WHOLE[setting.data]() if setting.data in WHOLE else TASKS[setting.data]()[:2]
    source = np.isin(y, setting.source_classes)
    order = np.random.default_rng(seed).permutation(np.flatnonzero(~source))
    train, test = np.split(order[: setting.samples + setting.test], [setting.samples])
    chosen = np.sort(np.random.default_rng(seed).permutation(np.flatnonzero(source))[:MOST_SOURCE])
    return Drawn(x[train], y[train], x[test], y[test]), (x[chosen], y[chosen])


WHOLE = {"pen_digits": partial(keel, "penbased"), "letters": partial(keel, "letter")}  # samples of all classes


def without_rare(drawn: Drawn) -> Drawn:
    """Without the classes that have too few training samples to be split."""
    classes, counts = np.unique(drawn.y, return_counts=True)
    train, test = (np.isin(y, classes[counts >= FEWEST]) for y in (drawn.y, drawn.y_test))
    return Drawn(drawn.x[train], drawn.y[train], drawn.x_test[test], drawn.y_test[test])


def shortened(drawn: Drawn, words: int | None) -> Drawn:
    """With the first words of each text only; whole ones would take many times as long."""
    if words is None:
        return drawn
    x, x_test = ([" ".join(text.split()[:words]) for text in texts] for texts in (drawn.x, drawn.x_test))
    return Drawn(x, drawn.y, x_test, drawn.y_test)


def proposed(search: Search, number: int) -> list[tuple[TrialSpec, str]]:
    """So many different ones that are trained rung by rung, as they are proposed, and how each came about."""
    search = enqueue_recipes(search)
    found: dict[str, tuple[TrialSpec, str]] = {}
    while len(found) < number:
        search.study.sampler = optuna.samplers.RandomSampler(seed=len(search.study.trials))
        trial, spec = take(search, waiting(search.study), 0)
        if climbs_rungs(spec):
            told = trial.user_attrs
            kind = "recipe" if "recipe" in told else "like a recipe" if "like_a_recipe" in told else "random"
            found.setdefault(spec.digest(), (spec, kind))
    return list(found.values())


def record_all(name: str, facts: dict[str, Any], ready: Ready, setting: Setting, path: Path) -> None:
    """Train all configurations that are not recorded yet, one after another, and write down each."""
    kept = read_curves(path)
    before = kept.get(name, {})
    if before and conditions(before) != conditions(json.loads(json.dumps(facts))):
        raise SystemExit(f"{path} has other curves of {name}: give another --out, or delete it")
    known = {each["digest"]: each for each in before.get("configurations", [])}
    search = ready.search
    yardstick = said_of(search, completed(search.study)[0].number)
    labels, kind = search.prepared.development().labels, search.prepared.task.kind
    specs, fresh = proposed(search, setting.configurations), True
    for spec, origin in specs:
        if spec.digest() in known:
            continue
        order, rows = order_of(search, spec, ready.crew)
        if fresh:  # a child's first training is slow: it imports
            ready.crew.children.run(ready.crew.slots[0], record, order, ready.test, (1,))
            fresh = False
        found = ready.crew.children.run(ready.crew.slots[0], record, order, ready.test, rungs(setting.epochs))
        found["scores"] = [
            round(comparable_score(score, Said(rows, said), yardstick, labels, kind, METRIC), 5)
            for score, said in zip(found["scores"], found.pop("said"), strict=True)
        ]
        known[spec.digest()] = {"digest": spec.digest(), "kind": origin, "spec": in_short(spec), **found}
        recorded = [known[each.digest()] for each, _ in specs if each.digest() in known]
        write_curves(path, {**kept, name: {**before, **facts, "configurations": recorded}})
        tell(f"{name} {len(recorded)} of {len(specs)}: {known[spec.digest()]}")


def conditions(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What all curves of a task must share."""
    setting = {key: value for key, value in facts["setting"].items() if key != "configurations"}
    return {**setting, "metric": facts["metric"], "seed": facts["seed"]}


def order_of(search: Search, spec: TrialSpec, crew: Crew) -> tuple[TrialOrder, np.ndarray]:
    """What a search would tell a child of a new configuration, and the samples that judge it, drawn for it alone."""
    seed = trial_seed(search.seed, spec)
    learn, judge = divide(search.prepared.development(), seed, multilabel=False)
    directory = search.directory / spec.digest()
    return training_order(search, spec, crew.slots[0], directory=directory, learn=learn, judge=judge, seed=seed), judge


def record(order: TrialOrder, test: SplitFiles, epochs: tuple[int, ...]) -> dict[str, Any]:
    """In a child: train a configuration to its end and write down scores and seconds at each rung."""
    spec, host, device = spec_from_json(order.spec), host_in_child(order.sources, order.sitting), order.device
    backbone = host.backbone(spec.backbone)
    # Once beforehand: in a search, others have stored what frozen groups put out, and found out what is fast.
    before = prepare(order, spec, host, backbone, device)
    rows = before.inputs.train
    precision = fastest(before.model, rows, spec, device, precision_memory(), micro_batch=spec.optimization.batch_size)

    began = time.process_time()
    ready = prepare(order, spec, host, backbone, device)
    again = time.process_time() - began
    data = training_data(order, ready, _source_task(order, spec, host, backbone, ready.model))
    opened, resumed = test.open(backbone), None
    found: dict[str, Any] = {"scores": [], "test": [], "seconds": [], "said": []}
    for until in epochs:
        outcome = train(
            ready.model,
            data,
            spec,
            device=device,
            seed=order.seed,
            stage=Stage(until=until),
            resumed=resumed,
            precision=precision,
        )
        seconds = time.process_time() - began
        found["ending"], resumed = outcome.ending, outcome.state
        if outcome.score is None or outcome.validation is None:
            break
        tested, passed = ready.reader.frozen(opened)
        labelled = Labelled(rows=tested, labels=opened.labels, start=passed)
        said = predict_probabilities(ready.model, labelled, order.kind, device)
        found["scores"].append(outcome.score)
        found["said"].append(outcome.validation)
        found["test"].append(round(validation_score(opened.labels, said, order.kind, order.metric), 5))
        found["seconds"].append(round(seconds, 4))
        if resumed is None:
            break
        if until == epochs[0]:
            began = time.process_time()
            order.directory.mkdir(parents=True, exist_ok=True)
            save_tensors(dict(resumed.deployed), order.directory / CHECKPOINT)
            save_state(resumed, order.directory / STATE)
            load_state(order.directory / STATE)
            found["again"] = round(again + time.process_time() - began, 4)
        began = time.process_time()
    return found


def in_short(spec: TrialSpec) -> dict[str, Any]:
    """What a reader of the curves may want to know of a configuration."""
    return {
        "strategy": spec.strategy,
        "tap": tap(spec.plan) + 1,
        "cut": cut(spec.plan),
        "init_head": spec.init_head,
        "optimizer": spec.optimization.optimizer,
        "learning_rate": float(f"{spec.optimization.learning_rate:.3g}"),
        "batch_size": spec.optimization.batch_size,
    }


def write_curves(path: Path, found: Mapping[str, Any]) -> None:
    """Keep all that was recorded; a crash leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(gzip.compress(json.dumps(found).encode(), mtime=0))
    partial.replace(path)


if __name__ == "__main__":
    main()
