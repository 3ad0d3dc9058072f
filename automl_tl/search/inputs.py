"""What a trial trains on: outputs of its frozen layer groups from the store wherever they can be had, else the samples.

    only the head trains    pooled outputs of the taps; the backbone is not even built
    layer groups train      whole outputs at the cut, or at the deepest stored cut before it
    neither                 the samples themselves; `Inputs.note` says why

Training from any of them gives the same result: a frozen group does the same to a sample whenever it is passed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from torch import nn

from automl_tl.features.frozen import Samples, Source, nearest, pooled_rows, rows_at, store_outputs
from automl_tl.features.network import CLEAN, Network, code_version, weights_digest
from automl_tl.features.prefix import keep_in_memory
from automl_tl.features.resident import resident
from automl_tl.features.rows import Rows, StoredRows, ViewRows
from automl_tl.features.task import OpenedSplit, PreparedTask
from automl_tl.host import PluginHost
from automl_tl.model.assemble import Interface, TransferModel, frozen_groups
from automl_tl.model.plan import cut, kept, tap
from automl_tl.model.spec import TrialSpec, only_head_trains
from automl_tl.plugin import Backbone, LayerGroup
from automl_tl.training.train import Labelled

Found = TypeVar("Found", bound=Rows)


@dataclass(frozen=True, kw_only=True)
class Stored:
    """What a child may find in the store, and how it can add to it; plain data."""

    network: Network
    interface: Interface
    source_weights: Path | None = None
    random_seed: int | None = None  # of weights that are drawn, to be compared with; None: they are transferred
    also: tuple[int, ...] = ()  # cuts that other trials will want
    device_share: float = 0.4  # of a GPU's free memory, for outputs that are read again and again


@dataclass(kw_only=True)
class Inputs:
    """Training rows and those that judge, and where they come from."""

    train: Labelled
    validation: Labelled | None  # None: samples left out of a closed-form fit judge it, or nothing is judged
    stopping: Labelled | None = None  # rows whose loss ends a training early
    unlabeled: Labelled | None = None  # rows that teach a probe without labels of their own
    note: str = ""  # for the trial's record: what was read from the store, or why nothing was
    passed: int = 0  # rows that went through frozen groups to be stored


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The samples of one trial."""

    train: OpenedSplit
    judged: OpenedSplit | None = None  # what the trial is scored on
    stopping: OpenedSplit | None = None  # what ends it early; neither trained on nor scored on
    unlabeled: OpenedSplit | None = None  # what teaches a probe without labels

    @property
    def clean(self) -> tuple[OpenedSplit | None, OpenedSplit | None]:
        """Those that are never changed."""
        return self.judged, self.stopping


