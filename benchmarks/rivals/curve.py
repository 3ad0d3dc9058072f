"""The clock of a rival, and the curve of its incumbents."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import f1_score

SHORT_LIVED = 0.01  # of the budget: an incumbent replaced so soon is not scored, which only makes the curve coarser

Predict = Callable[[], np.ndarray]  # class numbers of the test samples


def macro_f1(labels: np.ndarray, predicted: np.ndarray) -> float:
    return float(f1_score(labels, predicted, average="macro", zero_division=0))


class Clock:
    """Seconds since the program was started, without what is measured for us."""

    def __init__(self, began: float, budget: float) -> None:
        self.budget = budget
        self._began = began
        self._outside = 0.0

    def seconds(self) -> float:
        return time.time() - self._began - self._outside

    def over(self) -> bool:
        return self.seconds() >= self.budget

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """What happens inside does not count."""
        stopped_at = time.time()
        try:
            yield
        finally:
            self._outside += time.time() - stopped_at


class Curve:
    """Test macro-F1 of each incumbent. The rival chooses by its own validation and never sees these."""

    def __init__(self, clock: Clock, test_labels: np.ndarray) -> None:
        self.points: list[tuple[float, float]] = []
        self._clock = clock
        self._labels = test_labels
        self._waiting: tuple[float, Predict] | None = None
        self._predicted: np.ndarray | None = None

    def add(self, predict: Predict) -> None:
        """A better model is there; it is scored, outside the clock, unless the next one follows at once."""
        now = self._clock.seconds()
        with self._clock.stopped():
            if self._waiting and now - self._waiting[0] >= SHORT_LIVED * self._clock.budget:
                self._score()
            self._waiting = (now, predict)

    def finish(self, classes: Sequence[str], predictions: Path | None, *, facts: dict[str, Any]) -> None:
        """Print the JSON line, and write the class names that the last incumbent predicts, as JSON."""
        seconds = self._clock.seconds()
        self._score()
        if predictions and self._predicted is not None:
            predictions.write_text(json.dumps([classes[k] for k in self._predicted]) + "\n")
        points = [(round(at, 2), round(score, 5)) for at, score in self.points]
        print(json.dumps({"points": points, "seconds": round(seconds, 2), **facts}), flush=True)

    def _score(self) -> None:
        if self._waiting:
            at, predict = self._waiting
            self._predicted = predict()
            self.points.append((at, macro_f1(self._labels, self._predicted)))
            self._waiting = None
