"""A frozen network as the feature store knows it: what stored outputs are a function of, besides the sample.

Two networks with the same digest give the same outputs. The digest is of the weights' own bytes, of the plugin's
version and of the shape of the inputs, so that nothing has to be built to look something up.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import inspect
import json
import math
import os
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import TypeAdapter

from automl_tl.features.store import Entry, EntryKey, FeatureStore, feature_root
from automl_tl.host import PluginHost
from automl_tl.model.groups import describe_groups
from automl_tl.model.pooling import Pooling
from automl_tl.plugin import Backbone, ImageInput, LayerGroup

_GROUPS = TypeAdapter(tuple[LayerGroup, ...])
CLEAN = "clean"
TYPES: tuple[str, ...] = ("float16", "float32")
"""Types of stored outputs, the preferred one first; the next where values lie outside its range."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A backbone with certain weights, on inputs prepared in a certain way; plain data that crosses into children."""

    store: FeatureStore
    backbone: str
    weights: str  # digest
    inputs: str  # how its samples are prepared
    compute: str = "float32"  # precision of its passes
    groups: tuple[LayerGroup, ...]
    seconds_per_row: float = 0.0  # of a whole pass, as far as it is known: what storing an output saves
    keep: frozenset[str] = frozenset()  # entries that its outputs must not displace: the samples of its run

    def pooled(self, dtype: str, view: str = CLEAN) -> Entry:
        """Where the pooled outputs of every layer group are kept."""
        return self._entry("pooled", 0, dtype, view)

    def activations(self, cut: int, dtype: str, view: str = CLEAN) -> Entry:
        """Where the whole outputs of the first `cut` groups are kept."""
        return self._entry("activations", cut, dtype, view)

    def entry(self, cut: int | None, dtype: str, view: str = CLEAN) -> Entry:
        """Either of them; None: pooled."""
        return self.pooled(dtype, view) if cut is None else self.activations(cut, dtype, view)

    def check(self, digests: np.ndarray) -> tuple[str, ...]:
        """Read all that this network gave for these samples, remove what is damaged, and return a sentence on each.

        What another process is building right now is left alone.
        """
        said: list[str] = []
        for facts in self.store.facts():
            key = facts.key
            if key is not None and (key.backbone, key.weights, key.inputs) == (
                self.backbone,
                self.weights,
                self.inputs,
            ):
                entry = self.store.entry(key)
                with entry.building(deadline=time.time()) as held:
                    said += entry.check(digests) if held else []
        return tuple(f"{flaw}; its rows are computed again" for flaw in said)

    def columns(self, tap: int, pooling: Pooling) -> slice:
        """Where the pooled output of the `tap`-th group, counted from 1, lies among all pooled outputs."""
        widths = [_pooled_width(group) for group in self.groups]
        start = sum(widths[: tap - 1])
        group = self.groups[tap - 1]
        return slice(start, start + (widths[tap - 1] if pooling == "mean_std" else _channels(group)))

    def width(self) -> int:
        """Pooled values of all groups."""
        return sum(_pooled_width(group) for group in self.groups)

    def seconds_until(self, cut: int | None) -> float:
        """What one row's pass to a cut takes."""
        return self.seconds_per_row * sum(group.flop_share for group in self.groups[:cut])

    def values_at(self, cut: int, tokens: float = 0.0) -> float:
        """Numbers in one row's output of the first `cut` groups; of a text of so many tokens."""
        output = self.groups[cut - 1].output
        return tokens * output[1] if len(output) == 2 else math.prod(output)

    def _entry(self, kind: str, cut: int, dtype: str, view: str) -> Entry:
        return self.store.entry(
            EntryKey(
                kind="pooled" if kind == "pooled" else "activations",
                inputs=self.inputs,
                backbone=self.backbone,
                weights=self.weights,
                cut=cut,
                view=view,
                dtype=dtype,
                compute=self.compute,
            )
        )


def weights_digest(
    backbone: Backbone, *, version: str, input_shape: Sequence[int], weights: Path | None, seed: int | None = None
) -> str:
    """A digest of a network: the bytes of its weights file, or the seed they are drawn from, and what reads them.

    `version` names the plugin that builds the network and its version.
    """
    facts: list[object] = [backbone.name, version, list(backbone.layer_groups), list(input_shape)]
    if isinstance(backbone.input, ImageInput):
        facts += [list(backbone.input.mean), list(backbone.input.std)]  # pixels are kept before they are normalized
    if weights is None:
        facts += ["random", seed, torch.__version__]  # another version may draw other numbers
    else:
        stat = weights.stat()
        facts.append(_file_digest(weights, stat.st_size, stat.st_mtime_ns))
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:20]


def known_groups(host: PluginHost, backbone: Backbone, input_shape: tuple[int, ...]) -> tuple[LayerGroup, ...]:
    """Facts about a backbone's layer groups, remembered from one run to the next.

    Counting FLOPs takes torch a second, most of it for importing what it counts with.
    """
    facts = [backbone.name, code_version(host, backbone), list(backbone.layer_groups), list(input_shape)]
    name = hashlib.sha256(json.dumps([*facts, torch.__version__]).encode()).hexdigest()[:20]
    path = feature_root().with_name("groups") / f"{name}.json"
    try:
        return _GROUPS.validate_json(path.read_bytes())
    except (OSError, ValueError):
        groups = describe_groups(backbone, input_shape)
    with contextlib.suppress(OSError):  # it is only for speed
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        partial.write_bytes(_GROUPS.dump_json(groups))
        partial.replace(path)
    return groups


def code_version(host: PluginHost, backbone: Backbone) -> str:
    """What stands for the code that builds a backbone: its plugin's version, or its file where it has none.

    The whole file, because the layers that `build` puts together are defined beside it, as a rule. What is installed
    to be edited (`pip install -e`) changes under the same version, so its sources count as well.
    """
    record = host.owner("backbone", backbone.name)
    if record.version:
        edited = _sources_digest(backbone) if record.distribution and _is_edited(record.distribution) else ""
        return f"{record.source} {record.version}{edited}"
    try:
        source = Path(inspect.getsourcefile(backbone.build) or "").read_bytes()
        around = inspect.getclosurevars(backbone.build).nonlocals
    except (OSError, TypeError):
        return uuid.uuid4().hex  # never to be found again: nobody can tell whether it changed
    return f"{hashlib.sha256(source).hexdigest()} {around}"


def _is_edited(distribution: str) -> bool:
    """Whether a distribution is installed from where it is edited (PEP 610)."""
    try:
        origin = importlib.metadata.distribution(distribution).read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return False
    return origin is not None and bool(json.loads(origin).get("dir_info", {}).get("editable"))


def _sources_digest(backbone: Backbone) -> str:
    """A digest of the package that builds a backbone, as it lies there now."""
    package = sys.modules[backbone.build.__module__.partition(".")[0]]
    if package.__file__ is None:
        return ""
    file = Path(package.__file__)
    sources = sorted(file.parent.rglob("*.py")) if file.name == "__init__.py" else [file]
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source.read_bytes())
    return f" edited:{digest.hexdigest()[:16]}"


@functools.lru_cache(maxsize=64)
def _file_digest(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _channels(group: LayerGroup) -> int:
    """Width of a group's mean-pooled output."""
    return group.output[1] if len(group.output) == 2 else group.output[0]


def _pooled_width(group: LayerGroup) -> int:
    """Mean and standard deviation; a vector has nothing to be pooled over."""
    return _channels(group) * (1 if len(group.output) == 1 else 2)
