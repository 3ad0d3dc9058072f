"""Prepared samples: every image decoded and resized, every text tokenized, every table encoded, once per run.

The host writes them; children map the files by path, so pages are shared and nothing is copied. A directory appears
whole or not at all: it is written beside its place and renamed into it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

import numpy as np

from automl_tl.data import ImageSamples, Samples, TableEncoder, TableSamples, TextSamples
from automl_tl.errors import DataError, RunError
from automl_tl.features.rows import ImageRows, Rows, TableRows, TokenRows
from automl_tl.plugin import Backbone, ImageInput, TabularInput, TextInput

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
                return f"image-{self.size}"
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


def prepare_samples(
    samples: Samples,
    backbone: Backbone,
    layout: InputFormat,
    directory: Path,
    *,
    tick: Callable[[int], None] | None = None,
) -> Path:
    """Write the samples as the backbone reads them, unless the directory holds exactly these already; return it.

    `tick(done)` is called as images are decoded.

    Raises
    ------
    RunError
        When the disk is full, or the directory holds other samples than these.
    """
    identity = _identity(samples)
    meta = directory / "meta.json"
    if meta.exists():
        if json.loads(meta.read_text())["identity"] != identity:
            raise _changed(directory)
        return directory
    partial = directory.with_name(f"{directory.name}.{os.getpid()}.partial")
    try:
        with _writing(directory):
            partial.mkdir(parents=True, exist_ok=True)  # a killed process of the same number may have left it
            facts = _write(samples, backbone, layout, partial, tick or (lambda done: None))
            (partial / "meta.json").write_text(json.dumps({"identity": identity, "n": len(samples), **facts}))
            partial.replace(directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return directory


def check_unchanged(directory: Path, *splits: tuple[Samples, np.ndarray]) -> None:
    """Note what samples and labels a directory is made from; raises RunError when it was made from other ones.

    The samples alone do not tell: a table that changed has another encoding, and so another place.
    """
    digest = hashlib.sha256()
    for samples, labels in splits:
        digest.update(_identity(samples).encode() + labels.tobytes())
    note = directory / "data.sha256"
    if note.exists():
        if note.read_text() != digest.hexdigest():
            raise _changed(directory)
        return
    with _writing(note):
        partial = note.with_suffix(".partial")
        partial.write_text(digest.hexdigest())
        partial.replace(note)


def _changed(directory: Path) -> RunError:
    return RunError(
        f"the data changed since {directory} was written; expected the samples the run began with; "
        "start a new run, or restore the data"
    )


def write_labels(labels: np.ndarray, path: Path) -> None:
    """Write a split's labels; raises RunError when the disk is full."""
    with _writing(path):
        np.save(path, labels)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Say in one sentence what kept `path` from being written."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise RunError(f"no space is left on the disk for {path}; free some and resume") from None
        raise RunError(f"cannot write {path}: {error.strerror or error}") from None


def open_samples(directory: Path, backbone: Backbone) -> Rows:
    """Map prepared samples; the files are not read until a batch is drawn."""
    match backbone.input:
        case ImageInput(mean=mean, std=std):
            return ImageRows(np.load(directory / "pixels.npy", mmap_mode="r"), mean, std)
        case TextInput():
            pad_id = int(json.loads((directory / "meta.json").read_text())["pad_id"])
            offsets = np.load(directory / "offsets.npy")
            return TokenRows(np.load(directory / "ids.npy", mmap_mode="r"), offsets, pad_id)
        case TabularInput():
            return TableRows(np.load(directory / "values.npy"))
        case other:
            assert_never(other)


def rows_in_memory(samples: Samples, backbone: Backbone, layout: InputFormat) -> Rows:
    """The same rows without a directory, for prediction."""
    match samples, backbone.input:
        case ImageSamples(), ImageInput(mean=mean, std=std):
            size = layout.size or 0
            pixels = np.empty((len(samples), 3, size, size), dtype=np.uint8)
            for index, image in enumerate(_decoded(samples, size)):
                pixels[index] = image
            return ImageRows(pixels, mean, std)
        case TextSamples(texts=texts), TextInput(tokenizer=make_tokenizer):
            tokenizer = make_tokenizer()
            return TokenRows(*_tokenize(texts, tokenizer.encode), tokenizer.pad_id)
        case TableSamples(frame=frame), TabularInput():
            assert layout.encoder is not None
            return TableRows(layout.encoder.transform(frame))
        case _:
            raise _mismatch(samples, backbone)


def _write(
    samples: Samples, backbone: Backbone, layout: InputFormat, directory: Path, tick: Callable[[int], None]
) -> dict[str, int]:
    match samples, backbone.input:
        case ImageSamples(), ImageInput():
            shape = (len(samples), *layout.input_shape(backbone))
            # Not a memory map: on a full disk, writing to one kills the process, and nobody learns why.
            with (directory / "pixels.npy").open("wb") as file:
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                for index, image in enumerate(_decoded(samples, shape[-1])):
                    file.write(image.tobytes())
                    if index % 64 == 0:
                        tick(index)
            return {}
        case TextSamples(texts=texts), TextInput(tokenizer=make_tokenizer):
            tokenizer = make_tokenizer()
            ids, offsets = _tokenize(texts, tokenizer.encode)
            np.save(directory / "ids.npy", ids)
            np.save(directory / "offsets.npy", offsets)
            return {"pad_id": tokenizer.pad_id}
        case TableSamples(frame=frame), TabularInput():
            assert layout.encoder is not None
            np.save(directory / "values.npy", layout.encoder.transform(frame))
            return {}
        case _:
            raise _mismatch(samples, backbone)


def _decoded(samples: ImageSamples, size: int) -> Iterator[np.ndarray]:
    """Yield images (3, S, S) in order; decoding releases the interpreter lock, so threads share the cores."""
    with ThreadPoolExecutor() as pool:
        for image in pool.map(lambda i: samples.pixels(i, size), range(len(samples))):
            yield image.transpose(2, 0, 1)


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


def _identity(samples: Samples) -> str:
    """A digest of what the samples are, cheap enough for every start: names, and sizes and times of files."""
    digest = hashlib.sha256("\n".join(samples.ids).encode())
    if isinstance(samples, ImageSamples):
        for source in samples.sources:
            if isinstance(source, Path):
                stat = source.stat()
                digest.update(f"{source}{stat.st_size}{stat.st_mtime_ns}".encode())
            else:
                digest.update(np.ascontiguousarray(source).tobytes())
    elif isinstance(samples, TextSamples):
        digest.update("\x00".join(samples.texts).encode())
    else:
        digest.update(samples.frame.to_csv(index=False).encode())
    return digest.hexdigest()
