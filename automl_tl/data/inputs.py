"""Unlabelled inputs for a trained model, read the way its training inputs were."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from automl_tl.data.arrays import inputs_like
from automl_tl.data.folder import images_below
from automl_tl.data.labelled import Origin
from automl_tl.data.locate import format_of, resolve
from automl_tl.data.npz import unlabelled_array
from automl_tl.data.partition import flawless, image_flaws
from automl_tl.data.samples import IMAGE_SUFFIXES, ImageSamples, Samples
from automl_tl.data.schema import InputSchema
from automl_tl.data.table import samples_from_frame, table_file
from automl_tl.errors import DataError


def read_inputs(path: Path, schema: InputSchema, *, on_bad_sample: Literal["error", "skip"] = "error") -> Samples:
    """Return the samples of an image, a folder of images, a table (extra columns are ignored) or an .npz with x.

    Raises:
        DataError: the path does not exist, does not fit the schema, or holds a flawed sample that is not to be skipped.
    """
    path = resolve(str(path))
    samples, flaws = _read(path, schema)
    return _usable(samples, flaws, str(path), skip=on_bad_sample == "skip")


def inputs_from_python(x: Any, schema: InputSchema) -> Samples:
    """Return the samples of arrays, lists or a frame.

    Raises:
        DataError: x does not fit the schema, or a sample is flawed.
    """
    samples, flaws = inputs_like(x, schema, Origin("x", "x"))
    return _usable(samples, flaws, "x", skip=False)


def _read(path: Path, schema: InputSchema) -> tuple[Samples, dict[int, str]]:
    if path.is_dir() or path.suffix.lower() in IMAGE_SUFFIXES:
        return _images(path, schema), {}
    if format_of(path) == "npz":
        return inputs_like(unlabelled_array(path), schema, Origin(str(path), path.name))
    table = table_file(path)
    if schema.input_column is None and schema.modality != "tabular":
        raise DataError(f"{path} is a table, but the model was trained on {schema.modality}s that lay in no table")
    return samples_from_frame(table.frame, schema, table.origin, table.folder)


def _images(path: Path, schema: InputSchema) -> ImageSamples:
    if schema.modality != "image":
        raise DataError(f"{path} holds images, but the model was trained on {schema.modality} inputs")
    sources = images_below(path) if path.is_dir() else [path]
    if not sources:
        raise DataError(f"{path} holds no image; known suffixes are {', '.join(IMAGE_SUFFIXES)}")
    root = path if path.is_dir() else path.parent
    ids = tuple(source.relative_to(root).as_posix() for source in sources)
    return ImageSamples(tuple(sources), ids, schema.value_range)


def _usable(samples: Samples, flaws: dict[int, str], where: str, *, skip: bool) -> Samples:
    flaws = image_flaws(samples) | flaws
    kept, _ = flawless(flaws, len(samples), where, skip=skip)
    return samples.take(kept) if flaws else samples
