"""One entry of the feature store: all rows that one network, cut and preparation gave, in shards.

`root/<digest of the key>/{entry.json, lock, used, shards/<id>/}`. Rows are added as shards and never changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from automl_tl.errors import RunError
from automl_tl.features.lock import waiting_lock
from automl_tl.features.shards import (
    Shard,
    ShardWriter,
    flaw_of,
    read_shard,
    remove_partial_shards,
    remove_shard,
    shard_directories,
    write_shard,
    writing,
)
from automl_tl.features.values import StoredValues, as_keys, find_rows, stored_values

FORMAT = 1  # of all that lies in an entry; entries of another format are never read
KEY_DIGITS = 20
KEY_FILE, LOCK_FILE, USED_FILE, SHARDS = "entry.json", "lock", "used", "shards"

DTYPES: dict[str, np.dtype[Any]] = {
    "uint8": np.dtype(np.uint8),
    "int32": np.dtype(np.int32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(np.uint16),  # its bits: numpy has no such type
    "float32": np.dtype(np.float32),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryKey:
    """All that the values of an entry depend on, but the samples."""

    kind: Literal["samples", "pooled", "activations"]
    inputs: str  # how samples were prepared, as in "image-64"
    backbone: str = ""  # its name
    weights: str = ""  # digest of the network
    cut: int = 0  # groups passed
    view: str = "clean"
    dtype: str  # of the stored values, one of DTYPES
    compute: str = "float32"  # precision of the pass

    def digest(self) -> str:
        """The entry's directory name: it changes with every field and with the format of the store."""
        text = json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:KEY_DIGITS]

    @property
    def what(self) -> str:
        """What is kept, for people."""
        match self.kind:
            case "samples":
                return "prepared samples"
            case "pooled":
                return f"pooled features at cut {self.cut}" if self.cut else "pooled features"
            case "activations":
                return f"activations at cut {self.cut}"


def read_key(directory: Path) -> EntryKey | None:
    """The key of an entry; None for one of another format, or one that was never begun in earnest."""
    try:
        values = json.loads((directory / KEY_FILE).read_text(encoding="utf-8"))
        key = EntryKey(**{name: value for name, value in values.items() if name != "format"})
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    return key if key.digest() == directory.name else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """The place of one key's values; plain data that crosses into children."""

    directory: Path
    key: EntryKey

    @property
    def stored_dtype(self) -> np.dtype[Any]:
        """How numpy sees the values: bfloat16 as uint16."""
        return DTYPES[self.key.dtype]

    @contextlib.contextmanager
    def building(self, *, on_wait: Callable[[], None] = lambda: None, deadline: float | None = None) -> Iterator[bool]:
        """Hold the entry's lock, as the one who adds to it; it ends with the context, or with the process.

        Yields False when `deadline` (POSIX time) passed while another held it. `on_wait` is called once, if another
        does. Whatever killed builders left is removed.
        """
        with contextlib.ExitStack() as stack:
            with writing(self.directory):
                lock = waiting_lock(self.directory / LOCK_FILE, on_wait=on_wait, deadline=deadline)
                held = stack.enter_context(lock)
                if held:
                    self._begin()
            yield held

    def _begin(self) -> None:
        (self.directory / SHARDS).mkdir(exist_ok=True)
        remove_partial_shards(self.directory / SHARDS)
        self._touch()
        if read_key(self.directory) != self.key:
            partial = self.directory / f"{KEY_FILE}.partial"
            partial.write_text(json.dumps({"format": FORMAT, **asdict(self.key)}, indent=2) + "\n", encoding="utf-8")
            partial.replace(self.directory / KEY_FILE)

    def missing(self, digests: np.ndarray) -> np.ndarray:
        """Indices, int64, of what of these (N, 16) no readable shard holds; of equal digests the first."""
        _, first = np.unique(as_keys(digests), return_index=True)
        first.sort()
        shard_of, _ = find_rows(self._shards(), digests[first])
        return first[shard_of < 0].astype(np.int64)

    def shard(
        self, n_rows: int, *, row_shape: tuple[int, ...], lengths: np.ndarray | None = None
    ) -> AbstractContextManager[ShardWriter]:
        """Add `n_rows` rows of this shape; call it while the entry is being built, by this process or by its parent.

        With `lengths`, row i has `lengths[i]` items of `row_shape`. Several shards may be written at once. The rows
        are there after a clean exit; after any other, and after a kill, none of them is.

        Raises
        ------
        StoreFull
            When the disk is full.
        RunError
            When it cannot be written for another reason.
        """
        return write_shard(self.directory / SHARDS, n_rows, self.stored_dtype, row_shape, lengths)

    def open(self, digests: np.ndarray) -> StoredValues | None:
        """Map the rows of these digests (N, 16); None when any is missing."""
        shards = self._shards()
        if not shards:
            return None
        shard_of, row_of = find_rows(shards, digests)
        if (shard_of < 0).any():
            return None
        with contextlib.suppress(OSError):  # a store that is read only, or an entry that is evicted right now
            self._touch()
        return stored_values(shards, shard_of, row_of)

    def check(self, digests: np.ndarray | None = None) -> list[str]:
        """Read all shards, remove damaged ones, and return a sentence on each; call it under `building`.

        With `digests` (N, 16), only those that hold any of these rows are read: an entry may hold many data sets.
        """
        said = []
        for directory in shard_directories(self.directory / SHARDS):
            shard = None if digests is None else read_shard(directory, self.stored_dtype)
            if (
                digests is not None
                and shard is not None
                and not np.isin(as_keys(shard.digests), as_keys(digests)).any()
            ):
                continue
            flaw = flaw_of(directory, self.stored_dtype)
            if flaw is not None:
                said.append(f"shard {directory.name[:4]}… of {self._owner()}: {flaw}")
                with writing(directory):
                    remove_shard(directory)
        return said

    def _owner(self) -> str:
        if self.key.kind == "samples":
            return f"the samples prepared as {self.key.inputs}"
        return f"{self.key.backbone}, {self.key.what.removeprefix('activations at ')}"

    def _touch(self) -> None:
        (self.directory / USED_FILE).touch()

    def _shards(self) -> list[Shard]:
        if read_key(self.directory) != self.key:
            return []
        found = (read_shard(path, self.stored_dtype) for path in shard_directories(self.directory / SHARDS))
        shards = [shard for shard in found if shard is not None]
        if len({(shard.row_shape, shard.offsets is None) for shard in shards}) > 1:
            raise RunError(
                f"the features in {self.directory} are of several shapes; expected one; "
                "remove them with: automl-tl cache clear"
            )
        return shards
