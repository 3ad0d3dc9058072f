import textwrap
from dataclasses import replace
from functools import partial

import numpy as np
import optuna
import pytest
import torch

from automl_tl.config import DataConfig
from automl_tl.data import load_task
from automl_tl.engine.slot import Children
from automl_tl.engine.slots import parse_slots
from automl_tl.engine.spread import Crew
from automl_tl.features.store import GIB, FeatureStore
from automl_tl.features.task import lay_out_task, prepare_task
from automl_tl.host import PluginSources, load_host
from automl_tl.model.checkpoint import save_tensors
from automl_tl.model.groups import describe_groups
from automl_tl.search.inputs import stored_network
from automl_tl.search.judging import Said, save_said
from automl_tl.search.search import Budget, Search, start_clock
from automl_tl.search.space import SpaceContext, default_space
from automl_tl.search.study import open_storage, open_study
from automl_tl.search.trial import CHECKPOINT, STATE, TrialReport

SHAPES = {"image": (3, 32, 32), "text": (), "tabular": (5,)}
INLINE = parse_slots("inline", cores=1)

REVIEWS = {
    "good": ("a warm and funny film", "a joy from start to end", "one of the best", "well played", "I laughed a lot"),
    "bad": ("dull", "a waste of two hours", "I left before it was over", "nobody can act here", "so very bad"),
}

TRAINED = """
    from pathlib import Path
    from automl_tl.plugin import Backbone, ImageInput, Weights, hookimpl

    def build(*, input_shape, weights):
        from safetensors.torch import load_file
        from torch import nn

        def block(inputs, outputs):
            return nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()
            )

        module = nn.Module()
        module.first, module.second, module.third = block(3, {width}), block({width}, {width}), block({width}, 8)
        if weights is not None:
            module.load_state_dict(load_file(weights))
        return module

    def find():
        path = Path(__file__).parent / "{name}.safetensors"
        return path if path.exists() else None

    @hookimpl
    def automl_tl_backbones():
        yield Backbone(
            name="{name}",
            description="a trained network",
            input=ImageInput(size=16, smallest=8),
            layer_groups=("first", "second", "third"),
            build=build,
            weights=Weights(find=find, install="", origin="", license="", sha256=""),
        )
"""


def write_trained_backbone(folder, name, *, width=12, seed=0):
    """Write a plugin with a small image backbone whose weights are published, so to say, beside it."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(textwrap.dedent(TRAINED).format(name=name, width=width))
    build = load_host(PluginSources(dirs=(folder,))).backbone(name).build
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build(input_shape=(3, 16, 16), weights=None)
        for layer in module.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.running_mean.normal_(std=0.1)
                layer.running_var.uniform_(0.5, 1.5)
    save_tensors(module.state_dict(), folder / f"{name}.safetensors")


@pytest.fixture(scope="session")
def host():
    return load_host()


@pytest.fixture(scope="session")
def context(host):
    """The facts of a small tabular task, with two backbones of three layer groups and all strategies and heads."""
    groups = describe_groups(host.backbone("source_mlp"), SHAPES["tabular"])
    twin = replace(host.backbone("source_mlp"), name="twin")
    both = replace(host, backbones={**host.backbones, "twin": twin})
    return SpaceContext(
        host=both,
        backbones={"source_mlp": groups, "twin": groups},
        heads=tuple(host.heads),
        strategies=tuple(host.strategies),
        modality="tabular",
        n_train=200,
        n_classes=3,
        imbalance=1.0,
        max_epochs=5,
    )


def open_search(
    folder,
    *,
    space=default_space,
    trials=None,
    deadline=None,
    plugins=None,
    name="study",
    backbones=("source_mlp",),
    heads=("linear",),
    strategies=("linear_probe", "last_k"),
    max_epochs=1,
    scheduler="none",
    recipes=False,
    keep_checkpoints=2,
    seed=0,
    overrides=None,
    data="sklearn:wine",
    store=None,
    trained=(),
):
    """Open a search in a folder; plugin files are given as a mapping of name to source."""
    plugin_folder = folder / "plugins"
    for number, width in enumerate(trained):
        if not (plugin_folder / f"trained{number}.py").exists():
            write_trained_backbone(plugin_folder, f"trained{number}", width=width, seed=number)
    for module, text in (plugins or {}).items():
        plugin_folder.mkdir(exist_ok=True)
        (plugin_folder / f"{module}.py").write_text(textwrap.dedent(text))
    host = load_host(PluginSources(dirs=(plugin_folder,)) if plugin_folder.exists() else PluginSources())
    data = {"path": data} if isinstance(data, str) else data
    task = load_task(DataConfig.model_validate(data), seed=0)
    chosen = tuple(host.backbone(name) for name in backbones)
    store = store or FeatureStore(root=folder / "store", budget=GIB)
    prepared = lay_out_task(task, chosen, folder / "features", store)
    prepare_task(prepared, chosen, lambda what, done, n: None)
    groups = {b.name: describe_groups(b, prepared.interface(b).input_shape) for b in chosen}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    database = folder / f"{name}.db"
    study = open_study(
        open_storage(database), name, seed=seed, hyperband=max_epochs if scheduler == "hyperband" else None
    )
    return Search(
        study=study,
        database=database,
        directory=folder / f"{name}-trials",
        host=host,
        context=SpaceContext(
            host=host,
            backbones=groups,
            heads=heads,
            strategies=strategies,
            modality=task.modality,
            n_train=len(task.train),
            n_classes=task.n_outputs,
            imbalance=1.0,
            max_epochs=max_epochs,
            overrides=overrides or {},
        ),
        space=space,
        prepared=prepared,
        metric="f1_macro",
        budget=Budget(
            trials=trials,
            seconds=None,
            deadline=deadline,
            max_epochs=max_epochs,
            scheduler=scheduler,
            recipes=recipes,
            keep_checkpoints=keep_checkpoints,
        ),
        seed=seed,
        clock=start_clock(study),
        stored={
            b.name: stored_network(host, b, prepared, groups[b.name], b.weights.find(), 0.4)
            for b in chosen
            if b.weights is not None
        },
    )


@pytest.fixture(scope="session")
def search_in():
    """Return a function that opens a search in a folder, for several tests to look at."""
    return open_search


@pytest.fixture
def make_search(tmp_path):
    """Return a function that opens a search, on wine where nothing else is said."""
    return partial(open_search, tmp_path)


@pytest.fixture
def wine_with_validation(tmp_path):
    """Return the path of the wines with a validation split that the user chose: every fifth, in the file's order."""
    from sklearn.datasets import load_wine

    wine = load_wine()
    kind = np.arange(len(wine.target)) % 5
    parts = {"train": kind < 3, "val": kind == 3, "test": kind == 4}
    arrays = {f"x_{name}": wine.data[chosen] for name, chosen in parts.items()}
    arrays |= {f"y_{name}": wine.target[chosen] for name, chosen in parts.items()}
    np.savez(tmp_path / "wine.npz", **arrays)
    return str(tmp_path / "wine.npz")


