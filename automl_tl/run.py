"""The story of one run: load, (train the source model,) prepare, search, finish, report.

Reads top to bottom. Every step before the search is repeated by a resumed run and finds its work done.
"""

from __future__ import annotations

import threading
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
from rich.console import Console

from automl_tl.config import RunConfig, SourceConfig
from automl_tl.data import TableEncoder, Task, load_task
from automl_tl.engine.lock import RunLock
from automl_tl.engine.slots import Slot, parse_slots
from automl_tl.engine.spread import Crew
from automl_tl.errors import ConfigError
from automl_tl.features.eviction import GIB
from automl_tl.features.network import known_groups
from automl_tl.features.store import FeatureStore, default_budget, feature_root
from automl_tl.features.task import PreparedTask, lay_out_task, leave_out_known, prepare_task
from automl_tl.finish.finish import finish
from automl_tl.finish.rivals import learn_rivals
from automl_tl.finish.settle import settle
from automl_tl.host import Item, PluginHost, PluginSources, load_host
from automl_tl.model.ensemble import Member
from automl_tl.plugin import Backbone
from automl_tl.report.live import Display
from automl_tl.report.preview import print_config, print_space, print_strategies
from automl_tl.report.result import result_of
from automl_tl.rundir import RunDirectory
from automl_tl.search.crew import open_crew
from automl_tl.search.inputs import Stored, stored_network
from automl_tl.search.parameters import check_overrides
from automl_tl.search.part import SHARE, part_of, seconds_to_prepare_and_pass, share_in_time, surely_in_time
from automl_tl.search.reserve import leave_test_its_time
from automl_tl.search.search import Budget, Search, run_search, start, start_clock
from automl_tl.search.selection import Selection, as_begun, resolve_names, select_plugins
from automl_tl.search.source import SourceModel, source_model
from automl_tl.search.space import Space, SpaceContext, default_space
from automl_tl.search.status import status_of
from automl_tl.search.study import open_storage, open_study, reap
from automl_tl.search.survey import survey
from automl_tl.search.unlabeled import pass_unlabeled, what_they_gave, with_unlabeled
from automl_tl.serve.model import save_model

TRANSFERRED, FROM_RANDOM = "transferred", "from_random"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run as it goes on: what was asked for, where it lies, and who watches."""

    config: RunConfig
    directory: RunDirectory
    display: Display
    base: Path | None = None  # folder of relative paths
    plugins: tuple[Item, ...] = ()  # passed in Python
    space: Space = default_space
    task: Task | None = None  # given in Python; None: loaded from the configuration
    crew: Crew | None = None  # whose children are ready already; None: one for this run alone


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A run with its plugins found, its names resolved and its task split."""

    host: PluginHost
    task: Task
    selection: Selection
    source_task: Task | None


def run(story: Run) -> dict[str, Any]:
    """Carry a run out, or go on with it, and return its result, which also lies in `result.json`.

    Raises
    ------
    AutomlTlError
        With a message that says what to do; whatever was finished is kept.
    KeyboardInterrupt
        After everything that was done has been kept.
    """
    began = time.time()
    with crew_of(story) as crew, story.display:
        loaded = load(story)
        if story.config.space:
            first_context(story, loaded)
        story.directory.make()
        with RunLock(story.directory.lock):
            return _run(story, loaded, crew, began)


