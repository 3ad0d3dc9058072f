"""What a sample is, in 16 bytes: how copies are known, and the name under which the store keeps what was computed.

The digest is of the content alone. A renamed file, a shuffled table or another split finds its features again, and a
changed sample never finds those of the old one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from automl_tl.data.samples import ImageSamples, Samples, TableSamples, TextSamples
from automl_tl.errors import DataError

DIGEST_BYTES = 16
CHUNK = 64  # samples a thread takes at once

T = TypeVar("T")


def digest_samples(samples: Samples) -> np.ndarray:
    """Return a digest of every sample, uint8 (N, 16); equal samples have equal digests.

    Images in files are digested as they lie there, undecoded.

    Raises
    ------
    DataError
        When an image file cannot be read.
    """
    if isinstance(samples, ImageSamples):
        digests = _in_threads(lambda source: _image(source, samples.value_range), samples.sources)
    elif isinstance(samples, TextSamples):
        digests = [_digest("text", text.encode("utf-8", "surrogatepass")) for text in samples.texts]
    else:
        digests = list(_table_rows(samples))
    return np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, DIGEST_BYTES)


def _digest(kind: str, *parts: bytes | memoryview) -> bytes:
    """A digest of one sample; `kind` keeps a text from passing for a file of the same bytes."""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES, person=kind.encode())
    for part in parts:
        digest.update(part)
    return digest.digest()


def _in_threads(digest: Callable[[T], bytes], items: Sequence[T]) -> list[bytes]:
    """Digest in threads: reading files and hashing release the interpreter lock."""
    chunks = [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]
    with ThreadPoolExecutor() as pool:
        return [one for many in pool.map(lambda chunk: [digest(item) for item in chunk], chunks) for one in many]


def _image(source: Path | np.ndarray, value_range: tuple[float, float]) -> bytes:
    if isinstance(source, np.ndarray):
        low, high = map(float, value_range)
        header = json.dumps([source.dtype.str, source.shape, low, high]).encode()
        return _digest("image array", header, np.ascontiguousarray(source).data)
    try:
        return _digest("image file", source.read_bytes())
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"the image {source} cannot be read: {reason}; restore it, or start a new run") from None


def _table_rows(samples: TableSamples) -> Iterator[bytes]:
    """Digests of rows: the names of numeric and of other columns, then the numbers, then the other values."""
    frame = samples.frame
    columns = [frame.iloc[:, position] for position in range(frame.shape[1])]
    numeric = [column for column in columns if column.dtype.kind in "biuf"]
    other = [column for column in columns if column.dtype.kind not in "biuf"]
    header = json.dumps([[str(column.name) for column in group] for group in (numeric, other)]).encode()

    numbers = np.empty((len(frame), len(numeric)))
    for position, column in enumerate(numeric):
        numbers[:, position] = column.to_numpy(dtype=np.float64, na_value=np.nan)
    numbers += 0.0  # of the two zeros and the many NaNs, which compare or mean the same, one each
    numbers[np.isnan(numbers)] = np.nan

    cells = np.empty((len(frame), len(other)), dtype=object)
    for position, column in enumerate(other):
        cells[:, position] = column.to_numpy(dtype=object)
        cells[column.isna().to_numpy(), position] = None

    for row, values in zip(numbers, cells, strict=True):
        yield _digest("table row", header, row.tobytes(), json.dumps(values.tolist(), default=_typed).encode())


def _typed(value: Any) -> list[str]:
    """What JSON has no word for, told apart from a string that looks like it."""
    return [type(value).__name__, str(value)]
