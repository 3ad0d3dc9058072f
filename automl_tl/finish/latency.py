"""How long a prediction of one sample takes: from the sample as it comes to its probabilities, as models are served."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from automl_tl.data import Samples
from automl_tl.features.rows import Rows
from automl_tl.features.samples import rows_in_memory
from automl_tl.finish.refit import build_model
from automl_tl.model.ensemble import UNADJUSTED, Adjustment, Member, share_frozen
from automl_tl.model.plan import cut, tap
from automl_tl.model.spec import TrialSpec
from automl_tl.search.search import Search
from automl_tl.training.precision import laid_out

WARM_UP = 3  # predictions that are not timed
REPEATS = 21  # that are, unless they take long
FEWEST = 3
ENOUGH = 2.0  # seconds of timed predictions, after which no more are made


@dataclass(frozen=True, kw_only=True)
class Stopwatch:
    """Times models of one search on the device that the run uses. What they have learnt makes no difference."""

    search: Search
    device: str
    known: dict[tuple[Any, ...], float] = field(default_factory=dict)  # milliseconds, by what is passed

    def milliseconds(self, specs: Sequence[TrialSpec]) -> float:
        """What a sample takes through untrained models of these specs together."""
        shared = len(specs) > 1
        key = tuple(sorted(_architecture(spec, shared) for spec in specs))
        if key not in self.known:
            members = [Member(model=build_model(self.search, spec, self.device)) for spec in specs]
            self.known[key] = latency_ms(self.search, members, self.device)
        return self.known[key]


def latency_ms(search: Search, members: Sequence[Member], device: str, *, adjustment: Adjustment = UNADJUSTED) -> float:
    """Milliseconds that the members together take for a batch of one sample: the median of some, after a warm-up.

    They share their frozen groups afterwards, as they will when they are served.
    """
    samples = search.prepared.task.train.samples
    families = [
        (family, search.host.backbone(family.members[0].model.spec.backbone)) for family in share_frozen(members)
    ]
    total = sum(family.weight for family, _ in families)

    def predict(sample: Samples) -> None:
        rows, said = dict[str, Rows](), list[np.ndarray]()
        for family, backbone in families:
            layout = search.prepared.formats[backbone.name]
            if layout.key(backbone) not in rows:  # decoded once for all that read it alike
                rows[layout.key(backbone)] = rows_in_memory(sample, backbone, layout)
            batch = laid_out(rows[layout.key(backbone)].batch(np.array([0]), device), "channels_last")
            said.append(family.weight * family.probabilities(batch, search.prepared.task.kind).cpu().numpy())
        adjustment.apply(np.sum(said, 0) / total, search.prepared.task.kind)

    taken: list[float] = []
    for number in range(WARM_UP + REPEATS):
        sample = samples.take([number % len(samples)])
        began = time.perf_counter()
        predict(sample)
        taken.append(time.perf_counter() - began)
        if len(taken) >= WARM_UP + FEWEST and sum(taken[WARM_UP:]) > ENOUGH:
            break
    return 1000 * float(np.median(taken[WARM_UP:]))


def _architecture(spec: TrialSpec, shared: bool) -> tuple[Any, ...]:
    """All of a spec that a prediction's time depends on; frozen groups make a difference only where they are shared."""
    head = spec.head, repr(sorted(spec.head_parameters.items()))
    return spec.backbone, spec.weights, tap(spec.plan), cut(spec.plan) * shared, spec.pooling, spec.joined, *head
