"""Which scheduler finds good configurations sooner? All of them replayed on the same recorded learning curves.

`record_curves.py` trained each configuration to the end and wrote its score and seconds at every rung. Here workers
that are simulated, one event after another, train them again in recorded seconds, in the order in which a search might
propose them, while a scheduler decides who goes on. Who goes on later pays for beginning again; who goes on at once
does not. `hyperband` is Optuna's own HyperbandPruner in a study of its own. Every rung counts once it is reached,
though in a search `hyperband` and `none` tell of a configuration only when it has ended. What the deadline cuts off
between two rungs scores as a line through them says, over logarithms of the epochs that were done.

Regret is what the incumbent, the highest validation score seen so far, lacks to the highest there is, as a share of the
distance from the lowest there is; it is 1 before the first score. A budget is a search of its own, with a deadline that
its scheduler knows.
"""

from __future__ import annotations

import argparse
import gzip
import heapq
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product, takewhile
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, get_args

import numpy as np
import optuna
from results import RESULTS, circumstances, keep

from automl_tl.config import Scheduler
from automl_tl.search.schedule import ETA, Climb, Promote, next_step

SCHEDULERS: tuple[Scheduler, ...] = get_args(Scheduler)
OURS: Scheduler = "promotion"
CURVES = RESULTS / "schedulers_curves.json.gz"
WHOLE = 4  # trainings to the end, of average length, that all workers together have time for: a run of some minutes
BUDGETS = (0.1, 0.25, 0.5, 1.0)  # of it
WORK_ERROR = 0.35  # standard deviation of ln(seconds / work), as `foreseen_work.py` finds it
GRID = np.linspace(0.01, 1.0, 100)

Proposals = Literal["any order", "recipes first"]
PROPOSALS: tuple[Proposals, ...] = get_args(Proposals)


@dataclass(frozen=True, slots=True)
class Recorded:
    """One configuration: what it scored at each rung that it reached, and the seconds from rung to rung."""

    scores: tuple[float, ...]
    seconds: tuple[float, ...]
    test: tuple[float, ...]  # scores of the test samples, which no scheduler sees
    again: float = 0.0  # seconds that it takes to go on later
    recipe: bool = False  # a search proposes it among the first
    work: float = 1.0  # what is expected of the seconds to its first rung, before it is proposed


@dataclass(frozen=True, slots=True)
class Pool:
    """All that was recorded on one task."""

    task: str
    rungs: tuple[int, ...]  # epochs in all
    configurations: tuple[Recorded, ...]
    probe: float | None = None  # score of the head that a search solves for before it trains anything

    @property
    def training(self) -> float:
        """Seconds of a training to the end, on average."""
        return fmean(sum(each.seconds) for each in self.configurations)


@dataclass(frozen=True, slots=True)
class Seen:
    """A score, and when it became known."""

    at: float  # seconds from the start
    configuration: int
    rung: int  # that it has reached, or was on its way to when the time was over
    score: float
    test: float


@dataclass(slots=True)
class Work:
    """A configuration in a replay."""

    recorded: Recorded
    target: int  # rung that it is being trained to
    seconds: list[float] = field(default_factory=list)  # that each rung took
    running: bool = True
    pruned: bool = False
    trial: optuna.Trial | None = None  # of the study whose pruner watches it

    @property
    def rung(self) -> int:
        """The rung that it has reached."""
        return len(self.seconds) - 1

    @property
    def final(self) -> bool:
        return self.pruned or self.rung == len(self.recorded.scores) - 1

    def climb(self, number: int) -> Climb:
        scores = self.recorded.scores[: len(self.seconds)]
        return Climb(
            number=number,
            scores=scores,
            seconds=tuple(self.seconds),
            work=self.recorded.work,
            running=self.running,
            final=self.final,
        )


