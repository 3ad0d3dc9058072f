"""From finished cells to tables and a chart. Runs nothing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
from results import RESULTS, keep

from automl_tl.metrics.intervals import difference_interval
from rivals.chart import step_chart

OURS = "ours"
PLAIN = "plain"
BELOW = "BELOW"
FLOORS = ("logistic", "ridge")
ONCE_A_SHARE = ("ours", "one_epoch", "recipe", "autogluon")
"""Those that must know their budget; of the others, one run with all of it tells what they had at each moment."""

SEARCHES = ("ours", "one_epoch")
"""Of these a run with all of the budget tells too, if it was looked into: a search has a best trial at any moment."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What one process found."""

    task: str
    seed: int
    contender: str
    share: float  # of the whole budget
    points: tuple[tuple[float, float], ...]  # (seconds, test macro-F1) of its incumbents
    seconds: float  # until it ended
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def draw(self) -> tuple[str, int]:
        """Which training and test samples."""
        return self.task, self.seed

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Cell:
        return cls(**{**data, "points": tuple((at, f1) for at, f1 in data["points"])})


Draw = tuple[str, int]
Point = tuple[float, float]  # seconds and test macro-F1
Results = dict[str, dict[Draw, dict[float, Cell]]]  # contender -> draw -> share -> cell


def report(
    cells: Iterable[Cell],
    shares: Sequence[float],
    budget: float,
    name: str,
    facts: dict[str, Any],
    predictions: Callable[[str, int, str], Path],
    labels: Callable[[str, int], Sequence[str]],
) -> None:
    """Print and keep NAME (the contenders), NAME_tasks, NAME_floor, and the chart NAME.svg."""
    results: Results = {}
    for cell in cells:
        results.setdefault(cell.contender, {}).setdefault(cell.draw, {})[cell.share] = cell
    for contender, draws in results.items():  # a contender counts where all of its budget has been run
        results[contender] = {draw: found for draw, found in draws.items() if 1.0 in found}
    in_order = sorted(results.items(), key=lambda each: each[0] != OURS)
    results = {contender: draws for contender, draws in in_order if draws}
    if not results:
        raise SystemExit("no cell is finished, there is nothing to report")
    facts = {
        **facts,
        "cells": [cell.to_json() for draws in results.values() for by in draws.values() for cell in by.values()],
    }
    keep_contenders(results, shares, budget, name, facts)
    keep_tasks(results, name, facts["circumstances"])
    keep_floor(results, name, facts["circumstances"], predictions, labels)
    draw_chart(results, budget, name)


def f1_at(contender: str, found: Mapping[float, Cell], share: float, budget: float) -> float | None:
    """Test F1 of what a user has who gives this share of the budget; 0 while there is no model, None: not known."""
    if share in found or not found[1.0].points:  # without a model at the end there was none before
        points = found.get(share, found[1.0]).points
    elif contender in ONCE_A_SHARE and not (contender in SEARCHES and looked_into(found[1.0])):
        return None
    else:
        points = tuple(point for point in found[1.0].points if point[0] <= share * budget)
    return points[-1][1] if points else 0.0


def whole_f1(found: Mapping[float, Cell]) -> float:
    """Test F1 with all of the budget; 0: there was no model."""
    return found[1.0].points[-1][1] if found[1.0].points else 0.0


def looked_into(cell: Cell) -> bool:
    """Whether it is known what the search had on its way."""
    return len(cell.points) > 1


def keep_contenders(results: Results, shares: Sequence[float], budget: float, name: str, facts: dict[str, Any]) -> None:
    rows, notes, inside = [], list[str](), 0
    for contender, draws in results.items():
        both = [draw for draw in draws if draw in results.get(OURS, {})]
        means = []
        for share in shares:
            known = {draw: f1_at(contender, found, share, budget) for draw, found in draws.items()}
            values = [value for value in known.values() if value is not None]
            inside += sum(contender == OURS and share not in draws[draw] for draw, value in known.items() if value)
            text = f"{mean(values):.4f}{few(values, draws)}" if values else ""
            beside = {draw: f1_at(OURS, results[OURS][draw], share, budget) for draw in both if known[draw] is not None}
            own = [value for value in beside.values() if value is not None]
            if contender != OURS and own:
                theirs = mean(known[draw] or 0.0 for draw, value in beside.items() if value is not None)
                text += f" ({mean(own):.4f} beside {theirs:.4f}{few(own, draws)})"
            means.append(text)
            lacking = values.count(0.0)
            if lacking:
                notes.append(f"{contender} had no model at {share:.0%} in {lacking} of {len(values)} (F1 counts as 0)")
        worst = "" if contender == OURS or not both else worst_difference(results, contender, both)
        rows.append([contender, str(len(draws)), *means, worst, overrun(contender, draws, budget)])
    header = ["contender", "draws", *(f"{share:.0%}" for share in shares)]
    header += ["ours − it at 100 %, worst", "over the budget at most: model, end (s)"]
    note = (
        f"Mean test macro-F1 at shares of {budget:g} s; in brackets ours beside it on the draws of samples that both "
        "have; a number in square brackets: of so many draws. Ours is what a run with that share ended with, where one "
        f"was made, else the best trial that a run of the whole budget had until then ({inside} of ours). "
        + "".join(f"{text}. " for text in [*notes, *sooner(results, budget)])
        + f"Chart: {name}.svg. {commits(results)}"
    )
    keep(name, header, rows, facts, note)


