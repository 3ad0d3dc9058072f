"""Style, format, types and import contracts: what `make lint` checks, one test each."""

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

pytestmark = pytest.mark.repo

REPOSITORY = Path(__file__).parents[2]

CHECKS = {
    "ruff check": [sys.executable, "-m", "ruff", "check", "."],
    "ruff format": [sys.executable, "-m", "ruff", "format", "--check", "."],
    "mypy": [sys.executable, "-m", "mypy"],
    "import contracts": [str(Path(sysconfig.get_path("scripts"), "lint-imports"))],
}


@pytest.mark.parametrize("command", CHECKS.values(), ids=CHECKS)
def test_finds_nothing(command):
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
