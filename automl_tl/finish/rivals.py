"""What the final model is compared with: all that learns anything for it does so here, before the test split is opened.

In the order of what they say about the result, each only while there is time:

seeds      the final model from other seeds        how much of its score is chance
whole      full fine-tuning, and from scratch      what one would train without a search
raw        a linear model of raw inputs            what takes no network
random     the best head on random weights         what the architecture alone is good for, also group by group

The last two take little; they may end a small share of the time limit after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from automl_tl.engine.slot import Interrupted
from automl_tl.engine.spread import Crew
from automl_tl.errors import AutomlTlError, RunError
from automl_tl.features.shards import StoreFull
from automl_tl.finish.baselines import RawInputs, fit_raw_inputs
from automl_tl.finish.by_depth import DepthGain, gain_by_depth
from automl_tl.finish.random_features import RandomFeatures, fit_random_features, readable, seconds_to_pass
from automl_tl.finish.refit import Tell, Tick
from automl_tl.finish.seeds import Refits, other_seeds
from automl_tl.finish.settle import Final
from automl_tl.finish.source_verdict import SourceHeads, learn_source
from automl_tl.finish.whole import (
    FROM_SCRATCH,
    FULL_FINETUNING,
    NO_TIME,
    Whole,
    from_scratch,
    full_finetuning,
    searched_far_enough,
    train_whole,
)
from automl_tl.model.spec import TrialSpec
from automl_tl.search.search import Search

YARDSTICK_SHARE = 0.1  # of the time limit, that passing random weights may take after it
RANDOM_WEIGHTS, RAW_INPUTS = "random_weights", "raw_inputs"


@dataclass(frozen=True, kw_only=True)
class Rivals:
    """What was learned to be compared with; empty where there is no test split to compare on."""

    refits: Refits = field(default_factory=Refits)
    refits_from_random: Refits = field(default_factory=Refits)  # of the search from random weights, if there is one
    raw: RawInputs | None = None
    whole: Mapping[str, Whole] = field(default_factory=dict)
    random: RandomFeatures | None = None
    by_depth: tuple[DepthGain, ...] = ()
    source: SourceHeads | None = None  # what tells whether the source task helped
    missing: Mapping[str, str] = field(default_factory=dict)  # baselines that there might be, and why they are not


def learn_rivals(
    search: Search,
    final: Final,
    from_random: tuple[Search, Final] | None,
    refits: int,
    crew: Crew,
    device: str,
    tell: Tell = lambda text: None,
    tick: Tick = lambda what, done, n: None,
) -> Rivals:
    """Learn what there is time for; `refits`: draws of the final model, with the one that is handed over."""
    task, missing = search.prepared.task, dict[str, str]()
    if len(task.test) == 0:
        return Rivals()
    spec, end = readable(search, final), (search if from_random is None else from_random[0]).budget.end
    aside = 0.0 if spec is None else seconds_to_pass(search, spec, len(crew.slots))
    until = None if end is None else end - aside
    again = other_seeds(search, final, refits, until, crew, device, tell, tick)
    beside = Refits() if from_random is None else other_seeds(*from_random, refits, until, crew, device, tell, tick)
    whole = {}
    if search.stored_for(final.best.spec) is not None:
        backbone, wanted = final.best.spec.backbone, dict[str, TrialSpec]()
        if searched_far_enough(search) is None:
            wanted[FULL_FINETUNING] = full_finetuning(search, backbone)
        if from_random is None:  # else a whole search from random weights is better than this
            wanted[FROM_SCRATCH] = from_scratch(search, backbone)
        for name, each in wanted.items():
            found = train_whole(search, name, each, until, crew, device, tell, tick)
            if isinstance(found, Whole):
                whole[name] = found
            else:
                missing[name] = found
    raw, random, by_depth = fit_raw_inputs(task, seed=search.seed), None, tuple[DepthGain, ...]()
    limit = search.budget.seconds
    if spec is not None and limit is not None and aside > YARDSTICK_SHARE * limit:
        missing[RANDOM_WEIGHTS] = NO_TIME
    elif spec is not None:
        try:
            random = fit_random_features(search, spec, crew, device, tick)
            if random is not None:
                known = search.host.backbone(spec.backbone)
                by_depth = gain_by_depth(search, known, random.stored.network, random.files, crew, tick)
        except Interrupted:
            raise
        except AutomlTlError as error:
            if isinstance(error, RunError) and not isinstance(error, StoreFull):
                raise  # the disk: whatever comes next would meet the same
            lacking = "random weights are no baseline" if random is None else "the gain by depth is not known"
            tell(f"{lacking}: {error}")
    return Rivals(
        refits=again,
        refits_from_random=beside,
        raw=raw,
        whole=whole,
        random=random,
        by_depth=by_depth,
        source=learn_source(search, device, tick),
        missing=missing,
    )
