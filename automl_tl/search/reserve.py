"""When a search ends: as early as what comes after it needs it to, and no earlier."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from automl_tl.search.finalists import ENOUGH, LONGER, SPARED, Finalist, finalists_of, plan_folds, spared_share
from automl_tl.search.study import completed
from automl_tl.search.trial import STATE

if TYPE_CHECKING:
    from automl_tl.search.search import Search

CLOSE = 0.02  # of the best score, within which something trained is worth confirming
TEST_SHARE = 0.1  # of the time limit that the test split may take before the limit is overrun instead


def leave_test_its_time(search: Search) -> Search:
    """The search with all its moments earlier by what the test split will take, with which a run ends.

    As long as it takes to pass the backbone that scored best, where that is known.
    """
    budget, best = search.budget, next((search.stored.get(name) for name in search.favored), None)
    if budget.end is None or budget.deadline is None or budget.last_moment is None or best is None:
        return search
    passing = len(search.prepared.task.test) * best.network.seconds_per_row
    seconds = min(passing, TEST_SHARE * (budget.end - search.clock.began))
    earlier = replace(
        budget,
        deadline=budget.deadline - seconds,
        last_moment=budget.last_moment - seconds,
        end=budget.end - seconds,
    )
    return replace(search, budget=earlier)


def deadline_of(search: Search) -> float | None:
    """`time.time()` at which the search ends; None: when its trials are done.

    That leaves the share of the time that was asked for to the finish, while there is something to confirm and it can
    be trained anew on folds in that time. Else it is better spent on the search, up to the last moment: when nothing
    that was trained comes near the probes, or when what was trained takes too long, but for what it needs to learn from
    all samples.
    """
    budget = search.budget
    if budget.deadline is None or budget.last_moment is None or budget.end is None:
        return budget.deadline
    ranked = completed(search.study)
    trained = [trial.value or 0.0 for trial in ranked if trial.user_attrs["epochs"]]
    if not trained or max(trained) < (ranked[0].value or 0.0) - CLOSE:
        return budget.last_moment
    finalists = finalists_of(search.study, ranked, budget.finish.finalists)
    if _has_folds(search, finalists, budget.end - max(budget.deadline, time.time())):
        return budget.deadline
    return max(budget.deadline, min(budget.last_moment, budget.end - _seconds_without_folds(search, finalists)))


def _has_folds(search: Search, finalists: list[Finalist], seconds: float) -> bool:
    """Whether finalists will be trained anew: what a given validation split has judged only to be averaged.

    Which of them are fast enough, where that is limited, nobody knows yet.
    """
    settings = search.budget.finish
    if search.prepared.task.validation_given:
        return settings.model == "soup"
    if settings.latency_ms is not None:
        return True
    return bool(plan_folds(finalists, seconds, search.budget.slots, spared=spared_share(settings.model)).folds)


def _seconds_without_folds(search: Search, finalists: list[Finalist]) -> float:
    """What a finish takes without folds: heads beside what was trained, and the best on all samples."""
    best = next(each for each in finalists if not each.floor)
    heads = sum(each.seconds for each in finalists if each.floor)
    goes_on = (search.directory / str(best.number) / STATE).exists()
    learning = best.further_seconds(ENOUGH) if goes_on else LONGER * best.seconds
    return heads + max(learning, SPARED * best.seconds)