def few(values: Sequence[float], draws: Mapping[Draw, Any]) -> str:
    """How many there are, if not all."""
    return "" if len(values) == len(draws) else f" [{len(values)}]"


def commits(results: Results) -> str:
    """Which commits the cells are of: a matrix of hours is not run again for every change."""
    cells = [cell for draws in results.values() for by in draws.values() for cell in by.values()]
    found = Counter(str(cell.facts.get("commit", "earlier ones")) for cell in cells)
    return "Cells by commit: " + ", ".join(f"{n} of {commit}" for commit, n in found.most_common()) + "."


def worst_difference(results: Results, rival: str, draws: Iterable[Draw]) -> str:
    by_draw = {draw: whole_f1(results[OURS][draw]) - whole_f1(results[rival][draw]) for draw in draws}
    (task, seed), difference = min(by_draw.items(), key=lambda each: each[1])
    return f"{difference:+.4f} ({task}, seed {seed})"


def overrun(contender: str, draws: Mapping[Draw, Mapping[float, Cell]], budget: float) -> str:
    """The most seconds beyond the budget until the last model was there, and until the program ended."""
    cells = [cell for found in draws.values() for cell in found.values()]
    models = [cell.points[-1][0] - cell.share * budget for cell in cells if cell.points]
    return f"{max(models, default=0):+.0f}, {max(cell.seconds - cell.share * budget for cell in cells):+.0f}"


def sooner(results: Results, budget: float) -> list[str]:
    """How much sooner ours reached the plain loop's final F1, in words."""
    both = [
        draw for draw in results.get(PLAIN, {}) if results[PLAIN][draw][1.0].points and draw in results.get(OURS, {})
    ]
    if not both:
        return []
    ends = [draw for draw in both if len(results[OURS][draw]) > 1]  # else only the end of the whole budget is known
    texts = []
    if ends:
        texts.append(_sooner(results, ends, budget, "where a share's run ends", lambda cell: cell.points[-1:]))
    inside = [draw for draw in both if any(looked_into(cell) for cell in results[OURS][draw].values())]
    if inside:
        texts.append(_sooner(results, inside, budget, "at the incumbents of its searches", lambda cell: cell.points))
    return texts


def _sooner(
    results: Results, draws: Sequence[Draw], budget: float, where: str, points: Callable[[Cell], Sequence[Point]]
) -> str:
    """The same of the points of our cells that count."""
    first, whole = [], []
    for draw in draws:
        theirs = results[PLAIN][draw][1.0].points
        final = theirs[-1][1]
        own = min(at for at, f1 in theirs if f1 >= final)
        ours = [at for cell in results[OURS][draw].values() for at, f1 in points(cell) if f1 >= final]
        first.append(own / min(ours) if ours else 0.0)
        whole.append(budget / min(ours) if ours else 0.0)
    reached = f"{sum(map(bool, first))} of {len(first)} draws"
    return (
        f"Ours looked at {where}, the plain loop's final F1 was reached in {reached}, in the median "
        f"{median(first):.1f} times sooner than by the loop itself and {median(whole):.1f} times sooner than its end"
    )


def keep_tasks(results: Results, name: str, about: dict[str, Any]) -> None:
    """Mean over seeds of the F1 at the whole budget, task by task."""
    tasks = list(dict.fromkeys(task for draws in results.values() for task, _ in draws))
    rows = []
    for task in tasks:
        row = [task]
        for draws in results.values():
            found = [whole_f1(by) for draw, by in draws.items() if draw[0] == task]
            row.append(f"{mean(found):.4f}" + (f" ± {np.std(found):.4f}" if len(found) > 1 else "") if found else "")
        rows.append(row)
    note = "Test macro-F1 at the whole budget: mean and standard deviation over the seeds."
    keep(f"{name}_tasks", ["task", *results], rows, {"circumstances": about, "rows": rows}, note)


