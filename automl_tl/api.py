"""The public Python API: `search`, `TransferSearch`, `load_run`. The command line calls the same functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import optuna
from optuna.exceptions import StorageInternalError
from rich.console import Console
from sqlalchemy.exc import SQLAlchemyError

from automl_tl.config import RunConfig, load_config, validate
from automl_tl.data import inputs_from_python, read_inputs
from automl_tl.engine.spread import Crew
from automl_tl.errors import ConfigError, RunError
from automl_tl.host import Item
from automl_tl.report.live import Display
from automl_tl.report.scores import ScoreTable
from automl_tl.report.summary import print_result
from automl_tl.run import TRANSFERRED, Run, preview, run
from automl_tl.rundir import RunDirectory, new_run_directory
from automl_tl.scoring import score_backbones
from automl_tl.search.configurations import CONTINUES
from automl_tl.search.search import start_clock
from automl_tl.search.space import Space, default_space
from automl_tl.search.study import open_storage, settled
from automl_tl.serve.model import TrainedModel, load_model

if TYPE_CHECKING:
    import pandas as pd

    from automl_tl.estimator import TransferSearch

__all__ = ["FinishedRun", "ScoreTable", "TransferSearch", "load_run", "score", "search"]


def __getattr__(name: str) -> Any:
    """The estimator, and scikit-learn with it, when somebody asks for it: both are slow to import."""
    if name == "TransferSearch":
        return import_module("automl_tl.estimator").TransferSearch
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """A finished run: its result, its study and its trained model."""

    path: Path
    result: dict[str, Any]  # what `result.json` holds
    model: TrainedModel

    @property
    def study(self) -> optuna.Study:
        """The Optuna study of the search, read from the run directory."""
        storage = open_storage(RunDirectory(self.path).database)
        return optuna.load_study(study_name=TRANSFERRED, storage=storage)

    def predict(self, x: Any, *, views: int = 0) -> pd.DataFrame:
        """Class and probabilities of new samples: arrays, texts, images, a frame, or a path to any of these.

        `views`: so many changed copies of each are averaged with it.
        """
        schema = self.model.schema
        samples = read_inputs(x, schema) if isinstance(x, Path) else inputs_from_python(x, schema)
        return self.model.predictions(samples, views=views)


def search(
    config: RunConfig | Mapping[str, Any] | str | Path,
    *,
    unlabeled: str | Path | None = None,
    space: Space = default_space,
    plugins: Sequence[Item] = (),
    console: Console | None = None,
    base: Path | None = None,
    crew: Crew | None = None,
) -> FinishedRun:
    """Run a search and return what it found.

    Parameters
    ----------
    config
        A `RunConfig`, a mapping like the YAML, or the path of a YAML file.
    unlabeled
        The path of further samples without labels, to learn from as well, in place of `data.unlabeled`.
    space
        A function `(trial, context) -> TrialSpec`; it may call `default_space` for the parts that it leaves alone.
    plugins
        Backbones, heads and strategies made in Python, beside the installed ones.
    console
        Where progress is shown; None shows nothing.
    base
        The folder that relative paths start from when they do not exist in the current one.
    crew
        Slots whose children run already (`automl_tl.search.crew.open_crew`), instead of those that `config` names:
        for a program that runs one search after another.

    Raises
    ------
    AutomlTlError
        With a message that says what to do.
    """
    resolved, base = _resolved(config, base)
    if unlabeled is not None:
        values = resolved.model_dump()
        values["data"]["unlabeled"] = str(unlabeled)
        resolved = validate(values, "search")
    directory = new_run_directory(resolved.run_dir, resolved.name or _name_of(resolved))
    story = Run(
        config=resolved,
        directory=directory,
        display=Display(console or Console(quiet=True), log=directory.path / "log.txt"),
        base=base,
        plugins=tuple(plugins),
        space=space,
        crew=crew,
    )
    return _carry_out(story)


def resume(
    path: Path,
    *,
    trials: str | None = None,
    seconds: str | None = None,
    slots: str | None = None,
    space: Space = default_space,
    plugins: Sequence[Item] = (),
    console: Console | None = None,
) -> FinishedRun:
    """Go on with a stopped run, or extend a finished one by `trials="+10"` or `seconds="+300"`.

    A limit that is given alone replaces the other one, or the run would end where it ended before.
    """
    directory = RunDirectory(path)
    config, base = directory.read_config()
    values = config.model_dump() | ({"slots": slots} if slots else {})
    if trials is not None or seconds is not None:
        n_trials, spent = _done(directory)
        values["search"] |= {
            "trials": None if trials is None else _extended("--trials", trials, config.search.trials or n_trials),
            "seconds": None if seconds is None else _extended("--time", seconds, config.search.time_limit or spent),
        }
    story = Run(
        config=validate(values, "the command line"),
        directory=directory,
        display=Display(console or Console(quiet=True), log=directory.path / "log.txt"),
        base=base,
        plugins=tuple(plugins),
        space=space,
    )
    return _carry_out(story)


def load_run(path: str | Path, *, plugins: Sequence[Item] = ()) -> FinishedRun:
    """Open a finished run; `plugins` are those that were passed in Python when it was made.

    Raises
    ------
    RunError
        When the directory is no run, or the run is not finished, or its files are damaged.
    """
    directory = RunDirectory(Path(path))
    model = load_model(directory.model, plugins=tuple(plugins))
    return FinishedRun(path=directory.path, result=directory.read_result(), model=model)


def show(path: Path, console: Console) -> None:
    """Print the result of a finished run."""
    directory = RunDirectory(path)
    directory.read_config()
    print_result(console, directory.read_result(), path)


def predict_file(
    path: Path, inputs: Path, out: Path, *, on_bad_sample: Literal["error", "skip"], views: int = 0
) -> int:
    """Write predictions for files as CSV; return how many."""
    model = load_model(RunDirectory(path).model)
    table = model.predictions(read_inputs(inputs, model.schema, on_bad_sample=on_bad_sample), views=views)
    try:
        table.to_csv(out, index=False)
    except OSError as error:
        raise RunError(f"cannot write {out}: {error.strerror or error}; choose another place with --out") from None
    return len(table)


def dry_run(config: RunConfig, console: Console, *, base: Path | None) -> None:
    """Print the resolved configuration, the splits, the space and every strategy's trainable parameters."""
    directory = RunDirectory(config.run_dir or Path("runs"))
    preview(Run(config=config, directory=directory, display=Display(console), base=base), console)


