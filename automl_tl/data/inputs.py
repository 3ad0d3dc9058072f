"""Unlabelled inputs, for a trained model or to learn from, read the way the training inputs were."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

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

MOST_UNLABELED = 4000  # samples to learn from: more take longer to learn from than they can teach


def read_inputs(path: Path, schema: InputSchema, *, on_bad_sample: Literal["error", "skip"] = "error") -> Samples:
    """Return the samples of an image, a folder of images, a table (extra columns are ignored) or an .npz with x.

    Raises:
        DataError: the path does not exist, does not fit the schema, or holds a flawed sample that is not to be skipped.
    """
    path = resolve(str(path))
    samples, flaws = _read(path, schema)
    otherwise = ", or leave such samples out with --skip-bad (on_bad_sample)"
    return _usable(samples, flaws, str(path), skip=on_bad_sample == "skip", otherwise=otherwise)


def inputs_from_python(x: Any, schema: InputSchema) -> Samples:
    """Return the samples of arrays, lists or a frame.

    Raises:
        DataError: x does not fit the schema, or a sample is flawed.
    """
    samples, flaws = inputs_like(x, schema, Origin("x", "x"))
    return _usable(samples, flaws, "x")


def unlabeled_samples(
    source: Any,
    schema: InputSchema,
    *,
    seed: int,
    base: Path | None = None,
    on_bad_sample: Literal["error", "skip"] = "error",
) -> tuple[Samples, str]:
    """Return samples to learn from without labels, in random order and not too many, and a note on how many.

    Args:
        source: a path as for `read_inputs`, relative to the current directory or to `base`; or arrays, lists or a
            frame.
        schema: of the labelled samples. Other columns, the label's among them, are ignored.
        seed: decides which samples are taken, and in which order.
        base: the folder of the configuration file.
        on_bad_sample: what to do about flawed ones among those that are taken.

    Raises:
        DataError: the source does not exist, does not fit the schema, or holds a flawed sample that is not to be
            skipped.
    """
    if isinstance(source, Path):
        source = resolve(str(source), base)
        samples, flaws = _read(source, schema)
        where = str(source)
    else:
        where = "the unlabeled data"
        samples, flaws = inputs_like(source, schema, Origin(where, "unlabeled"))
    taken = np.random.default_rng(seed).permutation(len(samples))[:MOST_UNLABELED]
    place = {int(index): number for number, index in enumerate(taken)}
    found = samples.take(taken)
    flaws = image_flaws(found) | {place[index]: flaw for index, flaw in flaws.items() if index in place}
    skip, otherwise = on_bad_sample == "skip", ", or set data.on_bad_sample: skip"
    kept, skipped = flawless(flaws, len(found), where, skip=skip, otherwise=otherwise)
    drawn = "" if len(taken) == len(samples) else f" of {len(samples):,}, drawn at random,"
    note = f"{len(kept):,}{drawn} unlabeled samples of {where} are there to learn from."
    return found.take(kept), f"{note} {skipped}" if skipped else note


def _read(path: Path, schema: InputSchema) -> tuple[Samples, dict[int, str]]:
    if path.is_dir() or path.suffix.lower() in IMAGE_SUFFIXES:
        return _images(path, schema), {}
    if format_of(path) == "npz":
        return inputs_like(unlabelled_array(path), schema, Origin(str(path), path.name))
    table = table_file(path)
    if schema.input_column is None and schema.modality != "tabular":
        raise DataError(f"{path} is a table, but the training inputs were {schema.modality}s that lay in no table")
    return samples_from_frame(table.frame, schema, table.origin, table.folder)


def _images(path: Path, schema: InputSchema) -> ImageSamples:
    if schema.modality != "image":
        raise DataError(f"{path} holds images, but the training inputs were {schema.modality} ones")
    sources = images_below(path) if path.is_dir() else [path]
    if not sources:
        raise DataError(f"{path} holds no image; known suffixes are {', '.join(IMAGE_SUFFIXES)}")
    root = path if path.is_dir() else path.parent
    ids = tuple(source.relative_to(root).as_posix() for source in sources)
    return ImageSamples(tuple(sources), ids, schema.value_range)


def _usable(samples: Samples, flaws: dict[int, str], where: str, *, skip: bool = False, otherwise: str = "") -> Samples:
    flaws = image_flaws(samples) | flaws
    kept, _ = flawless(flaws, len(samples), where, skip=skip, otherwise=otherwise)
    return samples.take(kept) if flaws else samples
