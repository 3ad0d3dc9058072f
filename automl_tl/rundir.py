"""The run directory: what lies where, and how one is made. A run killed at any instant leaves one to resume."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from automl_tl.config import RunConfig, load_config
from automl_tl.errors import RunError


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """Paths of one run."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def selection(self) -> Path:
        """Names of the plugins that are searched over."""
        return self.path / "selection.json"

    @property
    def part(self) -> Path:
        """What share of the samples is learnt from."""
        return self.path / "part.json"

    @property
    def database(self) -> Path:
        """The Optuna study."""
        return self.path / "study.db"

    @property
    def features(self) -> Path:
        """Prepared samples."""
        return self.path / "features"

    @property
    def model(self) -> Path:
        """The trained best model."""
        return self.path / "model"

    @property
    def result(self) -> Path:
        """What was found."""
        return self.path / "result.json"

    @property
    def lock(self) -> Path:
        """Held by the process that works on the run."""
        return self.path / "lock"

    def make(self) -> None:
        """Make the directory, if it is not there."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(
                f"cannot make the run directory {self.path}: {error.strerror}; choose another --run-dir"
            ) from None

    def count_opening(self) -> int:
        """Note that the test split is opened, and return how often that has happened in this run."""
        note = self.path / "test_opened.json"
        times = 1 + (self.read_json(note)["times"] if note.exists() else 0)
        self.write_json(note, {"times": times})
        return times

    @contextmanager
    def seconds(self, phase: str, *, began: float | None = None) -> Iterator[None]:
        """Add the time of a phase to the run's account, over all its sittings."""
        began = began or time.time()
        try:
            yield
        finally:
            account = self._account()
            account[phase] = account.get(phase, 0.0) + time.time() - began
            self.write_json(self._accounts, account)

    def spent(self) -> dict[str, float]:
        """Seconds of each phase and in total, over all sittings."""
        account = self._account()
        return {"total": round(sum(account.values()), 2), **{phase: round(each, 2) for phase, each in account.items()}}

    def _account(self) -> dict[str, float]:
        return self.read_json(self._accounts) if self._accounts.exists() else {}

    @property
    def _accounts(self) -> Path:
        return self.path / "seconds.json"

    def write_config(self, config: RunConfig, base: Path | None) -> None:
        """Keep the resolved configuration and the folder its relative paths start from."""
        values = config.model_dump(mode="json")
        values.pop("run_dir", None)
        header = f"# automl-tl resume {self.path}\n"
        # First the folder: a directory with a configuration is a run that can be resumed.
        self.write_json(self.path / "origin.json", {"base": str((base or Path()).resolve())})
        self.write_text(self.config, header + yaml.safe_dump(values, sort_keys=False))

    def read_config(self) -> tuple[RunConfig, Path]:
        """The configuration of an existing run, and the folder of its relative paths."""
        if not self.config.exists():
            raise RunError(f"{self.path} is not a run directory; expected a {self.config.name} in it")
        origin = self.read_json(self.path / "origin.json")
        return load_config(self.config), Path(origin["base"])

    def read_result(self) -> dict[str, Any]:
        """The result of a finished run."""
        if not self.result.exists():
            raise RunError(f"{self.path} has no result yet; finish it with: automl-tl resume {self.path}")
        return self.read_json(self.result)

    def read_json(self, path: Path) -> dict[str, Any]:
        """Read one of the run's JSON files."""
        try:
            values: dict[str, Any] = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise RunError(f"{path} is missing or damaged: {error}") from None
        return values

    def write_json(self, path: Path, values: dict[str, Any]) -> None:
        """Write one of the run's JSON files, whole or not at all."""
        self.write_text(path, json.dumps(values, indent=2) + "\n")

    def write_text(self, path: Path, text: str) -> None:
        """Write a file, whole or not at all."""
        partial = path.with_suffix(path.suffix + ".partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(text, encoding="utf-8")
            partial.replace(path)
        except OSError as error:
            raise RunError(f"cannot write {path}: {error.strerror}; choose another place with --run-dir") from None


def new_run_directory(wanted: Path | None, name: str) -> RunDirectory:
    """The place of a new run; without a wish it is `runs/NAME-DATE-TIME`. It is made by `RunDirectory.make`.

    Raises RunError when the wanted directory already holds something.
    """
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    path = wanted or Path("runs") / f"{name}-{stamp}"
    if (path / "config.yaml").exists():
        raise RunError(
            f"{path} already holds a run; continue it with: automl-tl resume {path}, or choose another --run-dir"
        )
    if path.exists() and not path.is_dir():
        raise RunError(f"{path} is a file; choose another --run-dir")
    if path.exists() and any(path.iterdir()):
        raise RunError(f"{path} is not empty and holds no run; choose another --run-dir")
    return RunDirectory(path)
