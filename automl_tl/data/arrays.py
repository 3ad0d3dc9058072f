"""Python objects as samples: arrays, lists, frames, PIL images and torch-like datasets.

Shapes: N samples, D features, C = 1 or 3 channels, H and W pixels. (N, D) is a table; (N, H, W), (N, H, W, C) and
(N, C, H, W) are images; strings are texts, or image paths when most end like one; a frame follows the rules of tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from automl_tl.config import DataConfig
from automl_tl.data.labelled import Dataset, Labelled, Origin, Part, parse_labels
from automl_tl.data.samples import IMAGE_SUFFIXES, ImageSamples, Samples, as_rgb
from automl_tl.data.schema import InputSchema
from automl_tl.data.table import Table, dataset_from_tables, samples_from_frame
from automl_tl.errors import DataError
from automl_tl.plugin import Modality

TEXT_COLUMN = "text"  # what the one column of a list of texts is called

Sources = tuple[Path | np.ndarray, ...]
Inputs = tuple[Modality | None, Sources | pd.DataFrame]
"""Images, or a frame whose modality is known or, as None, still to be inferred from its columns."""


def dataset_from_python(parts: Mapping[Part, tuple[Any, Any]], config: DataConfig, name: str = "x") -> Dataset:
    """Return the labelled samples of (x, y) pairs; `name` names them in messages.

    Raises:
        DataError: x is of a kind that cannot be read, or x and y differ in length.
    """
    origins = {part: Origin(f"{name} ({part})", part) for part in parts}
    pairs = {part: _materialized(x, y, origins[part]) for part, (x, y) in parts.items()}
    modality, inputs = as_inputs(pairs["train"][0], config.modality, origins["train"])
    for part, (_, y) in pairs.items():
        if y is None and modality is not None:
            raise DataError(f"{origins[part].name} has no labels; pass y, one label a sample")
    if isinstance(inputs, pd.DataFrame):
        frames = {"train": inputs} | {
            part: _frame_like(as_inputs(x, modality, origins[part]), tuple(inputs.columns), origins[part])
            for part, (x, _) in pairs.items()
            if part != "train"
        }
        tables = {part: Table(frames[part], origins[part], Path(), y) for part, (_, y) in pairs.items()}
        _check_lengths({part: (len(frames[part]), y) for part, (_, y) in pairs.items()}, origins)
        if modality is not None:
            reject_table_settings(config, name, "an array")
        return dataset_from_tables(tables, config, _frame_schema(modality, inputs))
    reject_table_settings(config, name, "a set of images")
    schema = InputSchema(modality="image", value_range=value_range(inputs))
    labelled: dict[Part, Labelled] = {}
    multilabel, classes = False, None
    for part, (x, y) in pairs.items():
        samples, flaws = inputs_like(x, schema, origins[part])
        _check_lengths({part: (len(samples), y)}, origins)
        labels = parse_labels(y, origins[part], separator=config.label_separator)
        labelled[part] = Labelled(origins[part], samples, labels.names, None, {**flaws, **labels.flaws})
        multilabel, classes = multilabel or labels.multilabel, classes or labels.classes
    return Dataset(labelled, schema, multilabel, classes, (schema.summary(),))


def inputs_like(x: Any, schema: InputSchema, origin: Origin) -> tuple[Samples, dict[int, str]]:
    """Return the samples of x read as the training inputs were, and what is wrong with single ones.

    Raises:
        DataError: x is of another modality, or of other columns, than the training inputs.
    """
    modality, inputs = as_inputs(x, schema.modality, origin)
    if isinstance(inputs, pd.DataFrame):
        if schema.modality == "image" and schema.input_column is None:
            raise DataError(f"{origin.name} is a table, but the training inputs were images; pass images")
        if modality is not None:
            columns = schema.feature_columns if schema.input_column is None else (schema.input_column,)
            inputs = _frame_like((modality, inputs), columns, origin)
        return samples_from_frame(inputs, schema, origin, Path())
    if schema.modality != "image":
        raise DataError(f"{origin.name} holds images, but the training inputs were {schema.modality}")
    return ImageSamples(inputs, _image_ids(inputs, origin), schema.value_range), {}


def as_inputs(x: Any, modality: Modality | None, origin: Origin) -> Inputs:
    """Return x as images or as a frame; a given modality decides where the values alone do not.

    Raises:
        DataError: x is empty or of no kind that can be read, or contradicts the given modality.
    """
    found, inputs = _as_inputs(x, modality, origin)
    if len(inputs) == 0:
        raise DataError(f"{origin.name} is empty; expected at least one sample")
    if None not in (found, modality) and found != modality:
        raise DataError(f"{origin.name} holds {found} inputs, but {modality} ones are expected; check data.modality")
    return found, inputs


def value_range(sources: Sources) -> tuple[float, float]:
    """Return the values that mean black and white: 0 to 255 for bytes and files, else what the arrays span."""
    arrays = [source for source in sources if isinstance(source, np.ndarray)]
    finite = [values for values in (array[np.isfinite(array)] for array in arrays) if values.size]
    if not finite or all(array.dtype == np.uint8 for array in arrays):
        return (0.0, 255.0)
    low = min(float(values.min()) for values in finite)
    high = max(float(values.max()) for values in finite)
    for least, most in ((0.0, 1.0), (-1.0, 1.0)):
        if least <= low and high <= most:
            return (least, most)
    return (0.0, 255.0) if low >= 0 and 128 < high <= 255 else (min(low, 0.0), high)


def reject_table_settings(config: DataConfig, where: str, what: str) -> None:
    """Raise when a setting that speaks of a table's columns is given for something else."""
    settings = {"label": config.label, "input": config.input, "group": config.group, "drop": config.drop}
    for setting, value in settings.items():
        if value:
            raise DataError(f"data.{setting} names a column of a table, but {where} is {what}; remove data.{setting}")