@dataclass(slots=True)
class Replay:
    """One search on recorded curves."""

    pool: Pool
    order: Sequence[int]  # of proposals
    scheduler: Scheduler
    seconds: float  # of each worker
    study: optuna.Study | None = None
    left: list[int] = field(init=False)  # to be proposed
    works: dict[int, Work] = field(default_factory=dict)
    queue: list[tuple[float, int, float]] = field(default_factory=list)  # when, which one, and the seconds it took

    def __post_init__(self) -> None:
        self.left = list(self.order)

    def run(self, workers: int) -> Iterator[Seen]:
        """All scores that become known in time, in this order."""
        now, idle = 0.0, workers
        while True:
            while idle and self.start_one(now):
                idle -= 1
            if not self.queue:
                return
            now, number, took = heapq.heappop(self.queue)
            work = self.works[number]
            if now > self.seconds:
                yield from self.cut_off(number, now - self.seconds)
                continue
            work.seconds.append(took)
            yield Seen(now, number, work.rung, work.recorded.scores[work.rung], work.recorded.test[work.rung])
            self.ask_pruner(work)
            if work.final or work.rung == work.target:
                work.running = False
                idle += 1
            else:
                self.train(number, now)

    def cut_off(self, number: int, lacking: float) -> Iterator[Seen]:
        """What is known of a configuration that lacks so many seconds to its next rung."""
        work = self.works[number]
        if work.rung < 0:
            return
        below, above = self.pool.rungs[work.rung : work.rung + 2]
        share = 1 - lacking / work.recorded.seconds[work.rung + 1]
        done = below + max(0, math.floor(share * (above - below)))
        part = math.log(done / below) / math.log(above / below)
        score, test = (
            (1 - part) * each[work.rung] + part * each[work.rung + 1]
            for each in (work.recorded.scores, work.recorded.test)
        )
        if done > below:
            yield Seen(self.seconds, number, work.rung + 1, score, test)

    def start_one(self, now: float) -> bool:
        """Let the scheduler decide for a free worker; False: it has nothing to do."""
        scores = [work.recorded.scores[rung] for work in self.works.values() for rung in range(work.rung + 1)]
        known = scores if self.pool.probe is None else [*scores, self.pool.probe]
        step = next_step(
            [work.climb(number) for number, work in self.works.items()],
            scheduler=self.scheduler,
            rungs=self.pool.rungs,
            may_propose=bool(self.left),
            seconds_left=self.seconds - now,
            seconds_total=self.seconds,
            best=max(known, default=None),
            works=self.coming(),
        )
        if step is None:
            return False
        if isinstance(step, Promote):
            number, work = step.number, self.works[step.number]
            work.running, work.target = True, step.rung
            self.train(number, now, work.recorded.again)
        else:
            number = self.left.pop(step.place)
            trial = None if self.study is None else self.study.ask()
            self.works[number] = Work(self.pool.configurations[number], step.rung, trial=trial)
            self.train(number, now)
        return True

    def coming(self) -> list[float | None]:
        """The work of the recipes whose turn it is; they wait. What comes after them is still to be drawn."""
        left = (self.pool.configurations[number] for number in self.left)
        recipes: list[float | None] = [recorded.work for recorded in takewhile(lambda recorded: recorded.recipe, left)]
        return recipes if recipes and len(recipes) == len(self.left) else [*recipes, None]

    def train(self, number: int, now: float, beginning: float = 0.0) -> None:
        """Send a configuration to its next rung."""
        work = self.works[number]
        seconds = beginning + work.recorded.seconds[work.rung + 1]
        heapq.heappush(self.queue, (now + seconds, number, seconds))

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
    parser.add_argument("--curves", type=Path, default=CURVES)
    parser.add_argument("--tasks", nargs="+", help="some of those that were recorded")
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--orders", type=int, default=50, help="random orders of the proposals")
    options = parser.parse_args()
    about = circumstances()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    pools = [pool for pool in read_pools(options.curves) if pool.task in (options.tasks or [pool.task])]
    if not pools:
        raise SystemExit(f"no curves in {options.curves}: run `python benchmarks/record_curves.py`")
    runs = compare(pools, options.workers, options.orders)
    rows, summaries = [], []
    for proposals, workers in product(PROPOSALS, (*options.workers, None)):
        chosen = [run for run in runs if run.proposals == proposals and workers in (run.workers, None)]
        for name, facts in summarize(chosen).items():
            rows.append(row(proposals, workers, name, facts))
            summaries.append({"proposals": proposals, "workers": workers, "scheduler": name, **facts})
    header = ["proposals", "workers", "scheduler", *(f"{WHOLE * share:g} trainings" for share in BUDGETS)]
    keep(
        "schedulers",
        [*header, "mean", "minus ours", "lower on", "over time", "test", "test F1 lost"],
        rows,
        {
            "circumstances": about,
            "pools": {pool.task: len(pool.configurations) for pool in pools},
            "orders": options.orders,
            "summaries": summaries,
            "tasks": {
                f"{pool.task}, {proposals}": summarize(
                    [run for run in runs if run.task == pool.task and run.proposals == proposals]
                )
                for pool, proposals in product(pools, PROPOSALS)
            },
        },
        "Normalized validation regret when the budget is spent, by budget, in trainings to the end that all workers "
        f"together have time for; mean over {len(pools)} tasks ({', '.join(pool.task for pool in pools)}) and "
        f"{options.orders} orders of proposals. `mean`: of the four budgets, with its standard error over orders; "
        f"`minus ours`: its paired difference to `{OURS}`; `lower on`: on how many tasks it has the lower mean of the "
        "two. `over time`: mean regret over all of the time, not at its end. `test`: normalized regret of the "
        "incumbent's test score at the end, and what it lacks to the best in F1 points. Proposals ran out in "
        f"{fmean(run.ran_out for run in runs):.1%} of the replays. Seconds are of the processor, as recorded.",
    )