def _run(story: Run, loaded: Loaded, crew: Crew, began: float) -> dict[str, Any]:
    """The run itself, under its lock: everything from here on is kept."""
    config, directory, display, stop = story.config, story.directory, story.display, threading.Event()
    device = crew.slots[0].host_device
    with directory.seconds("load", began=began):
        _introduce(loaded, crew.slots, display)
        directory.write_config(config, story.base)
        directory.write_json(directory.path / "plugins.json", loaded.host.versions())
        directory.write_json(directory.selection, loaded.selection.names())

    source, encoder = None, None
    if config.source is not None and loaded.source_task is not None:
        with directory.seconds("source"):
            source, encoder = _train_source(config.source, loaded.source_task, loaded, story, crew)
    with directory.seconds("prepare"):
        loaded = in_time(story, loaded, crew, began)
        prepared = lay_out(story, loaded, encoder=encoder)
        prepare_task(prepared, _selected(loaded), display.progress, display.warn)
        search = _open_search(story, loaded, prepared, TRANSFERRED, source)
        from_random = _open_search(story, loaded, prepared, FROM_RANDOM, None) if source is not None else None

    with directory.seconds("search"):
        search = _search(search, crew, stop, display, began if source is None else None)
    with directory.seconds("settle"):
        final = settle(search, config.finish, crew, device, display.say, display.progress)
    rival = None
    if from_random is not None:
        with directory.seconds("search_from_random"):
            from_random = _search(from_random, crew, stop, display)
            rival = from_random, settle(from_random, config.finish, crew, device, display.say, display.progress)

    members = [Member(model=member.model, weight=member.weight) for member in final.members]
    save_model(directory.model, members, loaded.task, prepared.formats, loaded.host, adjustment=final.adjustment)
    with directory.seconds("compare"):
        rivals = learn_rivals(search, final, rival, config.finish.refits, crew, device, display.say, display.progress)
    opened = directory.count_opening() if len(loaded.task.test) else 0
    if opened:
        display.say(f"opening the test split{f' again: time number {opened}' if opened > 1 else ''}")
    with directory.seconds("finish"):
        finished = finish(search, final, rivals, rival, device, tick=display.progress)
    result = result_of(search, from_random, finished, source, crew.slots, opened, directory.spent())
    directory.write_json(directory.result, result)
    display.result(result, directory.path)
    return result


def _search(search: Search, crew: Crew, stop: threading.Event, display: Display, began: float | None = None) -> Search:
    """Score what can be transferred, then search until the budget is spent, which counts from `began`, None: now."""
    search = start(search, len(crew.slots), began)
    display.begin(search, crew.slots)
    search, _ = survey(search, crew, stop, display.say, display.progress)
    search = leave_test_its_time(search)
    search = pass_unlabeled(search, crew, display.say, display.progress)
    run_search(search, crew.slots, crew.children, stop, partial(_show, search, display))
    display.end(status_of(search))
    if said := what_they_gave(search):
        display.say(said)
    return search


def crew_of(story: Run) -> AbstractContextManager[Crew]:
    """The crew that a run was given, or one of its own that ends with it."""
    return open_crew(story.config.slots) if story.crew is None else nullcontext(story.crew)


def load(story: Run) -> Loaded:
    """Find the plugins, resolve every name, load and split the tasks; nothing is written."""
    config = story.config
    host = load_host(
        PluginSources(
            dirs=tuple(_existing(path, story.base) for path in config.plugins.dirs),
            disabled=config.plugins.disabled,
            objects=story.plugins,
        )
    )
    resolve_names(config, host)
    for record in host.broken():
        story.display.warn(f"plugin left out: {record}")
    task = leave_out_known(story.task or load_task(config.data, seed=config.seed, base=story.base))
    if config.search.metric == "f1_binary" and task.kind != "binary":
        raise ConfigError(
            f"search.metric: f1_binary scores one of two classes, but task {task.name!r} has {len(task.classes)}; "
            "choose f1_macro, f1_micro or f1_weighted"
        )
    source_task = load_task(config.source.data, seed=config.seed, base=story.base) if config.source else None
    begun = story.directory.read_json(story.directory.selection) if story.directory.selection.exists() else None
    selection = select_plugins(as_begun(config, begun), host, task.modality)
    return Loaded(host=host, task=task, selection=selection, source_task=source_task)


