"""What several test modules share: a quiet machine, the command line in this process, and small finished runs."""

import json
import sys
from types import SimpleNamespace

import pytest


@pytest.fixture(scope="session", autouse=True)
def quiet_machine(tmp_path_factory):
    """One thread a slot, because two that share a busy core wait for each other, and a cache of the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOKY_MAX_CPU_COUNT", "1")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("AUTOML_TL_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        patch.setenv("COLUMNS", "160")
        yield


@pytest.fixture
def cli(monkeypatch, capsys):
    """Run `automl-tl` with these arguments in this process; returns exit code, output and errors."""

    def call(*arguments):
        from automl_tl.cli import main

        monkeypatch.setattr(sys, "argv", ["automl-tl", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return call


@pytest.fixture(scope="session")
def wine_config():
    """A search on a small table that takes a second."""
    return {
        "data": {"path": "sklearn:wine"},
        "backbones": "source_mlp",
        "strategies": ["linear_probe", "last_k", "full_finetune"],
        "heads": "linear",
        "search": {"trials": 2, "max_epochs": 2, "prune": False},
        "slots": "inline",
    }


@pytest.fixture(scope="session")
def wine_run(wine_config, tmp_path_factory):
    """The directory of a finished search on wine; copy it before changing anything in it."""
    from automl_tl import api

    path = tmp_path_factory.mktemp("wine") / "run"
    api.search({**wine_config, "run_dir": str(path)})
    return path


@pytest.fixture(scope="session")
def wine_result(wine_run):
    """What `result.json` of the finished search on wine holds."""
    return json.loads((wine_run / "result.json").read_text())
