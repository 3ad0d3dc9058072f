"""One shard of a store entry on disk: rows that were computed together, with their digests and checksums.

A shard is a directory that appears whole: it is written beside its place and renamed into it. So a killed process
leaves nothing that reads as valid. Nothing is flushed to the device: after a power failure, sizes and checksums tell.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import shutil
import uuid
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from automl_tl.data.digests import DIGEST_BYTES
from automl_tl.errors import RunError

META, ROWS, VALUES, OFFSETS = "meta.json", "rows.npy", "values.npy", "offsets.npy"
PARTIAL = ".partial"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
READ_BYTES = 1 << 22


class StoreFull(RunError):
    """The disk, or the share of it that a user may fill, has no room for more features."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in one sentence what kept `path` from being written."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in FULL:
            raise StoreFull(
                f"the disk has no room for the features in {path}: {reason}; "
                "free some space, or set cache.budget_gib or cache.directory"
            ) from None
        raise RunError(f"cannot write the features in {path}: {reason}; choose another cache.directory") from None


@dataclass(frozen=True, slots=True, eq=False)
class Shard:
    """A shard that is whole, as far as its sizes tell: digests read, values mapped and not yet read."""

    digests: np.ndarray  # uint8, (n, 16)
    values: np.ndarray  # (n, *row_shape), or for ragged rows (all items, *row_shape)
    offsets: np.ndarray | None  # int64, (n + 1,): row i is values[offsets[i]:offsets[i + 1]]

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one row, or of one item of a ragged row."""
        return self.values.shape[1:]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardMeta:
    """What a shard says of itself."""

    rows: int
    row_shape: tuple[int, ...]
    seconds: float  # that the computation took
    crc32: Mapping[str, int]  # of its files, by name


@dataclass(slots=True)
class _Output:
    """A file that is written once, with the size and the checksum of what went into it."""

    file: BinaryIO
    size: int = 0
    crc32: int = 0

    def write(self, data: bytes | memoryview) -> None:
        self.file.write(data)
        self.size += len(data)
        self.crc32 = zlib.crc32(data, self.crc32)


@dataclass(slots=True, kw_only=True, eq=False)
class ShardWriter:
    """Takes the rows of one shard, in order."""

    directory: Path
    dtype: np.dtype[Any]
    row_shape: tuple[int, ...]
    offsets: np.ndarray | None
    seconds: float = 0.0
    """What the computation of these rows took; set it before the shard ends."""
    _digests: np.ndarray
    _values: _Output
    _done: int = field(default=0, init=False)

    def write(self, digests: np.ndarray, values: np.ndarray) -> None:
        """Append n rows: their digests (n, 16), and their values (n, *row_shape), or end to end where they are ragged.

        Raises
        ------
        StoreFull
            When the disk is full; leave the shard then.
        RunError
            When it cannot be written for another reason.
        """
        end = self._done + len(digests)
        n_items = len(digests)
        if self.offsets is not None and end < len(self.offsets):
            n_items = int(self.offsets[end] - self.offsets[self._done])
        expected = (n_items, *self.row_shape)
        if end > len(self._digests) or values.shape != expected or values.dtype != self.dtype:
            raise ValueError(
                f"rows {self._done} to {end} of a shard of {len(self._digests)}: "
                f"expected {self.dtype} values of shape {expected}, got {values.dtype} of shape {values.shape}"
            )
        with writing(self.directory.parent):
            self._values.write(_bytes(values))
        self._digests[self._done : end] = digests
        self._done = end

    def _finish(self) -> None:
        """Write all that belongs to a shard beside its values."""
        if self._done != len(self._digests):
            raise ValueError(f"a shard of {len(self._digests)} rows ended after {self._done}")
        self._values.file.close()
        outputs = {VALUES: self._values, ROWS: _save(self.directory / ROWS, self._digests)}
        if self.offsets is not None:
            outputs[OFFSETS] = _save(self.directory / OFFSETS, self.offsets)
        meta = {
            "rows": self._done,
            "row_shape": self.row_shape,
            "dtype": str(self.dtype),
            "seconds": float(self.seconds),
            "files": {name: {"size": output.size, "crc32": output.crc32} for name, output in outputs.items()},
        }
        (self.directory / META).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def write_shard(
    folder: Path, n_rows: int, dtype: np.dtype[Any], row_shape: tuple[int, ...], lengths: np.ndarray | None
) -> Iterator[ShardWriter]:
    """Write one shard into `folder`; it is there after a clean exit, and nothing of it after any other."""
    if n_rows < 1 or (lengths is not None and len(lengths) != n_rows):
        raise ValueError(f"a shard of {n_rows} rows, with lengths of {None if lengths is None else len(lengths)}")
    row_shape = tuple(map(int, row_shape))  # as numbers of Python, which a header and JSON can hold
    name = uuid.uuid4().hex
    partial = folder / f"{name}{PARTIAL}"
    offsets = None if lengths is None else np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    shape = (int(n_rows) if offsets is None else int(offsets[-1]), *row_shape)
    try:
        with writing(folder):
            partial.mkdir()
            values = _Output((partial / VALUES).open("wb"))
        with _closed_quietly(values.file):
            with writing(folder):
                values.write(_npy_header(dtype, shape))
            writer = ShardWriter(
                directory=partial,
                dtype=dtype,
                row_shape=row_shape,
                offsets=offsets,
                _digests=np.empty((n_rows, DIGEST_BYTES), dtype=np.uint8),
                _values=values,
            )
            yield writer
            with writing(folder):
                writer._finish()
                partial.rename(folder / name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def _closed_quietly(file: BinaryIO) -> Iterator[None]:
    """Close a file that failed, or is given up, without a second complaint about the same full disk."""
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            file.close()


def shard_directories(folder: Path) -> list[Path]:
    """The shards in `folder` that were finished, sound or not."""
    try:
        return sorted(path for path in folder.iterdir() if path.suffix != PARTIAL)
    except OSError:
        return []


def remove_partial_shards(folder: Path) -> None:
    """Remove what killed processes left."""
    for path in folder.glob(f"*{PARTIAL}"):
        shutil.rmtree(path, ignore_errors=True)


def remove_shard(directory: Path) -> None:
    """Remove a shard at once, even if this process is killed on the way."""
    partial = directory.with_suffix(PARTIAL)
    directory.rename(partial)
    shutil.rmtree(partial, ignore_errors=True)


def read_meta(directory: Path) -> ShardMeta | None:
    """What a shard says of itself; None when a file is missing or of another size than it should have."""
    try:
        values = json.loads((directory / META).read_text(encoding="utf-8"))
        meta = ShardMeta(
            rows=int(values["rows"]),
            row_shape=tuple(map(int, values["row_shape"])),
            seconds=float(values["seconds"]),
            crc32={name: int(file["crc32"]) for name, file in values["files"].items()},
        )
        whole = all((directory / name).stat().st_size == file["size"] for name, file in values["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return meta if whole else None


def read_shard(directory: Path, dtype: np.dtype[Any]) -> Shard | None:
    """Map a shard; None when it is missing, truncated, or cannot be read in any other way. Checksums are not read."""
    meta = read_meta(directory)
    if meta is None:
        return None
    try:
        digests = np.load(directory / ROWS)
        values = np.load(directory / VALUES, mmap_mode="r").view(np.ndarray)
        offsets = np.load(directory / OFFSETS) if OFFSETS in meta.crc32 else None
        n_items = meta.rows if offsets is None else int(offsets[-1])
    except Exception:  # whatever is wrong with it: its rows are computed again
        return None
    wanted = ((meta.rows, DIGEST_BYTES), (n_items, *meta.row_shape), dtype)
    return Shard(digests, values, offsets) if (digests.shape, values.shape, values.dtype) == wanted else None


def flaw_of(directory: Path, dtype: np.dtype[Any]) -> str | None:
    """What is wrong with a shard, or None; reads all of it once."""
    meta = read_meta(directory)
    if meta is None:
        return "a file is missing, truncated or not as written"
    for name, crc32 in meta.crc32.items():
        try:
            if _crc32(directory / name) != crc32:
                return "checksum differs"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return None if read_shard(directory, dtype) else "it is not of the form this version writes"


def _crc32(path: Path) -> int:
    crc32 = 0
    with path.open("rb") as file:
        while part := file.read(READ_BYTES):
            crc32 = zlib.crc32(part, crc32)
    return crc32


def _save(path: Path, array: np.ndarray) -> _Output:
    with path.open("wb") as file:
        output = _Output(file)
        output.write(_npy_header(array.dtype, array.shape))
        output.write(_bytes(array))
    return output


def _npy_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    )
    return header.getvalue()


def _bytes(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
