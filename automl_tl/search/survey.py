"""Before anything trains: every backbone's pass, a score for each of its taps in closed form, and one probe at once.

The scores say where the head should read and which backbones are worth most. They are a prior: recipes start from them
and half of the proposals are drawn by them; nothing is left out of the search for a low one.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from automl_tl.engine.slot import Interrupted
from automl_tl.engine.spread import Crew, spread
from automl_tl.errors import AutomlTlError, RunError
from automl_tl.features.shards import StoreFull
from automl_tl.features.task import PreparedTask
from automl_tl.host import PluginHost
from automl_tl.model.plan import cut
from automl_tl.model.spec import only_head_trains
from automl_tl.plugin import Backbone
from automl_tl.probes.ranking import rank_taps
from automl_tl.search.copies import keep_copies_together
from automl_tl.search.inputs import Stored
from automl_tl.search.part import SHARE as PASSED_BY
from automl_tl.search.part import seconds_to_pass, surely_in_time
from automl_tl.search.passes import ROWS_PASSED, Passed, Progress, pass_backbone
from automl_tl.search.recipes import MAX_RECIPES, recipe_parameters
from automl_tl.search.scores import ScoreOrder, TapScore, score_tap
from automl_tl.search.search import Search, budget_left, run_next
from automl_tl.search.space import SpaceContext
from automl_tl.search.study import completed

SHARE = 0.3  # of the time limit, after which no further backbone is scored
COPIES = "copies_sought"  # attribute of the study


@dataclass(frozen=True, kw_only=True)
class BackboneScore:
    """A backbone's taps, scored, and the order in which to trust them."""

    backbone: str
    taps: tuple[TapScore, ...]
    ranked: tuple[int, ...]  # taps, best first
    passed: Passed

    @property
    def best(self) -> TapScore:
        """The tap to read."""
        return self.taps[self.ranked[0] - 1]


def survey(
    search: Search, crew: Crew, stop: threading.Event, tell: Callable[[str], None], progress: Progress
) -> tuple[Search, tuple[BackboneScore, ...]]:
    """Score every backbone that has transferred weights, cheapest first, and run the best tap's probe after each.

    Returns the search with what was learned, and the scores.
    """
    scores: list[BackboneScore] = []
    context = search.context
    if not budget_left(search):
        return search, ()
    for name in sorted(search.stored, key=lambda name: sum(group.parameters for group in context.backbones[name])):
        limit = search.budget.seconds
        spent = time.time() - search.clock.began  # in this sitting: what one before it passed is stored
        try:
            if scores and limit is not None and not _in_time(search, name, crew, progress, spent):
                tell(
                    f"{name} is not scored beforehand, to leave the time for training; its trials are drawn like any "
                    "other"
                )
                continue
            score = score_backbone(
                search.host,
                search.host.backbone(name),
                search.stored[name],
                search.prepared,
                crew,
                progress,
                metric=search.metric,
                seed=search.seed,
                sitting=search.clock.began,
                find_copies=COPIES not in search.study.user_attrs,
                cuts=_next_cuts(search, name),
            )
        except Interrupted:
            raise
        except AutomlTlError as error:
            if isinstance(error, RunError) and not isinstance(error, StoreFull):
                raise  # the disk: whatever comes next would meet the same
            tell(f"{name} is not scored beforehand: {error}")
            continue
        for note in score.passed.notes:
            tell(note)
        before = search.study.user_attrs.get(ROWS_PASSED, 0)
        search.study.set_user_attr(ROWS_PASSED, before + score.passed.rows)
        search.study.set_user_attr(COPIES, True)
        scores.append(score)
        stored = {**search.stored, name: replace(search.stored[name], network=score.passed.network)}
        search = replace(
            search,
            stored=stored,
            context=replace(search.context, taps={**search.context.taps, name: score.ranked}),
            favored={each.backbone: each.best.f1 for each in sorted(scores, key=lambda each: -each.best.f1)},
        )
        tell(_sentence(score))
        _probe(search, name, crew, stop)
    return replace(search, favored={name: search.favored[name] for name in contenders(scores, context)}), tuple(scores)


def _in_time(search: Search, name: str, crew: Crew, progress: Progress, spent: float) -> bool:
    """Whether one more backbone is passed after so many seconds: there is time left, and it will not take too much."""
    task, limit = search.prepared.task, (search.budget.seconds or math.inf) - search.clock.before
    if spent > SHARE * limit:
        return False
    if surely_in_time(task, len(crew.slots), limit - spent / PASSED_BY):
        return True
    backbone = search.host.backbone(name)
    files = search.prepared.files(backbone, "development")
    network, sitting = search.stored[name], search.clock.began
    seconds = seconds_to_pass(search.host, backbone, network, files, crew, progress, sitting=sitting)
    return time.time() - search.clock.began + seconds <= PASSED_BY * limit