def read_curves(path: Path) -> dict[str, Any]:
    """What was recorded so far, by task."""
    if not path.exists():
        return {}
    with gzip.open(path, "rt", encoding="utf-8") as file:
        found: dict[str, Any] = json.load(file)
    return found


def read_pools(path: Path) -> list[Pool]:
    """Read what `record_curves.py` wrote."""
    return [
        Pool(
            task,
            tuple(facts["rungs"]),
            tuple(
                Recorded(
                    tuple(each["scores"]),
                    tuple(each["seconds"]),
                    tuple(each["test"]),
                    each.get("again", 0.0),
                    each.get("kind") == "recipe",
                    each["seconds"][0] * math.exp(WORK_ERROR * np.random.default_rng(number).normal()),
                )
                for number, each in enumerate(facts["configurations"])
                if each["scores"]
            ),
            facts.get("probe"),
        )
        for task, facts in read_curves(path).items()
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Regrets:
    """What came of one replay."""

    task: str
    workers: int
    budget: float
    proposals: Proposals
    order: int
    scheduler: Scheduler
    over_time: np.ndarray  # (len(GRID),) of the incumbent's validation score
    test: float  # of the incumbent's test score, at the end
    points: float  # of F1, that this test score lacks to the highest
    ran_out: bool  # everything in the pool had been proposed

    @property
    def end(self) -> float:
        """Of the incumbent's validation score, when the budget is spent."""
        return float(self.over_time[-1])


def compare(pools: Sequence[Pool], workers: Sequence[int], orders: int) -> list[Regrets]:
    """Replay every scheduler on every task, with so many workers, every budget, and the same orders of proposals."""
    found = []
    for pool in pools:
        for number, share, proposals, seed in product(workers, BUDGETS, PROPOSALS, range(orders)):
            seconds = share * WHOLE * pool.training / number
            order = proposal_order(pool, proposals, seed)
            for name in SCHEDULERS:
                seen = replay(pool, order, name, workers=number, seconds=seconds, seed=seed)
                over_time, test, points = regrets(pool, seen, seconds)
                found.append(
                    Regrets(
                        task=pool.task,
                        workers=number,
                        budget=share,
                        proposals=proposals,
                        order=seed,
                        scheduler=name,
                        over_time=over_time,
                        test=test,
                        points=points,
                        ran_out=len({each.configuration for each in seen}) == len(pool.configurations),
                    )
                )
        print(f"replayed {pool.task}", flush=True)
    return found


def proposal_order(pool: Pool, proposals: Proposals, seed: int) -> list[int]:
    """Which configuration is proposed when; recipes are recorded in the order in which a search proposes them."""
    drawn: list[int] = np.random.default_rng(seed).permutation(len(pool.configurations)).tolist()
    if proposals == "any order":
        return drawn
    recipes = [number for number, each in enumerate(pool.configurations) if each.recipe]
    return [*recipes, *(number for number in drawn if number not in recipes)]


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


def regrets(pool: Pool, seen: Sequence[Seen], seconds: float) -> tuple[np.ndarray, float, float]:
    """Regret of the incumbent over a grid of the budget, that of its test score at the end, and this in F1 points."""
    scores = [score for each in pool.configurations for score in each.scores]
    tests = [score for each in pool.configurations for score in each.test]
    moments, values = [0.0], [1.0]
    best, test = -math.inf, min(tests)
    for each in seen:
        if each.score > best:
            best, test = each.score, each.test
            moments.append(each.at / seconds)
            values.append(normalized(best, scores))
    last = np.searchsorted(moments, GRID, side="right") - 1
    return np.array(values)[last], normalized(test, tests), 100 * (max(tests) - test)


def normalized(score: float, scores: Sequence[float]) -> float:
    """What a score lacks to the highest one, as a share of the distance from the lowest."""
    return (max(scores) - score) / max(1e-12, max(scores) - min(scores))


def summarize(runs: Sequence[Regrets]) -> dict[str, dict[str, Any]]:
    """Means over these replays by scheduler, and how the others differ from ours in the same ones."""
    found: dict[str, dict[str, Any]] = {}
    ours = by_order(runs, OURS)
    for name in SCHEDULERS:
        of_it = [run for run in runs if run.scheduler == name]
        own = by_order(runs, name)
        found[name] = {
            "at": {f"{share:g}": fmean(run.end for run in of_it if run.budget == share) for share in BUDGETS},
            "mean": float(own.mean()),
            "standard_error": error_of(own),
            "minus_ours": float((own - ours).mean()),
            "standard_error_of_difference": error_of(own - ours),
            "lower_on": lower_on(runs, name),
            "over_time": fmean(float(run.over_time.mean()) for run in of_it),
            "test": fmean(run.test for run in of_it),
            "test_points": fmean(run.points for run in of_it),
        }
    return found


def by_order(runs: Sequence[Regrets], scheduler: Scheduler) -> np.ndarray:
    """The mean regret of each order of proposals; tasks and budgets of one order are not independent of each other."""
    found: dict[int, list[float]] = {}
    for run in runs:
        if run.scheduler == scheduler:
            found.setdefault(run.order, []).append(run.end)
    return np.array([fmean(found[order]) for order in sorted(found)])


def lower_on(runs: Sequence[Regrets], scheduler: Scheduler) -> int:
    """On how many tasks its mean regret is lower than that of ours."""
    each_task = ([run for run in runs if run.task == task] for task in {run.task for run in runs})
    return sum(bool(by_order(each, scheduler).mean() < by_order(each, OURS).mean()) for each in each_task)


def error_of(values: np.ndarray) -> float:
    """Standard error of the mean."""
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0


def row(proposals: Proposals, workers: int | None, name: str, facts: Mapping[str, Any]) -> list[str]:
    """A row of the table; no number of workers: all of them."""
    difference = "" if name == OURS else f"{facts['minus_ours']:+.4f} ± {facts['standard_error_of_difference']:.4f}"
    return [
        proposals,
        "all" if workers is None else str(workers),
        name,
        *(f"{each:.4f}" for each in facts["at"].values()),
        f"{facts['mean']:.4f} ± {facts['standard_error']:.4f}",
        difference,
        "" if name == OURS else str(facts["lower_on"]),
        f"{facts['over_time']:.4f}",
        f"{facts['test']:.4f}",
        f"{facts['test_points']:.2f}",
    ]


if __name__ == "__main__":
    main()
