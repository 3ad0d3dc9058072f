"""Prepared samples: every image decoded and resized, every text tokenized, every table encoded, once for all runs.

They are rows of the feature store, found again by what a sample is; only those that no run prepared before are prepared
now. The host writes them; children map the files, so pages are shared and nothing is copied.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import assert_never

import numpy as np

from automl_tl.data import ImageSamples, Samples, TableEncoder, TableSamples, TextSamples
from automl_tl.data.decoding import decode_in_order
from automl_tl.errors import DataError
from automl_tl.features.rows import ArrayValues, ImageRows, Rows, TableRows, TokenRows, Values
from automl_tl.features.store import Entry, EntryKey
from automl_tl.plugin import Backbone, ImageInput, TabularInput, TextInput

SHARD_ROWS = 4096
AT_ONCE = 64  # images that are written together
IMAGE_SIZES = (64, 96, 128, 160, 192, 224, 256, 288, 320)


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFormat:
    """How a backbone's inputs are prepared for one task; two backbones with equal keys share the prepared samples."""

    size: int | None = None  # pixels a side
    encoder: TableEncoder | None = None

    def key(self, backbone: Backbone) -> str:
        """Directory name of the samples prepared so for this backbone."""
        match backbone.input:
            case ImageInput():
                return f"image-{self.size}-on-white"  # how pixels are had: another way needs another name
            case TextInput(identity=identity):
                return f"text-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
            case TabularInput():
                encoder = json.dumps(self.encoder.to_json() if self.encoder else None, sort_keys=True)
                return f"tabular-{hashlib.sha256(encoder.encode()).hexdigest()[:12]}"
            case other:
                assert_never(other)

    def input_shape(self, backbone: Backbone) -> tuple[int, ...]:
        """Shape of one sample as the backbone's `build` takes it."""
        match backbone.input:
            case ImageInput():
                return (3, self.size or 0, self.size or 0)
            case TextInput():
                return ()
            case TabularInput():
                return (self.encoder.width if self.encoder else 0,)
            case other:
                assert_never(other)


def image_size_for(backbone: Backbone, median_side: int, wanted: int | None) -> int:
    """Pixels a side at which a backbone sees a task's images.

    Small pictures are enlarged about twice, because a network that halves its resolution five times sees nothing in 28
    pixels; nothing is enlarged beyond what the weights were trained at.
    """
    assert isinstance(backbone.input, ImageInput)
    if wanted is not None:
        return max(wanted, backbone.input.smallest)
    enlarged = next((size for size in IMAGE_SIZES if size >= 2 * median_side), backbone.input.size)
    return max(min(enlarged, backbone.input.size), backbone.input.smallest)


def samples_key(backbone: Backbone, layout: InputFormat) -> EntryKey:
    """Under which key the store keeps the samples as this backbone reads them."""
    match backbone.input:
        case ImageInput():
            dtype: str = "uint8"
        case TextInput():
            dtype = "int32"
        case TabularInput():
            dtype = "float32"
        case other:
            assert_never(other)
    return EntryKey(kind="samples", inputs=layout.key(backbone), dtype=dtype)


def prepare_samples(
    samples: Samples,
    digests: np.ndarray,
    backbone: Backbone,
    layout: InputFormat,
    entry: Entry,
    *,
    tick: Callable[[int], None] = lambda done: None,
) -> None:
    """Prepare the samples that the entry does not hold yet; `tick(done)` is called as images are decoded.

    Raises
    ------
    RunError
        When the disk is full or cannot be written.
    """
    with entry.building():
        missing = entry.missing(digests)
        for start in range(0, len(missing), SHARD_ROWS):
            part = missing[start : start + SHARD_ROWS]
            _write(samples.take(part), digests[part], backbone, layout, entry, _later(tick, start))


def _later(tick: Callable[[int], None], before: int) -> Callable[[int], None]:
    return lambda done: tick(before + done)


def open_samples(values: Values, backbone: Backbone, pad_id: int) -> Rows:
    """Rows over prepared samples; the files are not read until a batch is drawn."""
    match backbone.input:
        case ImageInput(mean=mean, std=std):
            return ImageRows(values, mean, std)
        case TextInput():
            return TokenRows(values, pad_id)
        case TabularInput():
            return TableRows(values)
        case other:
            assert_never(other)


def rows_in_memory(samples: Samples, backbone: Backbone, layout: InputFormat) -> Rows:
    """The same rows without a directory, for prediction."""
    match samples, backbone.input:
        case ImageSamples(), ImageInput(mean=mean, std=std):
            size = layout.size or 0
            pixels = np.empty((len(samples), 3, size, size), dtype=np.uint8)
            for index, image in enumerate(decode_in_order(lambda index: samples.pixels(index, size), len(samples))):
                pixels[index] = image.transpose(2, 0, 1)
            return ImageRows(ArrayValues(pixels), mean, std)
        case TextSamples(texts=texts), TextInput(tokenizer=make_tokenizer):
            tokenizer = make_tokenizer()
            return TokenRows(ArrayValues(*_tokenize(texts, tokenizer.encode)), tokenizer.pad_id)
        case TableSamples(frame=frame), TabularInput():
            assert layout.encoder is not None
            return TableRows(ArrayValues(layout.encoder.transform(frame)))
        case _:
            raise _mismatch(samples, backbone)


def _write(
    samples: Samples,
    digests: np.ndarray,
    backbone: Backbone,
    layout: InputFormat,
    entry: Entry,
    tick: Callable[[int], None],
) -> None:
    """Prepare these samples and add them to the entry as one shard."""
    began = time.perf_counter()
    match samples, backbone.input:
        case ImageSamples(), ImageInput():
            with entry.shard(len(samples), row_shape=layout.input_shape(backbone)) as shard:
                images = decode_in_order(lambda index: samples.pixels(index, layout.size or 0), len(samples))
                for start in range(0, len(samples), AT_ONCE):  # writing one by one would stop the threads that decode
                    tick(start)
                    block = np.stack([image.transpose(2, 0, 1) for image in islice(images, AT_ONCE)])
                    shard.write(digests[start : start + AT_ONCE], block)
                shard.seconds = time.perf_counter() - began
        case TextSamples(texts=texts), TextInput(tokenizer=make_tokenizer):
            ids, offsets = _tokenize(texts, make_tokenizer().encode)
            with entry.shard(len(samples), row_shape=(), lengths=np.diff(offsets)) as shard:
                shard.write(digests, ids)
                shard.seconds = time.perf_counter() - began
        case TableSamples(frame=frame), TabularInput():
            assert layout.encoder is not None
            with entry.shard(len(samples), row_shape=layout.input_shape(backbone)) as shard:
                shard.write(digests, layout.encoder.transform(frame))
                shard.seconds = time.perf_counter() - began
        case _:
            raise _mismatch(samples, backbone)


def _tokenize(
    texts: tuple[str, ...], encode: Callable[[tuple[str, ...]], list[list[int]]]
) -> tuple[np.ndarray, np.ndarray]:
    encoded = encode(texts)
    offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in encoded])]).astype(np.int64)
    return np.fromiter((token for ids in encoded for token in ids), dtype=np.int32, count=int(offsets[-1])), offsets


def _mismatch(samples: Samples, backbone: Backbone) -> DataError:
    return DataError(
        f"backbone {backbone.name!r} reads {backbone.input.modality} inputs, but the task's samples are "
        f"{samples.modality}; choose a backbone of that modality"
    )
