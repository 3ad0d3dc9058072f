"""What holds for every file of the repository."""

import re
import subprocess
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest

pytestmark = pytest.mark.repo

REPOSITORY = Path(__file__).parents[2]
MOST_LINES = 400
ROOTS = ("tmp", "root", "work", "home", "mnt", "Users", "opt")
MACHINE_PATH = re.compile(rf"(?<![\w.~}}/])/(?:{'|'.join(ROOTS)})/\w")


def tracked_texts():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        path = REPOSITORY / name
        if path.is_file():
            yield name, path.read_bytes().decode("utf-8", errors="ignore")


def test_no_file_names_a_path_of_one_machine():
    found = [f"{name}: {match[0]}" for name, text in tracked_texts() for match in MACHINE_PATH.finditer(text)]
    assert found == []


def test_the_search_for_machine_paths_finds_them():
    assert all(MACHINE_PATH.search(f"see /{root}/project") for root in ROOTS)
    assert not MACHINE_PATH.search("docs/work/in/progress and https://example.org/home/page")


@pytest.mark.parametrize("package", ["automl_tl", "plugins"])
def test_no_module_is_too_long_to_read(package):
    lengths = {
        str(path.relative_to(REPOSITORY)): len(path.read_text().splitlines())
        for path in (REPOSITORY / package).rglob("*.py")
    }
    assert lengths
    assert {name: length for name, length in lengths.items() if length > MOST_LINES} == {}


def test_installed_entry_points_are_those_of_pyproject():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    installed = {
        point.name: point.value
        for point in entry_points(group="automl_tl")
        if point.dist is not None and point.dist.name == project["name"]
    }
    assert installed == project["entry-points"]["automl_tl"], (
        "the installed metadata is old: run pip install -e . again"
    )


def test_every_pin_satisfies_the_lower_bounds():
    packaging = pytest.importorskip("packaging.requirements")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    lines = [line.partition("#")[0].strip() for line in (REPOSITORY / "constraints.txt").read_text().splitlines()]
    pins = dict(line.lower().split("==") for line in lines if line)
    for requirement in map(packaging.Requirement, wanted):
        assert requirement.name.lower() in pins, f"constraints.txt does not pin {requirement.name}"
        assert pins[requirement.name.lower()] in requirement.specifier