@dataclass(frozen=True, kw_only=True)
class Reader:
    """Reads the inputs of one trial."""

    spec: TrialSpec
    backbone: Backbone
    stored: Stored | None  # None: the network is drawn anew for this trial, so nothing of it can be stored
    device: str
    deadline: float | None = None
    roomy: bool = True  # False: memory was too short before, so nothing is kept in it
    passed: list[int] = field(default_factory=list)

    def why_not(self) -> str | None:
        """Why frozen groups cannot be read from the store; None when they can."""
        spec = self.spec
        if spec.joint_source_weight:
            return "source samples pass the shared groups too"
        changes = spec.regularization.augmentation != "none" and spec.fit == "descent"
        if changes and not spec.regularization.views:
            return f"{spec.regularization.augmentation} augmentation changes what frozen groups see"
        return None

    def widths(self) -> list[int]:
        """Features that each tap gives the head: the joined ones, then the last kept group's."""
        if self.stored is None:
            return []
        columns = [self.stored.network.columns(tap, self.spec.pooling) for tap in self._taps()]
        return [each.stop - each.start for each in columns]

    def features(self, splits: Splits) -> Inputs | None:
        """Stored features for a spec in which only the head trains; None when they cannot be had."""
        if self.stored is None or self.why_not() is not None:
            return None
        seen = [self._features(splits.train, view) for view in self._views()]
        others = [split if split is None else self._features(split, CLEAN) for split in splits.clean]
        untold = None if splits.unlabeled is None else self._features(splits.unlabeled, CLEAN)
        if any(rows is None for rows in seen) or _missing((*others, untold), (*splits.clean, splits.unlabeled)):
            return None
        passed = len(kept(self.spec.plan))
        drawn = self._drawn([rows for rows in seen if rows is not None])
        judged, stopping = (
            self._labelled(rows, split, passed) for rows, split in zip(others, splits.clean, strict=True)
        )
        return Inputs(
            train=Labelled(rows=drawn, labels=splits.train.labels, start=passed),
            validation=judged,
            stopping=stopping,
            unlabeled=self._labelled(untold, splits.unlabeled, passed),
            note="stored features",
            passed=sum(self.passed),
        )

    def clean_features(self, split: OpenedSplit) -> StoredRows | None:
        """The stored features that the head reads of unchanged samples; None when they cannot be had."""
        return None if self.stored is None else self._features(split, CLEAN)

    def activations(self, model: TransferModel, splits: Splits) -> Inputs:
        """The deepest stored outputs that the model can start from, or the samples."""
        train = splits.train
        judged, stopping = (None if s is None else Labelled(rows=s.rows, labels=s.labels) for s in splits.clean)
        plain = Inputs(train=Labelled(rows=train.rows, labels=train.labels), validation=judged, stopping=stopping)
        if splits.unlabeled is not None:
            plain.unlabeled = Labelled(rows=splits.unlabeled.rows, labels=splits.unlabeled.labels)
        if model.cut == 0:
            plain.note = "nothing is frozen"
            return plain
        plain.note = self.why_not() or "the store has no room"
        if self.why_not() is not None:
            return plain
        if train.rows.lengths is not None and any(view != CLEAN for view in self._views()):
            plain.note = "changed texts have tokens of their own, of which only pooled outputs are stored"
            return plain
        if self.stored is None:
            return self._kept(model, plain, "weights are drawn anew in every trial")
        groups, deepest = _lazily(list(model.groups.values())), self._deepest()
        starts = [self._activations(train, deepest, groups, view) for view in self._views()]
        others = [s if s is None else self._activations(s, deepest, groups, CLEAN) for s in splits.clean]
        found = [start for start in starts if start is not None]
        if _missing(others, splits.clean) or len(found) < len(starts) or len({start for _, start in found}) > 1:
            return self._kept(model, plain, plain.note)
        judged, stopping = (
            None if rows is None else self._labelled(rows[0], split, rows[1])
            for rows, split in zip(others, splits.clean, strict=True)
        )
        return Inputs(
            train=Labelled(rows=self._drawn([rows for rows, _ in found]), labels=train.labels, start=found[0][1]),
            validation=judged,
            stopping=stopping,
            unlabeled=plain.unlabeled,
            note=f"stored activations at cut {found[0][1]}",
            passed=sum(self.passed),
        )

    def frozen(self, split: OpenedSplit) -> tuple[Rows, int]:
        """What a trained model predicts a split from: the deepest stored outputs it can start from, else the samples.

        Returns the rows and how many layer groups they have passed. What is not stored yet is stored.
        """
        if self.stored is None or self.spec.joint_source_weight:
            return split.rows, 0
        passed = cut(self.spec.plan)
        if only_head_trains(self.spec):
            rows = self._features(split, CLEAN)
            return (split.rows, 0) if rows is None else (rows, passed)
        if passed == 0:
            return split.rows, 0
        return self._activations(split, passed, self._whole_network, CLEAN) or (split.rows, 0)

    def _views(self) -> Sequence[str]:
        """The views of the training rows: those that batches are drawn from, or that a head is solved for at once."""
        settings = self.spec.regularization
        if settings.augmentation == "none" or not settings.views:
            return (CLEAN,)
        changed = [f"{settings.augmentation}-{number}" for number in range(1, settings.views + 1)]
        return changed if self.spec.fit == "descent" else [CLEAN, *changed]

    def _features(self, split: OpenedSplit, view: str) -> StoredRows | None:
        assert self.stored is not None
        network, samples = self.stored.network, split.samples

        def find() -> StoredRows | None:
            return pooled_rows(network, samples, self._taps(), self.spec.pooling, view=view)

        return self._found_or_stored(find, samples, None, view, self._whole_network)

    def _taps(self) -> list[int]:
        names = [group.group for group in self.spec.plan]
        return [*(names.index(name) + 1 for name in self.spec.joined), tap(self.spec.plan) + 1]

    def _deepest(self) -> int:
        """The last cut to start from: before the first group that trains, and before the first that is read as well."""
        return min([cut(self.spec.plan), *(tap - 1 for tap in self._taps()[:-1])])

    def _activations(
        self, split: OpenedSplit, cut: int, groups: Callable[[], Sequence[nn.Module]], view: str
    ) -> tuple[Rows, int] | None:
        if cut == 0:
            return None
        assert self.stored is not None
        network, samples = self.stored.network, split.samples
        found = self._found_or_stored(lambda: rows_at(network, samples, cut, view=view), samples, cut, view, groups)
        return nearest(network, samples, cut - 1, view=view) if found is None else (found, cut)

    def _whole_network(self) -> Sequence[nn.Module]:
        assert self.stored is not None
        return network_of(self.backbone, self.stored, self.device)

    def _found_or_stored(
        self,
        find: Callable[[], Found | None],
        samples: Samples,
        cut: int | None,
        view: str,
        groups: Callable[[], Sequence[nn.Module]],
    ) -> Found | None:
        assert self.stored is not None
        found = find()
        if found is None:
            source = Source(
                groups=groups(),
                device=self.device,
                deadline=self.deadline,
                also=self.stored.also if cut is not None else (),
                passed=self.passed,
            )
            if store_outputs(self.stored.network, samples, cut, source, view=view):
                found = find()
        return found

    def _kept(self, model: TransferModel, plain: Inputs, why: str) -> Inputs:
        """The outputs at the cut in this trial's memory, where there is room."""
        if not self.roomy or self.spec.regularization.augmentation != "none":
            return plain
        parts = (plain.train, plain.validation, plain.stopping)
        found = [part if part is None else self._in_memory(model, part) for part in parts]
        train, judged, stopping = found
        if train is None or _missing(found, parts):
            return plain
        return Inputs(
            train=train,
            validation=judged,
            stopping=stopping,
            unlabeled=plain.unlabeled,
            note=f"kept in memory: {why}",
            passed=sum(len(part.labels) for part in parts if part is not None),
        )

    def _in_memory(self, model: TransferModel, part: Labelled) -> Labelled | None:
        rows = keep_in_memory(model, part.rows, self.device, deadline=self.deadline)
        return None if rows is None else Labelled(rows=rows, labels=part.labels, start=model.cut)

    def _labelled(self, rows: Rows | None, split: OpenedSplit | None, start: int) -> Labelled | None:
        if rows is None or split is None:
            return None
        return Labelled(rows=self._near(rows), labels=split.labels, start=start)

    def _drawn(self, views: Sequence[Rows]) -> Rows:
        near = [self._near(rows) for rows in views]
        return near[0] if len(near) == 1 else ViewRows(near)

    def _near(self, rows: Rows) -> Rows:
        share = self.stored.device_share if self.stored is not None else 0.0
        return resident(rows, self.device, share=share)


