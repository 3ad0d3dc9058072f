"""The final model trained again from other seeds: by how much a result is the seed's doing.

What is handed over is one draw of its recipe. The standard deviation of the test metric over draws is what the
intervals are widened by; nothing is chosen by it, and the seed is never a searched parameter.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np

from automl_tl.engine.spread import Crew
from automl_tl.finish.finalists import Finalist
from automl_tl.finish.refit import LONGER, Chosen, Tell, Tick, refit
from automl_tl.finish.settle import Final
from automl_tl.finish.soup import Blend
from automl_tl.model.spec import TrialSpec, spec_from_json
from automl_tl.search.configurations import configurations, training_seconds
from automl_tl.search.search import Search


@dataclass(frozen=True, slots=True)
class Refits:
    """The final model as other seeds make it."""

    others: tuple[Final, ...] = ()  # none: it repeats exactly, or there was no time
    repeats: bool = False  # any seed makes the same model, so nothing needs to be trained to know it

    def deviation(self, scores: np.ndarray) -> np.ndarray | None:
        """Standard deviation over the first axis of the scores (R, ...) of all draws; None: it is not known."""
        if self.repeats:
            return np.zeros(scores.shape[1:])
        return np.asarray(scores.std(0, ddof=1)) if self.others else None


def repeats_exactly(search: Search, spec: TrialSpec) -> bool:
    """Whether a seed makes no difference: the head is solved for, on features of weights that are not drawn."""
    return spec.fit != "descent" and search.stored_for(spec) is not None


def other_seeds(
    search: Search, final: Final, draws: int, end: float | None, crew: Crew, device: str, tell: Tell, tick: Tick
) -> Refits:
    """Train the final model again, until there are so many draws with the one that is handed over.

    Fewer where `end`, a moment, comes before; None: there is time for all. A draw that fails does not count.
    """
    if all(repeats_exactly(search, spec) for spec in _ingredients(search, final).values()):
        return Refits(repeats=True)
    each, others = _seconds(search, final, len(crew.slots)), list[Final]()
    for number in range(1, draws):
        if end is not None and time.time() + each > end:
            break
        began, failures, hear = time.monotonic(), list[str](), _of_draw(tick, number + 1, draws)
        again = _again(replace(search, seed=search.seed + number), final, crew, device, failures.append, hear)
        each = time.monotonic() - began
        if failures:
            tell(f"the final model could not be trained from another seed: {failures[0]}")
            break
        others.append(again)
    return Refits(others=tuple(others))


def _of_draw(tick: Tick, number: int, draws: int) -> Tick:
    return lambda what, done, total: tick(f"{what}, seed {number} of {draws}", done, total)


def _again(search: Search, final: Final, crew: Crew, device: str, tell: Tell, tick: Tick) -> Final:
    """The final model, all of its members trained as this search's seed has it."""
    ingredients = _ingredients(search, final)
    trials = {trial.number: trial for trial in search.study.get_trials(deepcopy=False)}
    finalists = {number: Finalist(trials[number], spec, 0.0) for number, spec in ingredients.items()}
    models = refit(search, finalists, [_blend(member) for member in final.members], crew, device, tell, tick)
    members = tuple(replace(member, model=model) for member, model in zip(final.members, models, strict=True))
    return replace(final, members=members)


def _blend(member: Chosen) -> Blend:
    """What a member was averaged from."""
    return member.blend or Blend((member.trial.number,))


def _ingredients(search: Search, final: Final) -> dict[int, TrialSpec]:
    """The specs that the final model is made of, by the number of their trial."""
    numbers = {number for member in final.members for number in _blend(member).ingredients}
    trials = search.study.get_trials(deepcopy=False)
    return {t.number: spec_from_json(t.user_attrs["spec"]) for t in trials if t.number in numbers}


def _seconds(search: Search, final: Final, slots: int) -> float:
    """What one more draw is expected to take."""
    numbers = _ingredients(search, final).keys()
    spent = [
        LONGER * sum(training_seconds(earlier) for earlier in each.done[: place + 1])
        for each in configurations(search.study)
        for place, trial in enumerate(each.done)
        if trial.number in numbers
    ]
    return max(sum(spent) / slots, max(spent, default=0.0))