PICTURES = {
    "data": {"path": "sklearn:digits", "per_class": 6, "validation_fraction": 0.04, "test_fraction": 0.05},
    "trained": (12,),
    "backbones": ("trained0",),
}


@pytest.fixture
def make_picture_search(make_search):
    """Return a function that opens a search on 60 digits with small backbones that are trained already."""
    return lambda **settings: make_search(**{**PICTURES, **settings})


@pytest.fixture(scope="session")
def picture_search(tmp_path_factory):
    """Return such a search that is opened once for all tests, none of which may run it."""
    return open_search(tmp_path_factory.mktemp("pictures"), **PICTURES)


@pytest.fixture(scope="session")
def review_search(tmp_path_factory):
    """Return a search on ten short texts, that no test may run."""
    folder = tmp_path_factory.mktemp("reviews")
    lines = [f'"{text}",{label}' for label, several in REVIEWS.items() for text in several]
    (folder / "reviews.csv").write_text("\n".join(["text,label", *lines]))
    data = {"path": str(folder / "reviews.csv"), "label": "label", "modality": "text"}
    if load_host().backbone("minilm_l6").weights.find() is None:
        pytest.skip("the weights of minilm_l6 are not installed")
    return open_search(folder, data=data, backbones=("minilm_l6",))


@pytest.fixture
def crew():
    """Return a crew of this process alone."""
    return Crew(slots=INLINE, children=Children(INLINE))


class FakeChildren:
    """Stands for the slots' processes: `outcome(order)` gives the report of a trial, or raises what a process would.

    A trial that is complete leaves what a real one leaves. What it said is right everywhere: as a yardstick it takes
    nothing off any score.
    """

    def __init__(self, outcome):
        self.outcome = outcome
        self.stopped = False
        self.orders = []

    def run(self, slot, function, order):
        self.orders.append(order)
        done = self.outcome(order)
        solved_for = order.spec["fit"] != "descent"
        facts = {
            "seconds": 1.0,
            "epochs": 0 if solved_for else order.stage.until if order.stage else order.spec["max_epochs"],
            "resumable": not solved_for and order.stage is not None,
            "ending": "stage",
            **done.facts,
        }
        if done.state == "complete":
            leave_files(order, resumable=facts["resumable"])
        return replace(done, facts=facts)

    def stop(self):
        self.stopped = True


@pytest.fixture
def fake_children():
    return FakeChildren


def leave_files(order, *, resumable):
    """The files of a complete trial, as far as the host asks for them."""
    order.directory.mkdir(parents=True)
    files = order.judged or order.train
    labels, rows = files.labels(), files.chosen
    save_said(order.directory, Said(np.arange(len(labels)) if rows is None else rows, np.eye(labels.max() + 1)[labels]))
    (order.directory / CHECKPOINT).touch()
    if resumable:
        (order.directory / STATE).touch()


def _report(score, state="complete", **facts):
    known = {"validation": {"f1_macro": score, "log_loss": 0.0}}
    return TrialReport(state=state, score=score, facts={**known, **facts})


@pytest.fixture
def report():
    """Return a function that makes what a trial answers."""
    return _report