def in_time(story: Run, loaded: Loaded, crew: Crew, began: float) -> Loaded:
    """The run with as many of its samples as there is time for; a resumed one has those that it began with."""
    path, task = story.directory.part, loaded.task
    if not path.exists():
        story.directory.write_json(path, {"share": _share_in_time(story, loaded, crew, began)})
    share = story.directory.read_json(path)["share"]
    if share == 1:
        return loaded
    part = part_of(task, share, seed=story.config.seed)
    n = len(part.train) + len(part.validation)
    story.display.say(
        f"{n:,} of {n + part.left_out:,} development samples are learnt from: a network would pass all of them for too "
        "much of the time limit; a new run with a longer one takes more"
    )
    return replace(loaded, task=part)


def _share_in_time(story: Run, loaded: Loaded, crew: Crew, began: float) -> float:
    """The share of the samples that the smallest transferred backbone passes within its share of the time limit."""
    limit, begun = story.config.search.time_limit, story.directory.database.exists()
    if limit is None or begun or story.config.source or surely_in_time(loaded.task, len(crew.slots), limit):
        return 1.0
    prepared = lay_out(story, loaded)
    context = space_context(story, loaded, prepared, "transferred", joint=False)
    stored = stored_networks(story, loaded, prepared, context, None)
    if not stored:
        return 1.0
    name = min(stored, key=lambda name: sum(group.parameters for group in context.backbones[name]))
    seconds = seconds_to_prepare_and_pass(
        loaded.host,
        loaded.host.backbone(name),
        stored[name],
        prepared,
        crew,
        story.display.progress,
        sitting=began,
    )
    return share_in_time(loaded.task, seconds, SHARE * limit - (time.time() - began))


def space_context(
    story: Run, loaded: Loaded, prepared: PreparedTask, weights: Literal["transferred", "random"], joint: bool
) -> SpaceContext:
    """The facts that the search space is made of."""
    labels = loaded.task.train.labels
    sizes = np.bincount(labels) if labels.ndim == 1 else labels.sum(0)
    backbones = {name: loaded.host.backbone(name) for name in loaded.selection.backbones}
    return SpaceContext(
        host=loaded.host,
        backbones={
            name: known_groups(loaded.host, backbone, prepared.interface(backbone).input_shape)
            for name, backbone in backbones.items()
        },
        heads=loaded.selection.heads,
        strategies=loaded.selection.strategies,
        modality=loaded.task.modality,
        n_train=len(labels),
        n_classes=loaded.task.n_outputs,
        imbalance=float(sizes.max() / max(1, sizes.min())),
        max_epochs=story.config.search.max_epochs,
        weights=weights,
        joint_with=story.config.source.backbone if story.config.source and joint else None,
        overrides=story.config.space,
    )


def first_context(story: Run, loaded: Loaded) -> SpaceContext:
    """The facts of the space before any work is done; raises ConfigError when the user's `space:` does not fit them."""
    context = space_context(story, loaded, lay_out(story, loaded), "transferred", joint=story.config.source is not None)
    context = with_unlabeled(context, loaded.task)
    check_overrides(story.space, context)
    return context


def lay_out(story: Run, loaded: Loaded, *, encoder: TableEncoder | None = None) -> PreparedTask:
    """Decide how the selected backbones see the target task; nothing is written."""
    return lay_out_task(
        loaded.task,
        _selected(loaded),
        story.directory.features / "target",
        feature_store(story),
        image_size=story.config.data.image_size,
        encoder=encoder,
    )


def feature_store(story: Run) -> FeatureStore:
    """Where outputs of frozen layer groups are kept."""
    cache = story.config.cache
    if cache.directory == "user":
        root = feature_root()
    elif cache.directory == "run":
        root = story.directory.features / "store"
    else:
        root = _existing(Path(cache.directory).expanduser(), story.base)
    budget = default_budget(root) if cache.budget_gib is None else int(cache.budget_gib * GIB)
    return FeatureStore(root=root, budget=budget)


