"""The feature store: what a network gave for samples, computed once, found by content, shared by runs and processes.

A key (network, cut, preparation, view, precision) names an entry; the digest of a sample names a row in it. One
process builds an entry while others wait; readers map its files. Nothing here computes a feature or knows torch.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from automl_tl.features import eviction
from automl_tl.features.entry import Entry, EntryKey
from automl_tl.features.eviction import GIB, Cleared, EntryFacts
from automl_tl.features.shards import ShardWriter, StoreFull
from automl_tl.features.values import StoredValues

__all__ = [
    "Cleared",
    "Entry",
    "EntryFacts",
    "EntryKey",
    "FeatureStore",
    "ShardWriter",
    "StoreFull",
    "StoredValues",
    "default_budget",
    "feature_root",
]

LARGEST_DEFAULT_BUDGET = 50 * GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureStore:
    """A directory of entries and the bytes it may hold; plain data that crosses into children."""

    root: Path
    budget: int  # bytes

    def entry(self, key: EntryKey) -> Entry:
        """The place of this key's values, there or not."""
        return Entry(directory=self.root / key.digest(), key=key)

    def make_room(self, n_bytes: int, *, seconds: float, keep: Collection[str] = ()) -> bool:
        """Whether `n_bytes` more, which take `seconds` to compute, fit into the budget; evicts entries to that end.

        Those that save the least time per GiB go first, of equal ones the least recently used. An entry stays when it
        saves more time per GiB than the newcomer, is named in `keep` (by the digest of its key), or is being built.
        Either enough can go, and goes, or nothing is touched. Room that was made is not reserved.

        Raises
        ------
        RunError
            When the store's directory cannot be written.
        """
        return eviction.make_room(self.root, self.budget, n_bytes, seconds=seconds, keep=keep)

    def facts(self) -> list[EntryFacts]:
        """What lies in the store."""
        return eviction.list_entries(self.root)

    def clear(self, chosen: Callable[[EntryFacts], bool] = lambda entry: True) -> Cleared:
        """Delete the entries that are chosen, but those that are being built right now; waits for nobody.

        Raises
        ------
        RunError
            When the store's directory cannot be written.
        """
        return eviction.clear(self.root, chosen)


def feature_root() -> Path:
    """The store that runs share: in $AUTOML_TL_CACHE, or in the user's cache directory."""
    given = os.environ.get("AUTOML_TL_CACHE")
    cache = Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "automl_tl"
    return cache / "features"


def default_budget(root: Path) -> int:
    """A fifth of the disk space that is free but for the store, at most 50 GiB.

    What the store holds counts as free: otherwise every run would leave less to the next.
    """
    existing = next(path for path in (root, *root.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free + eviction.size_on_disk(root)
    return min(free // 5, LARGEST_DEFAULT_BUDGET)
