"""The live display of a run: a panel in a terminal, plain lines anywhere else. Shows; decides nothing."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from automl_tl.engine.slots import Slot
from automl_tl.report.summary import print_result, print_source
from automl_tl.search.configurations import CONTINUES
from automl_tl.search.search import Search
from automl_tl.search.source import SourceModel
from automl_tl.search.status import Status, describe

REFRESH = 0.5  # seconds between two looks of the panel
SLOW = 2.0  # seconds after which a step says how far it is


class Display:
    """Shows one run on a console; with `Console(quiet=True)` it shows nothing."""

    def __init__(self, console: Console, *, log: Path | None = None) -> None:
        self.console = console
        self._log = log  # every line is kept here as well, with its time
        self._live: Live | None = None
        self._search: Search | None = None
        self._slots: tuple[Slot, ...] = ()
        self._told: set[int] = set()
        self._step = ""
        self._told_of_it = (0.0, 0)  # when last, and how far it was then

    def __enter__(self) -> Display:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def say(self, text: str) -> None:
        """One line of what happens."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
        self._keep(text)

    def warn(self, text: str) -> None:
        """One line that the user should not miss."""
        self.console.print(Text(f"warning: {text}", style="yellow"), soft_wrap=True)
        self._keep(f"warning: {text}")

    def progress(self, what: str, done: int, total: int) -> None:
        """How far a step is; says nothing of quick ones."""
        now = time.monotonic()
        if self._step != what:
            self._step, self._told_of_it = what, (now, 0)
        elif done != self._told_of_it[1] and now - self._told_of_it[0] > SLOW:
            self._told_of_it = (now, done)
            self.say(f"{what}: {done} of {total}")

    def source(self, model: SourceModel) -> None:
        """How good the source model is at its own task."""
        print_source(self.console, model)

    def begin(self, search: Search, slots: tuple[Slot, ...]) -> None:
        """A search starts."""
        self._search, self._slots, self._told = search, slots, set()
        budget = [f"{search.budget.trials} trials"] if search.budget.trials else []
        ends = [end for end in (search.budget.deadline, search.budget.last_moment) if end is not None]
        if ends:  # the last one where the finish has no use for its share
            budget.append(" to ".join(dict.fromkeys(f"{max(0.0, end - time.time()):.0f}" for end in ends)) + " s")
        weights = " from random weights" if search.context.weights == "random" else ""
        self.say(f"searching {' or '.join(budget)}{weights}, maximizing validation {search.metric}")
        if self.console.is_terminal and not self.console.quiet:
            self._live = Live(console=self.console, refresh_per_second=4, transient=True)
            self._live.start()

    def tick(self, status: Status) -> None:
        """The search goes on; called a few times a second."""
        if self._live is not None:
            self._live.update(self._panel(status))
        else:
            self._tell_finished(status)

    def end(self, status: Status) -> None:
        """The search is over."""
        self.tick(status)
        self._stop()
        self._tell_finished(status)
        for trial in status.settled:
            if trial.state == TrialState.FAIL:
                self.warn(f"trial {trial.number} failed: {trial.user_attrs.get('reason', '')}")

    def result(self, result: dict[str, Any], directory: Path) -> None:
        """What was found, and what to do with it."""
        print_result(self.console, result, directory)

    def _keep(self, text: str) -> None:
        if self._log is not None and self._log.parent.is_dir():
            with contextlib.suppress(OSError), self._log.open("a", encoding="utf-8") as log:
                log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _tell_finished(self, status: Status) -> None:
        """One plain line for each trial that ended since the last look."""
        told = [trial for trial in status.settled if trial.number in self._told]
        # Only complete trials: Optuna gives a pruned one the score at which it was pruned.
        best = max((t.value for t in told if t.state == TrialState.COMPLETE and t.value is not None), default=None)
        for trial in status.settled:
            if trial.number in self._told:
                continue
            self._told.add(trial.number)
            if trial.value is not None and trial.state == TrialState.COMPLETE:
                best = trial.value if best is None else max(best, trial.value)
            self.say(_line(trial, best))

    def _panel(self, status: Status) -> Group:
        assert self._search is not None
        budget = self._search.budget
        done = status.complete + status.pruned + status.failed
        counts = Text(
            f"trials: {done} done ({status.complete} complete, {status.pruned} pruned, {status.failed} failed), "
            f"{len(status.running)} running"
        )
        slots = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for column in ("slot", "trial", "epoch", self._search.metric, "what"):
            slots.add_column(column)
        by_slot = {trial.slot: trial for trial in status.running}
        for slot in self._slots:
            running = by_slot.get(slot.name)
            if running is None:
                slots.add_row(slot.name, "–", "", "", "")
                continue
            score = "" if running.score is None else f"{running.score:.4f}"
            epoch = f"{running.epoch}/{budget.max_epochs}"
            slots.add_row(slot.name, str(running.number), epoch, score, running.what)
        parts: list[Any] = [counts, slots]
        if status.best is not None:
            parts.append(Text(f"best so far: {status.best.value:.4f}  {describe(status.best)}", style="bold green"))
        parts.append(self._time_left(status, done))
        return Group(*parts)

    def _time_left(self, status: Status, done: int) -> Table:
        assert self._search is not None
        budget = self._search.budget
        row = Table.grid(padding=(0, 2))
        if status.deadline is not None:
            left = max(0.0, status.deadline - time.time())
            row.add_row(
                ProgressBar(total=status.seconds + left, completed=status.seconds, width=40), f"{left:.0f} s left"
            )
        elif budget.trials is not None:
            guess = status.seconds / done * (budget.trials - done) if done else None
            left_text = "" if guess is None else f"about {guess:.0f} s left"
            row.add_row(ProgressBar(total=budget.trials, completed=done, width=40), left_text)
        return row


def _line(trial: FrozenTrial, best: float | None) -> str:
    when = trial.user_attrs.get("at")
    clock = f"[{when:7.1f} s]" if when is not None else "[        ]"
    outcome = trial.state.name.lower()
    score = "" if trial.value is None else f" {trial.value:.4f}"
    recipe = f"  recipe: {trial.user_attrs['recipe']}" if "recipe" in trial.user_attrs else ""
    if CONTINUES in trial.user_attrs and "epochs" in trial.user_attrs:
        recipe = f"  trial {trial.user_attrs[CONTINUES]} on to {trial.user_attrs['epochs']} epochs"
    best_text = "" if best is None else f"  (best {best:.4f})"
    return f"{clock} trial {trial.number} {outcome}{score}  {describe(trial)}{recipe}{best_text}"