def stored_networks(
    story: Run, loaded: Loaded, prepared: PreparedTask, context: SpaceContext, source: SourceModel | None
) -> dict[str, Stored]:
    """The backbones whose transferred weights all trials share, so that their frozen outputs can be stored."""
    found = {}
    for name in context.backbones:
        if context.weights_of(name) == "transferred":
            backbone = loaded.host.backbone(name)
            from_source = source.order.checkpoint if source is not None and source.backbone == name else None
            weights = from_source or (backbone.weights.find() if backbone.weights else None)
            found[name] = stored_network(
                loaded.host, backbone, prepared, context.backbones[name], weights, story.config.cache.device_share
            )
            found[name] = replace(found[name], source_weights=from_source)
    return found


def _selected(loaded: Loaded) -> tuple[Backbone, ...]:
    return tuple(loaded.host.backbone(name) for name in loaded.selection.backbones)


def _train_source(
    config: SourceConfig, task: Task, loaded: Loaded, story: Run, crew: Crew
) -> tuple[SourceModel, TableEncoder | None]:
    """The source model, trained or reused, and the encoder of its tables: the target's rows must look like its own."""
    backbone = loaded.host.backbone(config.backbone)
    directory = story.directory.features / "source"
    prepared = lay_out_task(task, (backbone,), directory, feature_store(story), image_size=config.data.image_size)
    prepare_task(prepared, (backbone,), story.display.progress, story.display.warn)
    model = source_model(
        config,
        loaded.host,
        prepared,
        story.directory.path / "source",
        crew.slots[0],
        crew.children,
        seed=story.config.seed,
        tell=story.display.say,
    )
    story.display.source(model)
    return model, prepared.formats[backbone.name].encoder


def _open_search(story: Run, loaded: Loaded, prepared: PreparedTask, name: str, source: SourceModel | None) -> Search:
    """Open or create one study of the run and put back what a killed process left running."""
    config = story.config
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = open_study(
        open_storage(story.directory.database),
        name,
        seed=config.seed,
        hyperband=config.search.max_epochs if config.search.chosen_scheduler == "hyperband" else None,
    )
    reap(study)
    limit = config.search.time_limit
    weights: Literal["transferred", "random"] = "random" if name == FROM_RANDOM else "transferred"
    context = space_context(story, loaded, prepared, weights, joint=source is not None)
    return Search(
        study=study,
        database=story.directory.database,
        directory=story.directory.path / ("trials" if name == TRANSFERRED else f"trials-{name}"),
        host=loaded.host,
        context=context,
        space=story.space,
        prepared=prepared,
        metric=config.search.metric,
        budget=Budget(
            trials=config.search.trials,
            seconds=limit / 2 if limit is not None and config.source is not None else limit,  # two searches share it
            max_epochs=config.search.max_epochs,
            scheduler=config.search.chosen_scheduler,
            recipes=config.search.recipes,
            finish=config.finish,
            keep_checkpoints=config.search.keep_checkpoints,
        ),
        seed=config.seed,
        clock=start_clock(study),
        source=source.order if source else None,
        stored=stored_networks(story, loaded, prepared, context, source),
    )


def _show(search: Search, display: Display) -> None:
    display.tick(status_of(search))


def _introduce(loaded: Loaded, slots: tuple[Slot, ...], display: Display) -> None:
    for note in (*loaded.task.notes, *loaded.selection.notes):
        display.say(note)
    task = loaded.task
    if task.validation_given:
        sizes = f"{len(task.train)} training, {len(task.validation)} validation"
    else:
        sizes = f"{len(task.train) + len(task.validation)} development"
    display.say(f"task {task.name}: {task.kind}, {len(task.classes)} classes, {sizes}, {len(task.test)} test samples")
    display.say(f"backbones: {', '.join(loaded.selection.backbones)}; slots: {', '.join(slot.name for slot in slots)}")


def _existing(path: Path, base: Path | None) -> Path:
    return base / path if base is not None and not path.exists() and not path.is_absolute() else path


def preview(story: Run, console: Console) -> None:
    """Print what a run would do, without doing or writing anything."""
    print_config(console, story.config.model_dump(mode="json"))
    loaded = load(story)
    _introduce(loaded, parse_slots(story.config.slots), story.display)
    context = first_context(story, loaded)
    print_space(console, story.space, context)
    print_strategies(console, context)
