"""The tables of `automl-tl score`, for people and as plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from automl_tl.search.survey import BackboneScore


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A backbone's taps beside the same taps with random weights."""

    transferred: BackboneScore
    random: BackboneScore | None
    parameters: int
    seconds_per_1000: float  # of one pass, in one slot
    n_rows: int  # that were passed now, of both networks; the others were stored


@dataclass(frozen=True, kw_only=True)
class ScoreTable:
    """What `automl-tl score` shows."""

    task: str
    metric: str
    n_train: int
    raw_inputs: float
    backbones: tuple[Scored, ...]  # best first


def print_scores(console: Console, table: ScoreTable) -> None:
    """Print one table a backbone, the best backbone first, and what to do next."""
    for scored in table.backbones:
        console.print(_table(scored, table.metric))
    console.print(
        f"raw inputs without a backbone: {table.raw_inputs:.3f}. Scores are of {table.n_train} training samples, each "
        "left out of its own fit (ridge); random: the same architecture with random weights; gain: what was "
        "transferred. The test split was not looked at.",
        highlight=False,
    )
    best = table.backbones[0]
    console.print(
        f"best read: [bold]{best.transferred.backbone}[/bold] at {best.transferred.best.group}. "
        "`automl-tl search` starts from these features.",
        highlight=False,
    )


def scores_json(table: ScoreTable) -> dict[str, Any]:
    """The same as plain data."""
    return {
        "task": table.task,
        "metric": table.metric,
        "n_train": table.n_train,
        "raw_inputs": table.raw_inputs,
        "backbones": [
            {
                "backbone": scored.transferred.backbone,
                "parameters": scored.parameters,
                "seconds_per_1000": scored.seconds_per_1000,
                "rows_passed": scored.n_rows,
                "ranked": list(scored.transferred.ranked),
                "taps": [asdict(tap) for tap in scored.transferred.taps],
                "random": [tap.f1 for tap in scored.random.taps] if scored.random else None,
            }
            for scored in table.backbones
        ],
    }


def _table(scored: Scored, metric: str) -> Table:
    score = scored.transferred
    title = (
        f"{score.backbone}: {scored.parameters:,} parameters, "
        f"{scored.seconds_per_1000:.1f} s a slot to pass 1,000 samples"
    )
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("tap", justify="right")
    table.add_column("group")
    for name in (metric, "90 % interval", "kNN", "LogME", "random", "gain"):
        table.add_column(name, justify="right", no_wrap=True)
    for index, tap in enumerate(score.taps):
        drawn = scored.random.taps[index].f1 if scored.random else None
        low, high = tap.interval
        table.add_row(
            str(tap.tap),
            tap.group,
            f"{tap.f1:.3f}",
            f"{low:.3f}–{high:.3f}",
            f"{tap.knn:.3f}",
            f"{tap.diagnostics['logme']:+.3f}" if tap.diagnostics else "",
            "" if drawn is None else f"{drawn:.3f}",
            "" if drawn is None else f"{tap.f1 - drawn:+.3f}",
            style="green" if tap.tap == score.ranked[0] else None,
        )
    return table