def _missing(found: Sequence[object], wanted: Sequence[object]) -> bool:
    return any(have is None and want is not None for have, want in zip(found, wanted, strict=True))


def _lazily(groups: Sequence[nn.Module]) -> Callable[[], Sequence[nn.Module]]:
    return lambda: groups


def stored_network(
    host: PluginHost,
    backbone: Backbone,
    prepared: PreparedTask,
    groups: tuple[LayerGroup, ...],
    weights: Path | None,
    device_share: float,
    *,
    random_seed: int | None = None,
) -> Stored:
    """A backbone as the store knows it: with the weights in a file, or drawn from a seed."""
    interface = prepared.interface(backbone)
    digest = weights_digest(
        backbone,
        version=code_version(host, backbone),
        input_shape=interface.input_shape,
        weights=weights,
        seed=random_seed,
    )
    network = Network(
        store=prepared.store,
        backbone=backbone.name,
        weights=digest,
        inputs=prepared.formats[backbone.name].key(backbone),
        groups=groups,
        keep=prepared.entries,
    )
    return Stored(network=network, interface=interface, random_seed=random_seed, device_share=device_share)


def network_of(backbone: Backbone, stored: Stored, device: str) -> tuple[nn.Module, ...]:
    """All layer groups of the network whose outputs are stored, frozen."""
    return _built(
        backbone,
        stored.interface.input_shape,
        stored.source_weights,
        stored.random_seed,
        stored.network.weights,  # their digest: another file of the same name is another network
        device,
    )


@functools.lru_cache(maxsize=1)  # the last one is kept from one call to the next
def _built(
    backbone: Backbone,
    input_shape: tuple[int, ...],
    source_weights: Path | None,
    random_seed: int | None,
    weights: str,
    device: str,
) -> tuple[nn.Module, ...]:
    groups = frozen_groups(backbone, input_shape, source_weights=source_weights, random_seed=random_seed)
    return tuple(groups.to(device).eval().values())