def keep_floor(
    results: Results,
    name: str,
    about: dict[str, Any],
    predictions: Callable[[str, int, str], Path],
    labels: Callable[[str, int], Sequence[str]],
) -> None:
    """Differences to the frozen-features floor with their paired 95 % intervals."""
    file = RESULTS / f"{name}_floor.json"
    earlier = [row[:7] for row in json.loads(file.read_text())["rows"]] if file.exists() else []
    rows: list[list[str]] = []
    for floor in FLOORS:
        for task, seed in results.get(floor, {}):
            if (task, seed) not in results.get(OURS, {}):
                continue
            if not results[OURS][task, seed][1.0].points:
                rows.append([task, str(seed), floor, "no model", *[""] * 3, BELOW])
                continue
            f1 = [whole_f1(results[contender][task, seed]) for contender in (OURS, floor)]
            row = [task, str(seed), floor, f"{f1[0]:.4f}", f"{f1[1]:.4f}", f"{f1[0] - f1[1]:+.4f}"]
            files = [predictions(task, seed, contender) for contender in (OURS, floor)]
            if all(file.exists() for file in files):
                row.append(_interval(files, labels(task, seed)))
            else:  # of another WORK, which is gone: its interval was kept
                row += next((kept[6:] for kept in earlier if kept[:6] == row), ["not known"])
            rows.append([*row, BELOW if "… -" in row[6] else ""])
    if rows:
        header = ["task", "seed", "floor", "ours", "its F1", "difference", "95 % interval", ""]
        below, unknown = (sum(row[place] == said for row in rows) for place, said in ((-1, BELOW), (6, "not known")))
        note = (
            "Paired bootstrap of the test samples. Ours is below by more than the interval in "
            f"{below} of {len(rows)}, of which {unknown} are not known."
        )
        keep(f"{name}_floor", header, rows, {"circumstances": about, "rows": rows}, note)


def _interval(files: Sequence[Path], true: Sequence[str]) -> str:
    """Of the difference between what two files predict."""
    number = {label: index for index, label in enumerate(sorted(set(true)))}
    ours, theirs = (codes(json.loads(file.read_text()), number) for file in files)
    n_classes = int(max(len(number) - 1, ours.max(), theirs.max())) + 1  # one that nobody names would count as 0
    low, high = difference_interval(codes(true, number), ours, theirs, "multiclass", n_classes)
    return f"{low:+.4f} … {high:+.4f}"


def codes(names: Sequence[str], number: Mapping[str, int]) -> np.ndarray:
    """Class numbers; a class that no test sample has gets the number after the last."""
    return np.array([number.get(name, len(number)) for name in names], dtype=np.int64)


def draw_chart(results: Results, budget: float, name: str) -> None:
    """Mean test F1 against time, over the draws that all contenders have."""
    common = set.intersection(*(set(draws) for draws in results.values()))
    if not common:
        return
    curves = {
        contender: mean_curve([staircase(contender, draws[draw]) for draw in sorted(common)])
        for contender, draws in results.items()
    }
    latest = max(at for curve in curves.values() for at, _ in curve)
    title = f"Test macro-F1 of the incumbent, mean of {len(common)} draws; no model counts as 0"
    svg = step_chart(curves, title=title, value_name="macro-F1", seconds=(1.0, max(budget, latest) * 1.05))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.svg").write_text(svg)


def staircase(contender: str, found: Mapping[float, Cell]) -> list[Point]:
    """(seconds, F1) in order of time; of those run once a share, the larger budget counts once it has ended."""
    if contender not in ONCE_A_SHARE or (contender in SEARCHES and looked_into(found[1.0])):
        return list(found[1.0].points)
    return sorted(cell.points[-1] for cell in found.values() if cell.points)


def mean_curve(curves: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[float, float]]:
    """The mean of step functions, each 0 before its first step."""
    moments = sorted({at for curve in curves for at, _ in curve})
    values = []
    for moment in moments:
        reached = [[f1 for at, f1 in curve if at <= moment] for curve in curves]
        values.append((moment, mean(each[-1] if each else 0.0 for each in reached)))
    return values
