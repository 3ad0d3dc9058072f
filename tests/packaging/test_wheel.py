"""What `pip install` gives: our wheel and the example plugin's, installed outside the repository.

The new environment borrows the libraries of this one, so nothing is downloaded.
"""

import json
import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
EXAMPLE = REPOSITORY / "plugins" / "example_surgical"


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    directory = tmp_path_factory.mktemp("wheels")
    for project in (REPOSITORY, EXAMPLE):
        build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(directory), str(project)]
        succeed(build, cwd=directory)
    return sorted(directory.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheels, tmp_path_factory):
    """The `bin` directory of a fresh environment that holds the two wheels."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "--quiet"]
    succeed([*pip, *map(str, wheels)], cwd=home)
    # Only now: pip must not find this environment's automl-tl, which is perhaps the editable one, already installed.
    packages = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    own = next(home.glob("lib/python*/site-packages"))
    (own / "borrowed.pth").write_text("\n".join(sorted(packages)) + "\n")
    return home / "bin"


def succeed(command, cwd):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_wheel_holds_both_packages_and_nothing_else(wheels):
    ours = next(wheel for wheel in wheels if wheel.name.startswith("automl_tl-"))
    names = zipfile.ZipFile(ours).namelist()
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"automl_tl", "automl_tl_builtins"}
    assert {"automl_tl/py.typed", "automl_tl_builtins/py.typed"} <= set(names)


def test_installed_plugins_are_listed_with_their_distribution(installed, tmp_path):
    listed = json.loads(succeed([installed / "automl-tl", "plugins", "list", "--json"], cwd=tmp_path))
    distributions = {plugin["name"]: plugin["distribution"] for plugin in listed["plugins"]}
    entry_points = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["entry-points"]["automl_tl"]
    assert distributions == {**dict.fromkeys(entry_points, "automl-tl"), "surgical": "automl-tl-surgical"}
    assert [plugin for plugin in listed["plugins"] if plugin["error"]] == []


def test_the_code_that_runs_is_the_wheels(installed, tmp_path):
    where = succeed([installed / "python", "-c", "import automl_tl; print(automl_tl.__file__)"], cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent)


def test_a_third_party_strategy_wins_a_search(installed, tmp_path):
    settings = {"strategies": "surgical", "backbones": "source_mlp", "search.max_epochs": 2, "search.prune": "false"}
    options = [option for key, value in settings.items() for option in ("--set", f"{key}={value}")]
    search = [installed / "automl-tl", "search", "sklearn:wine", "--trials", "2", "--slots", "cpu*2", *options]
    succeed([*search, "--run-dir", "run"], cwd=tmp_path)

    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["best"]["strategy"] == "surgical"
    assert [group["action"] for group in result["best"]["plan"]].count("tune") == 1
    assert result["trials"] == {"complete": 2, "pruned": 0, "failed": 0}
    assert result["environment"]["slots"] == ["cpu0", "cpu1"]  # children, which found the plugin themselves
