"""From a finished search to the model that is handed over; nothing here has seen the test split.

confirm    the best few, trained anew on the same folds
choose     the cheapest that is as good as the best, or several together, or an average of weights
adjust     what they say, where the metric gains by it
refit      on all development samples
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from automl_tl.config import FinishConfig
from automl_tl.engine.spread import Crew
from automl_tl.errors import TrialError
from automl_tl.finish.adjust import fit_adjustment
from automl_tl.finish.confirm import Averages, Confirmed, confirm, covered
from automl_tl.finish.latency import Stopwatch, latency_ms
from automl_tl.finish.members import Members, choose_members
from automl_tl.finish.refit import Chosen, How, Tell, Tick, fit_in, plan_further, plan_refits, refit
from automl_tl.finish.soup import Blend, blend_gain, choose_blend, kinds_of
from automl_tl.metrics.optimism import selection_optimism
from automl_tl.metrics.scores import decide, validation_score
from automl_tl.model.assemble import TransferModel
from automl_tl.model.ensemble import Adjustment, Member
from automl_tl.model.spec import spec_from_json
from automl_tl.search.finalists import Finalist, Plan, finalists_of, plan_folds, spared_share
from automl_tl.search.search import Search, reason_of
from automl_tl.search.study import completed, settled


@dataclass(frozen=True, kw_only=True)
class Final:
    """What is handed over, and how it came about."""

    best: Chosen  # the best single one
    members: tuple[Chosen, ...]  # of the final model; often the best one alone
    adjustment: Adjustment
    how: Mapping[int, How]  # what was trained came to learn from all samples, by trial
    further: Mapping[int, int]  # epochs beyond those of the search that it was given, by trial
    latency_ms: float  # of a prediction of one sample alone, as it is served, here and now
    facts: dict[str, Any]  # for the report; the same of a run that repeats


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What the final model is to be made of, and what that was decided by."""

    confirmed: Sequence[Confirmed]  # who was compared
    rows: np.ndarray  # of the samples that judged
    best: Blend  # the best one alone
    parts: Mapping[Blend, float]  # of the final model, with weights of sum 1, heaviest first
    said: np.ndarray  # (N, K) by the final model
    compared: tuple[np.ndarray, ...]  # (N, K) each, by all that it was chosen from
    facts: dict[str, Any]


def settle(
    search: Search,
    settings: FinishConfig,
    crew: Crew,
    device: str,
    tell: Tell = lambda text: None,
    tick: Tick = lambda what, done, n: None,
) -> Final:
    """Confirm, choose, adjust and refit; raises TrialError when no trial was completed."""
    watch = Stopwatch(search=search, device=device)
    decision = _decide(search, settings, crew, watch, tell, tick)
    task, metric = search.prepared.task, search.metric
    labels = search.prepared.development().labels[decision.rows]
    adjustment, adjustment_gain = fit_adjustment(labels, decision.said, task.kind, metric=metric, seed=search.seed)
    finalists = {each.finalist.number: each.finalist for each in decision.confirmed}
    wanted = list(dict.fromkeys((*decision.parts, decision.best)))
    # The ingredients of an average are trained anew: what they began with has to be known.
    alone = [finalists[blend.ingredients[0]] for blend in wanted if blend == Blend(blend.ingredients[:1])]
    seconds, slots = _seconds_left(search), len(crew.slots)
    how = plan_refits(search, alone, seconds, slots)
    further = plan_further(alone, how, seconds, slots)
    _tell_refits(how, further, tell)
    models = refit(search, finalists, wanted, crew, device, tell, tick, how, further)
    chosen = {
        blend: _chosen(finalists[blend.ingredients[0]], blend, model, decision.parts.get(blend, 1.0))
        for blend, model in zip(wanted, models, strict=True)
    }
    members = tuple(chosen[blend] for blend in decision.parts)
    served = [Member(model=member.model, weight=member.weight) for member in members]
    milliseconds = latency_ms(search, served, device, adjustment=adjustment)
    if settings.latency_ms is not None and milliseconds > settings.latency_ms:
        tell(
            f"the final model takes {milliseconds:.1f} ms for one sample on {device}, above "
            f"finish.latency_ms={settings.latency_ms:g}: the search found none that is faster; raise the limit, lower "
            "data.image_size, or name smaller backbones"
        )
    decisions = [decide(probabilities, task.kind) for probabilities in decision.compared]
    return Final(
        best=chosen[decision.best],
        members=members,
        adjustment=adjustment,
        how=how,
        further=further,
        latency_ms=milliseconds,
        facts={
            "samples": len(decision.rows),
            "finalists": [
                {
                    "trial": each.finalist.number,
                    "folds": len(each.scores),
                    metric: validation_score(labels, each.probabilities[decision.rows], task.kind, metric),
                }
                for each in decision.confirmed
            ],
            "trained_on_all": {str(number): way for number, way in how.items()},
            "adjustment_gain": adjustment_gain,
            "optimism": selection_optimism(labels, decisions, task.kind, task.n_outputs, metric=metric),
            **decision.facts,
        },
    )


def _tell_refits(how: Mapping[int, How], further: Mapping[int, int], tell: Tell) -> None:
    for number, way in how.items():
        if way == "further":
            epochs = f"{further[number]} more {'epoch' if further[number] == 1 else 'epochs'}"
            tell(f"trial {number}: goes on from where the search left it for {epochs}, with all samples")
        elif way == "as it is":
            why = "there is no time to train it on all samples"
            tell(f"trial {number}: {why}; it is handed over as the search trained it")


