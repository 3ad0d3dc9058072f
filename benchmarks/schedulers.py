"""Which scheduler finds good configurations sooner? All of them replayed on the same recorded learning curves.

`record_curves.py` trained each configuration to the end and wrote its score and seconds at every rung. Here workers
that are simulated, one event after another, train them again in recorded seconds, in the order in which a random search
would propose them, while a scheduler decides who goes on. `hyperband` is Optuna's own HyperbandPruner in a study of its
own. Regret is what the incumbent, the highest validation score seen so far, lacks to the highest there is, as a share
of the distance from the lowest there is; it is 1 before the first score.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import optuna
from results import RESULTS, circumstances, keep

from automl_tl.config import Scheduler
from automl_tl.search.schedule import ETA, Climb, Promote, next_step

SCHEDULERS: tuple[Scheduler, ...] = get_args(Scheduler)
OURS: Scheduler = "promotion"
MOMENTS = (0.1, 0.25, 0.5, 1.0)  # of the budget
GRID = np.linspace(0.01, 1.0, 100)


@dataclass(frozen=True, slots=True)
class Recorded:
    """One configuration: what it scored at each rung that it reached, and the seconds from rung to rung."""

    scores: tuple[float, ...]
    seconds: tuple[float, ...]
    test: tuple[float, ...] = ()  # scores of the test samples, which no scheduler sees


@dataclass(frozen=True, slots=True)
class Pool:
    """All that was recorded on one task."""

    task: str
    rungs: tuple[int, ...]  # epochs in all
    configurations: tuple[Recorded, ...]


@dataclass(frozen=True, slots=True)
class Seen:
    """A score, and when it became known."""

    at: float  # seconds from the start
    configuration: int
    rung: int


@dataclass(slots=True)
class Work:
    """A configuration in a replay."""

    recorded: Recorded
    target: int  # rung that it is being trained to
    rung: int = -1  # rung that it has reached
    running: bool = True
    pruned: bool = False
    trial: optuna.Trial | None = None  # of the study whose pruner watches it

    @property
    def final(self) -> bool:
        return self.pruned or self.rung == len(self.recorded.scores) - 1

    def climb(self, number: int) -> Climb:
        reached = self.rung + 1
        scores, seconds = self.recorded.scores[:reached], self.recorded.seconds[:reached]
        return Climb(number=number, scores=scores, seconds=seconds, running=self.running, final=self.final)


@dataclass(slots=True)
class Replay:
    """One search on recorded curves."""

    pool: Pool
    order: Sequence[int]  # of proposals
    scheduler: Scheduler
    seconds: float  # of each worker
    study: optuna.Study | None = None
    works: dict[int, Work] = field(default_factory=dict)
    queue: list[tuple[float, int]] = field(default_factory=list)  # when which configuration is at its next rung

    def run(self, workers: int) -> Iterator[Seen]:
        """All scores that become known in time, in this order."""
        now, idle = 0.0, workers
        while True:
            while idle and self.start_one(now):
                idle -= 1
            if not self.queue:
                return
            now, number = heapq.heappop(self.queue)
            if now > self.seconds:
                return
            work = self.works[number]
            work.rung += 1
            yield Seen(now, number, work.rung)
            self.ask_pruner(work)
            if work.final or work.rung == work.target:
                work.running = False
                idle += 1
            else:
                self.train(number, now)

    def start_one(self, now: float) -> bool:
        """Let the scheduler decide for a free worker; False: it has nothing to do."""
        step = next_step(
            [work.climb(number) for number, work in self.works.items()],
            scheduler=self.scheduler,
            rungs=self.pool.rungs,
            may_propose=len(self.works) < len(self.order),
            seconds_left=self.seconds - now,
            seconds_total=self.seconds,
        )
        if step is None:
            return False
        if isinstance(step, Promote):
            number, work = step.number, self.works[step.number]
            work.running, work.target = True, step.rung
        else:
            number = self.order[len(self.works)]
            trial = None if self.study is None else self.study.ask()
            self.works[number] = Work(self.pool.configurations[number], step.rung, trial=trial)
        self.train(number, now)
        return True

    def train(self, number: int, now: float) -> None:
        """Send a configuration to its next rung."""
        work = self.works[number]
        heapq.heappush(self.queue, (now + work.recorded.seconds[work.rung + 1], number))

    def ask_pruner(self, work: Work) -> None:
        """Report a score to the study. Its pruner decides at powers of `ETA` only, so rungs are all it has to see."""
        if self.study is None or work.trial is None:
            return
        work.trial.report(work.recorded.scores[work.rung], self.pool.rungs[work.rung])
        work.pruned = not work.final and work.trial.should_prune()
        if work.pruned:
            self.study.tell(work.trial, state=optuna.trial.TrialState.PRUNED)
        elif work.final:
            self.study.tell(work.trial, work.recorded.scores[work.rung])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curves", type=Path, default=RESULTS / "curves")
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument(
        "--budgets",
        nargs="+",
        type=float,
        default=[0.05, 0.15, 0.4],
        help="seconds of all workers together, as a share of what training every configuration to the end takes",
    )
    parser.add_argument("--orders", type=int, default=20, help="random orders of the proposals")
    options = parser.parse_args()
    about = circumstances()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    pools = [read_pool(path) for path in sorted(options.curves.glob("*.json"))]
    if not pools:
        raise SystemExit(f"no curves in {options.curves}: run `python benchmarks/record_curves.py`")
    found = compare(pools, options.workers, options.budgets, options.orders)
    summary = {workers: summarize(found[workers]) for workers in options.workers}
    keep(
        "schedulers",
        ["workers", "scheduler", *(f"at {moment:.0%}" for moment in MOMENTS), "mean", "minus ours", "test, at the end"],
        [row(workers, name, facts) for workers, each in summary.items() for name, facts in each.items()],
        {
            "circumstances": about,
            "options": {**vars(options), "curves": str(options.curves.name)},
            "pools": {pool.task: len(pool.configurations) for pool in pools},
            "summary": summary,
            "lowest_mean": {workers: lowest(each) for workers, each in summary.items()},
        },
        f"Normalized regret, mean over {len(pools)} tasks, {options.orders} orders of proposals and budgets of "
        f"{', '.join(f'{share:.0%}' for share in options.budgets)} of the seconds that all configurations take; `mean` "
        "is over the time of the search as well. `minus ours`: paired difference of that mean to `promotion`, with its "
        "standard error over orders. The last column is of the test scores of the incumbent.",
    )


def read_pool(path: Path) -> Pool:
    """Read what `record_curves.py` wrote."""
    facts = json.loads(path.read_text())
    configurations = tuple(
        Recorded(tuple(each["scores"]), tuple(each["seconds"]), tuple(each["test"]))
        for each in facts["configurations"]
        if each["scores"]
    )
    return Pool(facts["task"], tuple(facts["rungs"]), configurations)


Regrets = dict[str, list[dict[str, Any]]]


def compare(pools: Sequence[Pool], workers: Sequence[int], budgets: Sequence[float], orders: int) -> dict[int, Regrets]:
    """By number of workers and scheduler: regrets over time of every task, budget and order, always in this order."""
    found: dict[int, Regrets] = {number: {name: [] for name in SCHEDULERS} for number in workers}
    for pool in pools:
        whole = sum(sum(each.seconds) for each in pool.configurations)
        for number in workers:
            for share in budgets:
                for seed in range(orders):
                    order = np.random.default_rng(seed).permutation(len(pool.configurations)).tolist()
                    for name in SCHEDULERS:
                        seconds = share * whole / number
                        seen = replay(pool, order, name, workers=number, seconds=seconds, seed=seed)
                        found[number][name].append({"order": seed, **regrets(pool, seen, seconds)})
        print(f"replayed {pool.task}", flush=True)
    return found


def replay(
    pool: Pool, order: Sequence[int], scheduler: Scheduler, *, workers: int, seconds: float, seed: int
) -> list[Seen]:
    """Search on the recorded curves for so many seconds; all scores that became known."""
    study = None
    if scheduler == "hyperband":
        pruner = optuna.pruners.HyperbandPruner(1, pool.rungs[-1], ETA)
        sampler = optuna.samplers.RandomSampler(seed=0)  # it is never asked for anything
        study = optuna.create_study(study_name=f"{seed}", direction="maximize", sampler=sampler, pruner=pruner)
    return list(Replay(pool, order, scheduler, seconds, study).run(workers))


def regrets(pool: Pool, seen: Sequence[Seen], seconds: float) -> dict[str, Any]:
    """Normalized regret of the incumbent over a grid of the budget, and that of its test score at the end."""
    scores = [score for each in pool.configurations for score in each.scores]
    tests = [score for each in pool.configurations for score in each.test]
    moments, values = [0.0], [1.0]
    best, test = -math.inf, math.nan
    for each in seen:
        recorded = pool.configurations[each.configuration]
        if recorded.scores[each.rung] > best:
            best = recorded.scores[each.rung]
            moments.append(each.at / seconds)
            values.append(normalized(best, scores))
            test = normalized(recorded.test[each.rung], tests) if recorded.test else math.nan
    last = np.searchsorted(moments, GRID, side="right") - 1
    return {"over_time": np.array(values)[last], "test": test}


def normalized(score: float, scores: Sequence[float]) -> float:
    """What a score lacks to the highest one, as a share of the distance from the lowest."""
    return (max(scores) - score) / max(1e-12, max(scores) - min(scores))


def summarize(found: Regrets) -> dict[str, dict[str, Any]]:
    """Means over all replays, and how the schedulers differ from ours in the same ones."""
    ours = _by_order(found[OURS])
    return {
        name: {
            "at": {moment: float(np.mean([each["over_time"][_place(moment)] for each in runs])) for moment in MOMENTS},
            "mean": float(np.mean([each["over_time"] for each in runs])),
            "minus_ours": float(np.mean(_by_order(runs) - ours)),
            "standard_error": float(np.std(_by_order(runs) - ours, ddof=1) / math.sqrt(len(ours)))
            if len(ours) > 1
            else 0.0,
            "test": float(np.nanmean([1.0 if math.isnan(each["test"]) else each["test"] for each in runs])),
        }
        for name, runs in found.items()
    }


def lowest(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """The scheduler with the lowest mean regret."""
    return min(summary, key=lambda name: float(summary[name]["mean"]))


def _by_order(runs: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """The mean regret of each order of proposals; tasks and budgets of one order are not independent of each other."""
    orders = sorted({each["order"] for each in runs})
    return np.array([np.mean([each["over_time"] for each in runs if each["order"] == order]) for order in orders])


def _place(moment: float) -> int:
    return int(np.argmin(np.abs(GRID - moment)))


def row(workers: int, name: str, facts: Mapping[str, Any]) -> list[str]:
    difference = "" if name == OURS else f"{facts['minus_ours']:+.4f} ± {facts['standard_error']:.4f}"
    at = [f"{facts['at'][moment]:.3f}" for moment in MOMENTS]
    return [str(workers), name, *at, f"{facts['mean']:.4f}", difference, f"{facts['test']:.3f}"]


if __name__ == "__main__":
    main()