def contenders(scores: Sequence[BackboneScore], context: SpaceContext) -> tuple[str, ...]:
    """The backbones that recipes are for, best first: those that no other surely beats, and always the largest one.

    What is large and general may be best after fine-tuning, though its features are not best as they are (Renggli et
    al., CVPR 2022).
    """
    if not scores:
        return ()
    floor = max(score.best.interval[0] for score in scores)
    largest = max(scores, key=lambda score: sum(group.parameters for group in context.backbones[score.backbone]))
    ranked = sorted(scores, key=lambda score: -score.best.f1)
    return tuple(score.backbone for score in ranked if score is largest or score.best.interval[1] >= floor)


def _probe(search: Search, backbone: str, crew: Crew, stop: threading.Event) -> None:
    """Run the first recipe of a backbone at once: from then on there is a model to deploy."""
    if not search.budget.recipes:
        return
    for name, _, parameters in recipe_parameters(search.space, search.context, 1, (backbone,)):
        known = {trial.user_attrs.get("recipe") for trial in search.study.get_trials(deepcopy=False)}
        if name not in known:
            search.study.enqueue_trial(parameters, user_attrs={"recipe": name})
            if not completed(search.study):  # a model there shall be, however short the time
                search = replace(search, budget=replace(search.budget, deadline=None))
            run_next(search, crew.slots[0], crew.children, stop, threading.Lock())


def _next_cuts(search: Search, backbone: str) -> tuple[int, ...]:
    """Where the recipes that train layer groups of a text model begin, in their order, if the last tap is the best.

    To pass the texts again up to there would take most of the time of a first pass. The last groups are also trained by
    a recipe that asks for no tap. Of images nothing of the kind is kept: where they are read best is seldom at the end.
    """
    context = search.context
    if context.modality != "text" or not search.budget.recipes:
        return ()
    guessed = replace(context, taps={**context.taps, backbone: (len(context.backbones[backbone]),)})
    found = dict[int, None]()
    for _, spec, _ in recipe_parameters(search.space, guessed, MAX_RECIPES, (backbone,)):
        reads_stored = not spec.joint_source_weight and spec.regularization.augmentation == "none"
        if reads_stored and not only_head_trains(spec) and cut(spec.plan):
            found[cut(spec.plan)] = None
    return tuple(found)


def _sentence(score: BackboneScore) -> str:
    best, last = score.best, score.taps[-1]
    low, high = best.interval
    beside = "" if best.tap == last.tap else f"; the last tap has {last.f1:.3f}"
    return (
        f"{score.backbone}: best read at {best.group}, {best.tap} of {len(score.taps)} layer groups, "
        f"left-out F1 {best.f1:.3f} [{low:.3f}, {high:.3f}]{beside}"
    )


def score_backbone(
    host: PluginHost,
    backbone: Backbone,
    stored: Stored,
    prepared: PreparedTask,
    crew: Crew,
    progress: Progress,
    *,
    metric: str,
    seed: int,
    sitting: float,
    diagnose: bool = False,
    find_copies: bool = False,
    cuts: Sequence[int] = (),
) -> BackboneScore:
    """Pass all samples that were never passed, and score every tap on up to MOST_ROWS training samples.

    `cuts` are those that training will begin at, see `pass_backbone`.

    Raises AutomlTlError when the backbone's outputs cannot be had.
    """
    files = prepared.files(backbone, "development")
    passed = pass_backbone(host, backbone, stored, [files], crew, progress, sitting=sitting, cuts=cuts)
    if find_copies and (note := keep_copies_together(host.sources, backbone, passed.network, prepared, crew, sitting)):
        passed = replace(passed, notes=(*passed.notes, note))
    development = prepared.development()
    if development.given is not None:
        files = files.only(np.arange(development.n_train))
    orders = [
        ScoreOrder(
            sources=host.sources,
            sitting=sitting,
            backbone=backbone.name,
            network=passed.network,
            files=files,
            tap=tap,
            kind=prepared.task.kind,
            n_outputs=prepared.task.n_outputs,
            metric=metric,
            seed=seed,
            diagnose=diagnose,
        )
        for tap in range(len(backbone.layer_groups), 0, -1)  # the widest first, so that none of them is left for last
    ]
    found = spread(
        crew,
        lambda slot, order: crew.children.run(slot, score_tap, order),
        orders,
        tick=lambda done: progress(f"scoring {backbone.name}", done, len(orders)),
    )
    scores = tuple(sorted(found, key=lambda score: score.tap))
    ranked = rank_taps(
        {score.tap: (score.f1, score.knn) for score in scores}, log_loss={score.tap: score.log_loss for score in scores}
    )
    return BackboneScore(backbone=backbone.name, taps=scores, ranked=tuple(ranked), passed=passed)
