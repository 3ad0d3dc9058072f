"""Samples without labels: images, texts or table rows, as plain immutable values.

Images stay files until their pixels are asked for. Nothing here knows labels, splits or backbones.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, TypeVar

import numpy as np
from PIL import Image, ImageOps

from automl_tl.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises on broken files

Indices = Sequence[int] | np.ndarray
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class ImageSamples:
    """N images, as files or as arrays of shape (H, W), (H, W, 1), (H, W, 3), (1, H, W) or (3, H, W)."""

    sources: tuple[Path | np.ndarray, ...]
    ids: tuple[str, ...]  # names for people, in the order of `sources`
    value_range: tuple[float, float] = (0.0, 255.0)  # of arrays: these values become black and white
    modality: ClassVar[Literal["image"]] = "image"

    def __len__(self) -> int:
        return len(self.sources)

    def take(self, indices: Indices) -> ImageSamples:
        """Return the samples at `indices`, in that order."""
        return replace(self, sources=_pick(self.sources, indices), ids=_pick(self.ids, indices))

    def pixels(self, index: int, size: int) -> np.ndarray:
        """Return one image as uint8 RGB of shape (size, size, 3), resized bilinearly with antialiasing.

        Raises:
            DataError: the file cannot be read, or the array is not of an image's shape.
        """
        source = self.sources[index]
        if isinstance(source, np.ndarray):
            return _resized(Image.fromarray(_as_uint8(source, self.value_range)), size)
        try:
            with Image.open(source) as image:
                image.draft(None, (2 * size, 2 * size))  # lets a JPEG decode at a fraction of its size
                return _resized(image, size)
        except UNREADABLE as error:
            raise DataError(f"the image {source} cannot be read: {error}; repair or remove it") from error

    def median_side(self) -> int:
        """Return the median length in pixels of the shorter side, over up to 64 evenly spread samples."""
        spread = np.unique(np.linspace(0, len(self) - 1, num=min(64, len(self))).astype(int))
        return int(np.median([_shorter_side(self.sources[index]) for index in spread]))


@dataclass(frozen=True, eq=False)
class TextSamples:
    """N texts."""

    texts: tuple[str, ...]
    ids: tuple[str, ...]
    modality: ClassVar[Literal["text"]] = "text"

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: Indices) -> TextSamples:
        """Return the samples at `indices`, in that order."""
        return TextSamples(texts=_pick(self.texts, indices), ids=_pick(self.ids, indices))


@dataclass(frozen=True, eq=False)
class TableSamples:
    """N rows of feature columns: numbers as float64, categories as strings."""

    frame: pd.DataFrame
    ids: tuple[str, ...]
    modality: ClassVar[Literal["tabular"]] = "tabular"

    def __len__(self) -> int:
        return len(self.frame)

    def take(self, indices: Indices) -> TableSamples:
        """Return the samples at `indices`, in that order."""
        rows = self.frame.iloc[np.asarray(indices, dtype=int)].reset_index(drop=True)
        return TableSamples(frame=rows, ids=_pick(self.ids, indices))


Samples = ImageSamples | TextSamples | TableSamples


def together(first: Samples, second: Samples) -> Samples:
    """Return the samples of two parts of one task, one after the other."""
    ids = (*first.ids, *second.ids)
    if isinstance(first, ImageSamples) and isinstance(second, ImageSamples):
        return replace(first, sources=(*first.sources, *second.sources), ids=ids)
    if isinstance(first, TextSamples) and isinstance(second, TextSamples):
        return TextSamples(texts=(*first.texts, *second.texts), ids=ids)
    if isinstance(first, TableSamples) and isinstance(second, TableSamples):
        import pandas as pd

        return TableSamples(frame=pd.concat([first.frame, second.frame], ignore_index=True), ids=ids)
    raise TypeError(f"parts of one task are of one modality, got {first.modality} and {second.modality}")


def image_flaw(source: Path | np.ndarray) -> str | None:
    """Return what is wrong with one image, or None when its pixels can be had."""
    if isinstance(source, np.ndarray):
        if not _is_image_shape(source.shape):
            return f"has shape {source.shape}, expected (H, W), (H, W, 1), (H, W, 3), (1, H, W) or (3, H, W)"
        return None if np.isfinite(source).all() else "holds NaN or infinite values"
    try:
        with Image.open(source) as image:
            image.draft(None, (32, 32))
            image.load()  # `Image.verify` would pass a truncated JPEG
            if image.mode == "F":
                return "holds floating-point values, of which none is known to be white; store it in 8 or 16 bits"
    except UNREADABLE as error:
        return f"cannot be read as an image: {error}"
    return None


def as_rgb(image: Image.Image) -> Image.Image:
    """Return the image upright and in 8-bit RGB, from any of Pillow's modes; what is transparent lies on white.

    The color below what is transparent says nothing: that of a black drawing is often black as well.
    """
    image = _upright(image)
    if image.mode.startswith("I"):  # 16-bit gray: Pillow's own conversion would clip at 255
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    if image.has_transparency_data:
        transparent = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", transparent.size, "white"), transparent)
    return image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    """Return the image turned as its camera noted; one whose notes cannot be understood as it is."""
    image.load()  # what is wrong with the pixels is not to be taken for a broken note
    try:
        return ImageOps.exif_transpose(image)
    except (*UNREADABLE, struct.error, KeyError, TypeError):
        return image


def _pick(values: tuple[T, ...], indices: Indices) -> tuple[T, ...]:
    return tuple(values[int(index)] for index in indices)


def _resized(image: Image.Image, size: int) -> np.ndarray:
    return np.asarray(as_rgb(image).resize((size, size), Image.Resampling.BILINEAR))


def _is_image_shape(shape: tuple[int, ...]) -> bool:
    return 0 not in shape and (len(shape) == 2 or (len(shape) == 3 and (shape[-1] in (1, 3) or shape[0] in (1, 3))))


def _as_uint8(array: np.ndarray, value_range: tuple[float, float]) -> np.ndarray:
    """Return (H, W) or (H, W, 3) uint8 of an array whose values lie in `value_range`."""
    flaw = image_flaw(array)
    if flaw is not None:
        raise DataError(f"an image array {flaw}")
    if array.ndim == 3 and array.shape[-1] not in (1, 3):
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.dtype == np.uint8 and value_range == (0.0, 255.0):
        return np.ascontiguousarray(array)
    low, high = value_range
    scaled = (array.astype(np.float64) - low) * (255.0 / max(high - low, 1e-12))
    return np.rint(scaled).clip(0, 255).astype(np.uint8)


def _shorter_side(source: Path | np.ndarray) -> int:
    if isinstance(source, np.ndarray):
        channels_first = source.ndim == 3 and source.shape[-1] not in (1, 3)
        return int(min(source.shape[1:] if channels_first else source.shape[:2]))
    with Image.open(source) as image:
        return min(image.size)
