import textwrap
from dataclasses import replace

import optuna
import pytest

from automl_tl.config import DataConfig
from automl_tl.data import load_task
from automl_tl.features.task import lay_out_task, prepare_task
from automl_tl.host import PluginSources, load_host
from automl_tl.model.groups import describe_groups
from automl_tl.search.search import Budget, Search, start_clock
from automl_tl.search.space import SpaceContext, default_space
from automl_tl.search.study import open_storage, open_study
from automl_tl.search.trial import TrialReport

SHAPES = {"image": (3, 32, 32), "text": (), "tabular": (5,)}


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


@pytest.fixture
def make_search(tmp_path):
    """Return a function that opens a search on wine; plugin files are given as a mapping of name to source."""

    def make(
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
        recipes=False,
        keep_checkpoints=2,
        seed=0,
        overrides=None,
    ):
        sources = PluginSources()
        if plugins:
            folder = tmp_path / "plugins"
            folder.mkdir(exist_ok=True)
            for module, text in plugins.items():
                (folder / f"{module}.py").write_text(textwrap.dedent(text))
            sources = PluginSources(dirs=(folder,))
        host = load_host(sources)
        task = load_task(DataConfig(path="sklearn:wine"), seed=0)
        chosen = tuple(host.backbone(name) for name in backbones)
        prepared = lay_out_task(task, chosen, tmp_path / "features")
        prepare_task(prepared, chosen, lambda what, done, n: None)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        database = tmp_path / f"{name}.db"
        study = open_study(open_storage(database), name, seed=seed, prune=False)
        return Search(
            study=study,
            database=database,
            directory=tmp_path / f"{name}-trials",
            host=host,
            context=SpaceContext(
                host=host,
                backbones={b.name: describe_groups(b, prepared.interface(b).input_shape) for b in chosen},
                heads=heads,
                strategies=strategies,
                modality="tabular",
                n_train=len(task.train),
                n_classes=3,
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
                prune=False,
                recipes=recipes,
                keep_checkpoints=keep_checkpoints,
            ),
            seed=seed,
            clock=start_clock(study),
        )

    return make


class FakeChildren:
    """Stands for the slots' processes: `outcome(order)` gives the report of a trial, or raises what a process would."""

    def __init__(self, outcome):
        self.outcome = outcome
        self.stopped = False
        self.orders = []

    def run(self, slot, function, order):
        self.orders.append(order)
        return self.outcome(order)

    def stop(self):
        self.stopped = True


@pytest.fixture
def fake_children():
    return FakeChildren


def _report(score, state="complete", **facts):
    known = {"validation": {"f1_macro": score, "log_loss": 0.0}, "epochs": 1, "best_epoch": 0}
    return TrialReport(state=state, score=score, facts={**known, **facts})


@pytest.fixture
def report():
    """Return a function that makes what a trial answers."""
    return _report
