"""Test macro-F1 of the models that a search has had on its way, which no search looks at: JSON, one pair a model.

An incumbent is the trial with the highest score so far, from the moment its model lies on disk. The run must be over
and have kept the models of all its trials:

    automl-tl search DATA --run-dir RUN --set search.keep_checkpoints=1000
    python benchmarks/incumbents.py RUN --began SECONDS
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from sklearn.metrics import f1_score

from automl_tl.finish.finish import Measurer
from automl_tl.finish.refit import load_chosen
from automl_tl.metrics.scores import decide
from automl_tl.model.spec import spec_from_json
from automl_tl.report.live import Display
from automl_tl.run import TRANSFERRED, Run, _open_search, _train_source, crew_of, lay_out, load
from automl_tl.rundir import RunDirectory
from automl_tl.search.checkpoints import checkpoint_of

SHORT_LIVED = 0.5  # seconds; what is replaced so soon is not scored, which only makes the curve coarser


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run directory")
    parser.add_argument("--began", type=float, required=True, help="time.time() at which the search was started")
    options = parser.parse_args()
    print(json.dumps(curve(options.run, options.began)), flush=True)


def curve(path: Path, began: float) -> list[tuple[float, float]]:
    """(seconds, test macro-F1) of a finished run's incumbents."""
    measurer, trials = open_run(RunDirectory(path))
    found = []
    for at, trial in long_lived(incumbents(trials), began):
        if checkpoint_of(measurer.search, trial).exists():
            found.append((round(at, 2), round(test_f1(measurer, trial), 5)))
        else:
            print(f"trial {trial.number}: its model is gone, search with search.keep_checkpoints=1000", file=sys.stderr)
    return found


def open_run(directory: RunDirectory) -> tuple[Measurer, list[FrozenTrial]]:
    """A finished run as its search had it, with the test split, and its complete trials."""
    config, base = directory.read_config()
    story = Run(config=config, directory=directory, display=Display(Console(quiet=True)), base=base)
    loaded = load(story)
    source, encoder = None, None
    if config.source is not None and loaded.source_task is not None:
        with crew_of(story) as crew:  # it is trained already
            source, encoder = _train_source(config.source, loaded.source_task, loaded, story, crew)
    prepared = lay_out(story, loaded, encoder=encoder)
    search = _open_search(story, loaded, prepared, TRANSFERRED, source)
    measurer = Measurer(search, loaded.task.test.open(), "cpu", lambda what, done, n: None, [], [])
    return measurer, search.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def incumbents(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Those that were better than all that were complete before them, in order of time."""
    best, found = float("-inf"), []
    for trial in sorted(trials, key=ended_at):
        if trial.value is not None and trial.value > best:
            best = trial.value
            found.append(trial)
    return found


def ended_at(trial: FrozenTrial) -> float:
    """When the study was told of a complete trial, whose model lay on disk before, as time.time() has it."""
    assert trial.datetime_complete is not None
    return trial.datetime_complete.timestamp()


def long_lived(found: list[FrozenTrial], began: float) -> list[tuple[float, FrozenTrial]]:
    """Seconds and trial of those that stood for a moment, and the last."""
    times = [ended_at(trial) for trial in found]
    until = [*times[1:], float("inf")]
    return [(at - began, trial) for at, end, trial in zip(times, until, found, strict=True) if end - at >= SHORT_LIVED]


def test_f1(measurer: Measurer, trial: FrozenTrial) -> float:
    """Macro-F1 of a trial's model on the test split."""
    search, spec = measurer.search, spec_from_json(trial.user_attrs["spec"])
    model = load_chosen(search, spec, search.directory / str(trial.number), measurer.device)
    said = decide(np.asarray(measurer.probabilities(spec, model)), search.prepared.task.kind)
    return float(f1_score(measurer.test.labels, said, average="macro", zero_division=0))


if __name__ == "__main__":
    main()