def _chosen(finalist: Finalist, blend: Blend, model: TransferModel, weight: float) -> Chosen:
    averaged = None if blend == Blend((finalist.number,)) else blend
    return Chosen(trial=finalist.trial, spec=finalist.spec, model=model, weight=weight, blend=averaged)


def _decide(search: Search, settings: FinishConfig, crew: Crew, watch: Stopwatch, tell: Tell, tick: Tick) -> Decision:
    averages = Averages(wanted=settings.model == "soup")
    confirmed = _confirmed(search, settings, crew, watch, averages, tell, tick)
    if settings.model == "soup":
        soup = _soup(search, confirmed, averages, len(crew.slots))
        if soup is not None:
            return soup
        tell(
            "finish.model: soup: no weights can be averaged, for which trainings that began at a probe's solution are "
            "needed, and time for all folds; the best single model is handed over"
        )
    members = choose_members(search, settings.model, confirmed)
    weights = members.weights
    if settings.latency_ms is not None:
        weights = _fast_together(members, settings.latency_ms, watch)
    singles = [Blend((each.finalist.number,)) for each in members.confirmed]
    heaviest_first = [index for index in np.argsort(-weights, kind="stable") if weights[index] > 0]
    gains = {"ensemble_gain": members.ensemble_gain, "trained_gain": members.trained_gain}
    trained = [not each.finalist.floor for each in members.confirmed]
    return Decision(
        confirmed=members.confirmed,
        rows=members.rows,
        best=singles[members.choice.index],
        parts={singles[index]: float(weights[index]) for index in heaviest_first},
        said=np.tensordot(weights, members.said, 1),
        compared=tuple(members.said),
        facts={
            "chosen_because": members.choice.reason,
            **{name: None if gain is None else asdict(gain) for name, gain in gains.items()},
            "trained_share": float(weights[trained].sum()),
            "soup": None,
        },
    )


def _soup(search: Search, confirmed: list[Confirmed], averages: Averages, slots: int) -> Decision | None:
    """The best average of weights that there is time to train the ingredients of; None: there is none."""
    finalists = {each.finalist.number: each.finalist for each in confirmed}
    rows, kinds = covered(confirmed), kinds_of({number: each.spec for number, each in finalists.items()})
    said = {Blend((each.finalist.number,)): each.probabilities[rows] for each in confirmed}
    for blend, probabilities in averages.of(confirmed).items():
        if fit_in(_seconds_left(search), [finalists[number] for number in blend.ingredients], slots):
            said[blend] = probabilities[rows]
    labels, kind = search.prepared.development().labels[rows], search.prepared.task.kind
    chosen = choose_blend(kinds, said, labels, kind, metric=search.metric)
    if chosen is None:
        return None
    gain = blend_gain(kinds, said, labels, kind, metric=search.metric, seed=search.seed)
    return Decision(
        confirmed=confirmed,
        rows=rows,
        best=chosen,
        parts={chosen: 1.0},
        said=said[chosen],
        compared=tuple(said.values()),
        facts={
            "chosen_because": f"an average of weights was asked for, and the best is {chosen}",
            "ensemble_gain": None,
            "trained_gain": None,
            "trained_share": 1.0,
            "soup": {"trials": list(chosen.ingredients), "share": chosen.share, **asdict(gain)},
        },
    )


def _confirmed(
    search: Search,
    settings: FinishConfig,
    crew: Crew,
    watch: Stopwatch,
    averages: Averages,
    tell: Tell,
    tick: Tick,
) -> list[Confirmed]:
    ranked = completed(search.study)
    if not ranked:
        failures = [trial for trial in settled(search.study) if trial.state == TrialState.FAIL]
        why = f"the first failure: {reason_of(failures[0])}" if failures else "give it more time, or more trials"
        raise TrialError(f"study {search.study.study_name!r}: no trial was completed; {why}")
    if settings.latency_ms is not None:
        ranked = _fast_enough(ranked, settings.latency_ms, watch)
    finalists = finalists_of(search.study, ranked, settings.finalists)
    if search.prepared.development().given is not None:  # which judged them all in the search
        plan = Plan(tuple(finalists), 0)
    else:
        left, slots = _seconds_left(search), len(crew.slots)
        plan = plan_folds(finalists, left, slots, spared=spared_share(settings.model))
    return confirm(search, plan, crew, tell, tick, averages)


def _fast_enough(ranked: Sequence[FrozenTrial], limit: float, watch: Stopwatch) -> list[FrozenTrial]:
    """The trials whose model predicts a sample in so many milliseconds; where there is none, those of the fastest."""
    taken = [watch.milliseconds([spec_from_json(trial.user_attrs["spec"])]) for trial in ranked]
    most = max(limit, min(taken))
    return [trial for trial, milliseconds in zip(ranked, taken, strict=True) if milliseconds <= most]


def _fast_together(members: Members, limit: float, watch: Stopwatch) -> np.ndarray:
    """The weights of those that together predict a sample in `limit` milliseconds; the lightest others are dropped."""
    weights = members.weights
    kept = [int(index) for index in np.argsort(-weights, kind="stable") if weights[index] > 0]
    specs = [each.finalist.spec for each in members.confirmed]
    while len(kept) > 1 and watch.milliseconds([specs[index] for index in kept]) > limit:
        kept.pop()
    if len(kept) == 1:
        kept = [members.choice.index]
    fast = np.zeros_like(weights)
    fast[kept] = weights[kept] if len(kept) > 1 else 1.0
    return np.asarray(fast / fast.sum())


def _seconds_left(search: Search) -> float | None:
    return None if search.budget.end is None else search.budget.end - time.time()