def score(
    config: RunConfig | Mapping[str, Any] | str | Path,
    *,
    plugins: Sequence[Item] = (),
    console: Console | None = None,
    base: Path | None = None,
    crew: Crew | None = None,
    random: bool = True,
) -> ScoreTable:
    """Score every tap of every backbone without training; see `automl_tl.scoring`.

    Parameters
    ----------
    config, plugins, console, base, crew
        As for `search`.
    random
        Whether to pass the same architectures with random weights, too.
    """
    resolved, base = _resolved(config, base)
    story = Run(
        config=resolved,
        directory=RunDirectory(Path("runs")),  # nothing is written there
        display=Display(console or Console(quiet=True)),
        base=base,
        plugins=tuple(plugins),
        crew=crew,
    )
    return score_backbones(story, random=random)


def _carry_out(story: Run) -> FinishedRun:
    """Run the story; on Ctrl-C say how to go on."""
    path = story.directory.path
    try:
        result = run(story)
    except KeyboardInterrupt:
        if story.directory.config.exists():
            story.display.say(f"interrupted; everything finished is kept. Go on with: automl-tl resume {path}")
        raise
    except (StorageInternalError, SQLAlchemyError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise RunError(
            f"the study {story.directory.database} cannot be written: {reason}; everything finished is kept. "
            f"Free some space, then: automl-tl resume {path}"
        ) from error
    model = load_model(story.directory.model, plugins=story.plugins)
    return FinishedRun(path=path, result=result, model=model)


def _resolved(config: RunConfig | Mapping[str, Any] | str | Path, base: Path | None) -> tuple[RunConfig, Path | None]:
    if isinstance(config, RunConfig):
        return config, base
    if isinstance(config, str | Path):
        return load_config(Path(config)), base or Path(config).parent
    return load_config(config), base


def _name_of(config: RunConfig) -> str:
    return Path(config.data.path.rpartition(":")[2]).stem or "run"


def _done(directory: RunDirectory) -> tuple[int, float]:
    """Configurations that the longest search of a run is done with, and the seconds that all its searches took."""
    storage = open_storage(directory.database)
    studies = [optuna.load_study(study_name=name, storage=storage) for name in optuna.get_all_study_names(storage)]
    trials = [[trial for trial in settled(study) if CONTINUES not in trial.user_attrs] for study in studies]
    return max(map(len, trials), default=0), sum(start_clock(s).before for s in studies)


def _extended(option: str, text: str, before: float) -> float:
    """`+N` adds to what the run was allowed, or did without a limit; a bare number replaces it."""
    try:
        number = float(text)
    except ValueError:
        raise ConfigError(f"{option}: expected a number or +number, got {text!r}") from None
    if number <= 0:
        raise ConfigError(f"{option}: expected more than 0, got {text}")
    return before + number if text.strip().startswith("+") else number
