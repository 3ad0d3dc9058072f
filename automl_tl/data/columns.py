"""Which column of a table is the label and which are inputs: looks at names and values, reads no files."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import pandas as pd

from automl_tl.config import DataConfig
from automl_tl.data.samples import IMAGE_SUFFIXES
from automl_tl.data.schema import InputSchema
from automl_tl.errors import DataError, closest

LABEL_NAMES = ("label", "class", "target", "category", "y")
ID_NAMES = ("id", "index", "unnamed: 0")
MOST_CATEGORIES = 100  # of one column; and never more than a tenth of the rows, but 10 are always fine
WORDS_OF_A_TEXT = 2.0  # mean words a value from which mostly distinct strings are texts

ColumnKind = Literal["number", "category", "text", "image"]


def choose_label(frame: pd.DataFrame, config: DataConfig, where: str) -> tuple[str, str | None]:
    """Return the label column, and a note when it was inferred."""
    if config.label is not None:
        return require_column(frame, config.label, "label", where), None
    plain = {str(column).lower(): str(column) for column in frame.columns}
    for name in LABEL_NAMES:
        if name in plain:
            return plain[name], f"The label column is {plain[name]!r}, by its name."
    last = frame[frame.columns[-1]]
    few = last.astype(str).nunique() * 3 <= len(last)
    if len(frame.columns) > 1 and few and not pd.api.types.is_float_dtype(last):
        return str(last.name), f"The label column is {last.name!r}: the last one, with few distinct values."
    raise DataError(
        f"{where}: it is not plain which column holds the labels; name it with --label (data.label). "
        f"Columns: {_listed(frame.columns)}"
    )


def require_column(frame: pd.DataFrame, name: str, setting: str, where: str) -> str:
    """Return `name` if the frame has that column, else raise with the nearest one."""
    if name not in frame.columns:
        raise DataError(
            f"{where} has no column {name!r} (data.{setting}). Columns: {_listed(frame.columns)}."
            f"{closest(name, map(str, frame.columns))}"
        )
    return name


def choose_schema(frame: pd.DataFrame, config: DataConfig, where: str) -> tuple[InputSchema, list[str]]:
    """Return how to read the inputs of a frame without label and group columns, and notes on columns left out."""
    if config.input is not None:
        return _named_input(frame, config, where), []
    notes = []
    for column in _id_columns(frame):
        frame = frame.drop(columns=column)
        notes.append(f"The column {column!r} numbers the rows and was left out.")
    if not len(frame.columns):
        raise DataError(f"{where} has no input columns beside label, group and dropped ones; check data.drop")
    kinds = {str(column): _kind(frame[column], config, where, len(frame.columns)) for column in frame.columns}
    special = [column for column, kind in kinds.items() if kind in ("text", "image")]
    if len(special) == 1 and len(kinds) == 1 and config.modality != "tabular":
        schema = InputSchema(modality="image" if kinds[special[0]] == "image" else "text", input_column=special[0])
        return _agreeing(schema, config, where), notes
    if special:
        raise _mixed_modalities(kinds, special, where)
    notes += [note for column, kind in kinds.items() if kind == "category" for note in _almost_numbers(frame[column])]
    schema = InputSchema(
        modality="tabular",
        feature_columns=tuple(kinds),
        categorical_columns=tuple(column for column, kind in kinds.items() if kind == "category"),
    )
    return _agreeing(schema, config, where), notes


def _named_input(frame: pd.DataFrame, config: DataConfig, where: str) -> InputSchema:
    column = require_column(frame, str(config.input), "input", where)
    if config.modality == "tabular" or not _holds_strings(frame[column]):
        raise DataError(
            f"data.input names the column {column!r} of {where}, which must hold texts or image paths, "
            f"got {frame[column].dtype} values; a tabular task takes every column, leave some out with data.drop"
        )
    images = config.modality == "image" or (config.modality is None and _looks_like_images(frame[column]))
    return InputSchema(modality="image" if images else "text", input_column=column)


def _agreeing(schema: InputSchema, config: DataConfig, where: str) -> InputSchema:
    if config.modality not in (None, schema.modality):
        raise DataError(
            f"{where} looks {schema.modality}, but data.modality says {config.modality!r}; "
            f"name the column to read with data.input, or change data.modality"
        )
    return schema


def _mixed_modalities(kinds: dict[str, ColumnKind], special: list[str], where: str) -> DataError:
    others = [column for column in kinds if column not in special]
    parts = [f"{kinds[column]}s in {column!r}" for column in special]
    if others:
        parts.append(f"features in {_listed(others)}")
    return DataError(
        f"{where} has mixed modalities: {', '.join(parts)}; choose one with data.input: {special[0]}, "
        f"or leave columns out with data.drop: [{', '.join(special)}]"
    )


def _id_columns(frame: pd.DataFrame) -> list[str]:
    """Return the columns that only number or name the rows."""
    return [
        str(column)
        for column in frame.columns
        if str(column).lower() in ID_NAMES
        and (pd.api.types.is_integer_dtype(frame[column]) or _holds_strings(frame[column]))
        and frame[column].is_unique
    ]


def _kind(column: pd.Series, config: DataConfig, where: str, n_columns: int) -> ColumnKind:
    dtype = column.dtype
    if isinstance(dtype, pd.CategoricalDtype) or pd.api.types.is_bool_dtype(dtype):
        return "category"
    if pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_complex_dtype(dtype):
        return "number"
    if not _holds_strings(column):
        raise DataError(
            f"column {column.name!r} of {where} holds neither numbers nor strings but {_type_names(column)}; "
            f"leave it out with data.drop: [{column.name}]"
        )
    if _looks_like_images(column):
        return "image"
    distinct = column.nunique()
    mostly_distinct = distinct * 2 > len(column)
    if config.modality == "text" or (mostly_distinct and (n_columns == 1 or _mean_words(column) >= WORDS_OF_A_TEXT)):
        return "text"
    if distinct > min(MOST_CATEGORIES, max(10, len(column) // 10)):
        raise DataError(
            f"column {column.name!r} of {where} has {distinct} distinct strings in {len(column)} rows, too many for "
            f"a category; leave it out with data.drop: [{column.name}], or read it as text with "
            f"data.input: {column.name}"
        )
    return "category"


def _almost_numbers(column: pd.Series) -> list[str]:
    """Return a note on a column of categories most of which are numbers: a few cells may have spoilt it."""
    cells = column.dropna().astype(str)
    words = cells[pd.to_numeric(cells, errors="coerce").isna()]
    if not 0 < len(words) < len(cells) / 2:
        return []
    named = ", ".join(map(repr, words.unique()[:3])) + ", …" * (words.nunique() > 3)
    return [
        f"The column {column.name!r} holds numbers beside {named} and is read as categories; if it is to be numbers, "
        "replace these cells."
    ]


def _holds_strings(column: pd.Series) -> bool:
    """Return whether all present values are strings or a mixture of strings, numbers and Booleans."""
    if pd.api.types.is_numeric_dtype(column.dtype):
        return False
    return all(isinstance(value, (str, int, float, bool)) for value in column.dropna())


def _looks_like_images(column: pd.Series) -> bool:
    values = column.dropna().astype(str).str.lower()
    return len(values) > 0 and bool(values.str.endswith(IMAGE_SUFFIXES).mean() > 0.5)


def _mean_words(column: pd.Series) -> float:
    return float(column.dropna().map(lambda value: len(str(value).split())).mean())


def _type_names(column: pd.Series) -> str:
    return ", ".join(sorted({type(value).__name__ for value in column.dropna()})) or "nothing"


def _listed(columns: Iterable[object]) -> str:
    return ", ".join(map(str, columns))
