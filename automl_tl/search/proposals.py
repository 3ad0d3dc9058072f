"""What is tried next when nothing known is worth training further: recipes first, then proposals of three kinds.

    like a recipe    a known-good recipe with some of its values moved; its share falls as the search learns
    the sampler's    from what was seen (TPE; Bergstra et al., NeurIPS 2011), of a backbone drawn by its score
    at random        anywhere in the space, so that nothing stays untried for good

After PriorBand (Mallik et al., NeurIPS 2023), which mixes the same three and recovers from a bad prior.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna

from automl_tl.model.plan import cut
from automl_tl.search.configurations import CONTINUES
from automl_tl.search.recipes import MAX_RECIPES, like_a_recipe, recipe_parameters
from automl_tl.search.work import WORK, first_epoch_work

if TYPE_CHECKING:
    from automl_tl.search.search import Search

FAVOR = 0.02  # difference of scores that makes a backbone e times as likely
AT_RANDOM = 0.15  # of the proposals after the recipes
LIKE_A_RECIPE = 0.6  # of the first ones
HALVES_AFTER = 20  # proposals, in which the share of those that are like a recipe halves


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A configuration that is to be drawn: what of it is fixed, and who draws the rest."""

    fixed: Mapping[str, Any] = field(default_factory=dict)  # parameters
    attributes: Mapping[str, Any] = field(default_factory=dict)  # of the trial
    sampler: optuna.samplers.BaseSampler | None = None  # None: the study's own


def enqueue_recipes(search: Search) -> Search:
    """Queue the known-good recipes; at most half of a trial budget goes to them. Those that were queued stay so.

    Returns the search with the cuts that the recipes train from, so that one pass stores the outputs at all of them.
    """
    if not search.budget.recipes:
        return search
    most = MAX_RECIPES if search.budget.trials is None else min(MAX_RECIPES, -(-search.budget.trials // 2))
    before = {trial.user_attrs.get("recipe") for trial in search.study.get_trials(deepcopy=False)}
    wanted: dict[str, set[int]] = {}
    for name, spec, parameters in recipe_parameters(search.space, search.context, most, tuple(search.favored) or None):
        wanted.setdefault(spec.backbone, set()).add(cut(spec.plan))
        if name not in before:
            work = first_epoch_work(search, spec)
            search.study.enqueue_trial(parameters, user_attrs={"recipe": name, WORK: work})
    also = {name: tuple(sorted(cuts - {0, len(search.context.backbones[name])})) for name, cuts in wanted.items()}
    stored = {name: replace(stored, also=also.get(name, ())) for name, stored in search.stored.items()}
    return replace(search, stored=stored)


def propose(search: Search) -> Proposal:
    """Decide of what kind the next proposal is: like a recipe, the sampler's with a backbone drawn first, or random."""
    trials = search.study.get_trials(deepcopy=False)
    proposed = sum(CONTINUES not in trial.user_attrs for trial in trials)
    generator = np.random.default_rng((search.seed, proposed))
    drawn = generator.random()
    if drawn < AT_RANDOM:
        return Proposal(sampler=optuna.samplers.RandomSampler(seed=int(generator.integers(2**31))))
    share = LIKE_A_RECIPE * 0.5 ** (proposed / HALVES_AFTER) if search.budget.recipes else 0.0
    backbone = _favored_backbone(search, generator)
    if drawn < AT_RANDOM + share:
        parameters = like_a_recipe(search.space, search.context, backbone, generator)
        if parameters:
            return Proposal(fixed=parameters, attributes={"like_a_recipe": True})
    return Proposal(fixed={} if backbone is None else {"backbone": backbone})


def _favored_backbone(search: Search, generator: np.random.Generator) -> str | None:
    """A backbone drawn by its score, one that scored 0.02 less less than half as often; None: there is no choice."""
    if "backbone" in search.context.overrides or len(search.favored) < 2:
        return None
    scores = np.array(list(search.favored.values()))
    odds = np.exp((scores - scores.max()) / FAVOR)
    return list(search.favored)[int(generator.choice(len(odds), p=odds / odds.sum()))]