def _as_inputs(x: Any, modality: Modality | None, origin: Origin) -> Inputs:
    if isinstance(x, pd.DataFrame):
        frame = x.reset_index(drop=True)
        frame.columns = frame.columns.map(str)
        if not frame.columns.is_unique:
            twice = frame.columns[frame.columns.duplicated()][0]
            raise DataError(f"{origin.name} has several columns {twice!r}; rename or remove all but one")
        return None, frame
    if isinstance(x, pd.Series) or (isinstance(x, np.ndarray) and x.dtype == object):
        x = x.tolist()
    if isinstance(x, (list, tuple)) and x:
        if all(isinstance(item, Image.Image) for item in x):
            return "image", tuple(np.asarray(as_rgb(item)) for item in x)
        if all(isinstance(item, Path) for item in x):
            return "image", tuple(x)
        if all(item is None or isinstance(item, str) for item in x):
            return _strings(x, modality)
        if modality != "tabular" and all(np.ndim(item) in (2, 3) for item in x):
            return "image", tuple(np.asarray(item) for item in x)  # images may differ in size
    try:
        array = np.asarray(x)
    except ValueError as error:
        raise DataError(f"{origin.name} has samples of unequal lengths; expected the same features in each") from error
    if array.size == 0:
        return None, pd.DataFrame()
    if array.ndim == 1 and array.dtype.kind in "US":
        return _strings(array.astype(str).tolist(), modality)
    if array.ndim == 2 and array.dtype.kind in "USO":
        return None, pd.DataFrame(x).infer_objects().rename(columns=_feature_name)
    if array.dtype.kind in "buif" and (array.ndim == 2 or (modality == "tabular" and array.ndim > 2)):
        return "tabular", pd.DataFrame(array.reshape(len(array), -1)).rename(columns=_feature_name)
    if array.dtype.kind in "buif" and array.ndim in (3, 4):
        return "image", tuple(array)
    raise DataError(
        f"{origin.name} is of shape {array.shape} and type {array.dtype}; expected numbers of shape (N, D), (N, H, W), "
        f"(N, H, W, C) or (N, C, H, W), strings, images or a data frame"
    )


def _strings(values: Sequence[str | None], modality: Modality | None) -> Inputs:
    paths = [value is not None and value.lower().endswith(IMAGE_SUFFIXES) for value in values]
    if modality == "image" or (modality is None and np.mean(paths) > 0.5):
        return "image", tuple(Path(value or "") for value in values)
    return "text", pd.DataFrame({TEXT_COLUMN: np.array(values, dtype=object)})


def _frame_schema(modality: Modality | None, frame: pd.DataFrame) -> InputSchema | None:
    if modality == "text":
        return InputSchema(modality="text", input_column=TEXT_COLUMN)
    if modality == "tabular":
        return InputSchema(modality="tabular", feature_columns=tuple(frame.columns))
    return None


def _frame_like(inputs: Inputs, columns: Sequence[str], origin: Origin) -> pd.DataFrame:
    """Return a frame as it is, or an array's columns under the training columns' names."""
    modality, frame = inputs
    if not isinstance(frame, pd.DataFrame):
        raise DataError(f"{origin.name} holds images, but the training inputs are a table")
    if modality is None:
        return frame
    if len(frame.columns) != len(columns):
        raise DataError(
            f"{origin.name} has {len(frame.columns)} features a sample, expected {len(columns)} as in training"
        )
    return frame.set_axis(list(columns), axis=1)


def _materialized(x: Any, y: Any, origin: Origin) -> tuple[Any, Any]:
    """Return (x, y); a torch-like dataset of (x, label) items is read through once."""
    plain = isinstance(x, (list, tuple, pd.DataFrame, pd.Series)) or hasattr(x, "__array__")
    if y is not None or plain or not (hasattr(x, "__getitem__") and hasattr(x, "__len__")):
        return x, y
    items = [x[index] for index in range(len(x))]
    if not all(isinstance(item, tuple) and len(item) == 2 for item in items):
        raise DataError(f"the items of the dataset {origin.name} must be pairs (x, label)")
    return [_without_tensor(item[0]) for item in items], [_label(item[1]) for item in items]


def _without_tensor(value: Any) -> Any:
    return np.asarray(value) if hasattr(value, "__array__") and not isinstance(value, Image.Image) else value


def _label(value: Any) -> Any:
    plain = _without_tensor(value)
    if not isinstance(plain, np.ndarray):
        return plain
    if plain.size == 1:
        return plain.item()
    return [str(index) for index in np.flatnonzero(plain)]  # a multi-hot row


def _check_lengths(sizes: Mapping[Part, tuple[int, Any]], origins: Mapping[Part, Origin]) -> None:
    for part, (count, y) in sizes.items():
        if y is not None and len(y) != count:
            raise DataError(f"{origins[part].name} has {count} samples, but its y has {len(y)} labels")


def _image_ids(sources: Sources, origin: Origin) -> tuple[str, ...]:
    numbered = origin.ids(len(sources))
    return tuple(
        str(source) if isinstance(source, Path) else name for source, name in zip(sources, numbered, strict=True)
    )


def _feature_name(index: object) -> str:
    return f"x{index}"
