"""The final model trained again from other seeds: by how much a result is the seed's doing.

What is handed over is one draw of its recipe. The standard deviation of the test metric over draws is what the
intervals are widened by; nothing is chosen by it, and the seed is never a searched parameter.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from automl_tl.engine.spread import Crew
from automl_tl.finish.refit import Chosen, Tell, Tick, is_whole, refit
from automl_tl.finish.settle import Final
from automl_tl.finish.soup import Blend
from automl_tl.model.spec import TrialSpec, spec_from_json
from automl_tl.search.configurations import configurations, training_seconds
from automl_tl.search.finalists import LONGER, Finalist
from automl_tl.search.search import Search

NO_TIME = "there was no time to train it from others"


@dataclass(frozen=True, slots=True)
class Refits:
    """The final model as other seeds make it."""

    others: tuple[Final, ...] = ()  # none: it repeats exactly, or `missing` says why
    repeats: bool = False  # any seed makes the same model, so nothing needs to be trained to know it
    missing: str = ""

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
    finalists = _ingredients(search, final)
    if all(repeats_exactly(search, each.spec) for each in finalists.values()):
        return Refits(repeats=True)
    if any(final.how.get(number) == "as it is" for number in finalists):
        return Refits(missing="what was trained on a part of the samples, as the search left it, has no other draw")
    others, missing = list[Final](), "" if draws > 1 else "finish.refits asks for one"
    each = _seconds(search, final, list(finalists.values()), len(crew.slots))
    for number in range(1, draws):
        if end is not None and time.time() + each > end:
            missing = NO_TIME
            break
        began, failures, hear = time.monotonic(), list[str](), _of_draw(tick, number + 1, draws)
        again = _again(replace(search, seed=search.seed + number), final, crew, device, failures.append, hear)
        each = time.monotonic() - began
        if failures:
            missing = "it could not be trained from another seed"
            tell(f"the final model could not be trained from another seed: {failures[0]}")
            break
        others.append(again)
    return Refits(others=tuple(others), missing="" if others else missing)


def _of_draw(tick: Tick, number: int, draws: int) -> Tick:
    return lambda what, done, total: tick(f"{what}, seed {number} of {draws}", done, total)


def _again(search: Search, final: Final, crew: Crew, device: str, tell: Tell, tick: Tick) -> Final:
    """The final model, all of its members trained as this search's seed has it.

    What went on from the search is trained for as many epochs in all, at the same rates, with all samples throughout.
    """
    finalists, blends = _ingredients(search, final), [_blend(member) for member in final.members]
    models = refit(search, finalists, blends, crew, device, tell, tick, further=final.further)
    members = tuple(replace(member, model=model) for member, model in zip(final.members, models, strict=True))
    return replace(final, members=members)


def _blend(member: Chosen) -> Blend:
    """What a member was averaged from."""
    return member.blend or Blend((member.trial.number,))


def _ingredients(search: Search, final: Final) -> dict[int, Finalist]:
    """What the final model is made of, by the number of its trial, with the seconds that its training took."""
    numbers = {number for member in final.members for number in _blend(member).ingredients}
    return {
        trial.number: Finalist(
            trial,
            spec_from_json(trial.user_attrs["spec"]),
            sum(training_seconds(earlier) for earlier in each.done[: place + 1]),
        )
        for each in configurations(search.study)
        for place, trial in enumerate(each.done)
        if trial.number in numbers
    }


def _seconds(search: Search, final: Final, finalists: Sequence[Finalist], slots: int) -> float:
    """What one more draw is expected to take."""
    spent: list[float] = [
        LONGER * each.seconds * (1 + final.further.get(each.number, 0) / max(1, each.trial.user_attrs["epochs"]))
        for each in finalists
        if not is_whole(search, each)
    ]
    return max(sum(spent) / slots, max(spent, default=0.0))
