"""What lies in the feature store, and what goes when it is full: first what saves the least time for its size.

An entry is locked, moved out of the way at once and deleted then, so no builder and no killed process finds half of
one. Who reads an entry at that time has its files mapped and goes on reading.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from automl_tl.features.entry import KEY_DIGITS, LOCK_FILE, SHARDS, USED_FILE, EntryKey, read_key
from automl_tl.features.lock import try_lock, waiting_lock
from automl_tl.features.shards import read_meta, shard_directories, writing

GIB = 1 << 30
ENTRY_NAME = re.compile(rf"[0-9a-f]{{{KEY_DIGITS}}}")
TRASH_NAME = re.compile(rf"{ENTRY_NAME.pattern}\.[0-9a-f]{{32}}\.evicted")


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryFacts:
    """One entry as eviction and people see it."""

    key: EntryKey | None  # None for an entry that this version of the store cannot read
    name: str  # of its directory, the key's digest
    n_bytes: int
    rows: int
    seconds: float  # that it took to compute all rows
    last_used: float  # POSIX time

    @property
    def seconds_per_gib(self) -> float:
        """Time that a reader saves, for the room that is taken."""
        return self.seconds * GIB / max(self.n_bytes, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cleared:
    """What `clear` did."""

    n_bytes: int
    entries: tuple[EntryFacts, ...]
    being_built: tuple[EntryFacts, ...]  # left alone


def list_entries(root: Path) -> list[EntryFacts]:
    """All entries of a store, by name; nothing else that may lie in `root` counts as one."""
    try:
        directories = sorted(path for path in root.iterdir() if ENTRY_NAME.fullmatch(path.name))
    except OSError:
        return []
    return [facts_of(directory) for directory in directories if (directory / LOCK_FILE).exists()]


def make_room(root: Path, budget: int, n_bytes: int, *, seconds: float, keep: Collection[str]) -> bool:
    """As `FeatureStore.make_room`."""
    _sweep(root)
    with _deciding(root), contextlib.ExitStack() as locks:
        entries = list_entries(root)
        excess = sum(entry.n_bytes for entry in entries) + n_bytes - budget
        # seconds / bytes, compared without dividing by a size of zero
        weaker = [e for e in entries if e.name not in keep and e.seconds * n_bytes <= seconds * e.n_bytes]
        going: list[EntryFacts] = []
        for entry in sorted(weaker, key=lambda e: (e.seconds_per_gib, e.last_used)):
            if _size(going) < excess and _locked(root / entry.name, locks):
                going.append(entry)
        if _size(going) < excess:
            return False
        trash = [_set_aside(root, entry) for entry in _without_needless(going, excess)]
    _delete(trash)
    return True


def clear(root: Path, chosen: Callable[[EntryFacts], bool]) -> Cleared:
    """As `FeatureStore.clear`."""
    _sweep(root)
    entries = [entry for entry in list_entries(root) if chosen(entry)]
    if not entries:
        return Cleared(n_bytes=0, entries=(), being_built=())
    with _deciding(root), contextlib.ExitStack() as locks:
        going = [entry for entry in entries if _locked(root / entry.name, locks)]
        trash = [_set_aside(root, entry) for entry in going]
    _delete(trash)
    left = tuple(entry for entry in entries if entry not in going and (root / entry.name).exists())
    return Cleared(n_bytes=_size(going), entries=tuple(going), being_built=left)


def facts_of(directory: Path) -> EntryFacts:
    """One entry, by its directory."""
    key = read_key(directory)
    metas = [read_meta(shard) for shard in shard_directories(directory / SHARDS)] if key else []
    sound = [meta for meta in metas if meta is not None]
    return EntryFacts(
        key=key,
        name=directory.name,
        n_bytes=size_on_disk(directory),
        rows=sum(meta.rows for meta in sound),
        seconds=sum(meta.seconds for meta in sound),
        last_used=_modified(directory / USED_FILE) or _modified(directory),
    )


def size_on_disk(directory: Path) -> int:
    """Bytes in all files below a directory; those that vanish meanwhile count for nothing."""
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(folder, name)).st_size
    return total


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _size(entries: Iterable[EntryFacts]) -> int:
    return sum(entry.n_bytes for entry in entries)


def _without_needless(going: list[EntryFacts], excess: int) -> list[EntryFacts]:
    """Spare small entries, the most valuable first, if what comes with them frees enough alone."""
    needed = list(going)
    for entry in reversed(going):
        if _size(needed) - entry.n_bytes >= excess:
            needed.remove(entry)
    return needed


@contextlib.contextmanager
def _deciding(root: Path) -> Iterator[None]:
    """One process at a time decides what goes, so that two do not each evict for the other."""
    with contextlib.ExitStack() as stack:
        with writing(root):
            stack.enter_context(waiting_lock(root / LOCK_FILE))
        yield


def _locked(directory: Path, locks: contextlib.ExitStack) -> bool:
    """Take an entry's lock, to be given back by `locks`; False when it is being built."""
    file = None
    with writing(directory), contextlib.suppress(FileNotFoundError):  # it may be gone already
        file = try_lock(directory / LOCK_FILE)
    if file is not None:
        locks.callback(file.close)
    return file is not None


def _set_aside(root: Path, entry: EntryFacts) -> Path:
    trash = root / f"{entry.name}.{uuid.uuid4().hex}.evicted"
    with writing(root):
        (root / entry.name).rename(trash)
    return trash


def _delete(trash: Iterable[Path]) -> None:
    for path in trash:
        shutil.rmtree(path, ignore_errors=True)


def _sweep(root: Path) -> None:
    """Delete what evictions that were killed set aside."""
    with contextlib.suppress(OSError):
        _delete(path for path in root.iterdir() if TRASH_NAME.fullmatch(path.name))
