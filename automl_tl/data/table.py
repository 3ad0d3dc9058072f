"""Tables: files become frames, frames become samples. The first frame, train, decides how all are read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from automl_tl.config import DataConfig
from automl_tl.data.columns import choose_label, choose_schema, require_column
from automl_tl.data.labelled import Dataset, Labelled, Labels, Origin, Part, label_name, parse_labels
from automl_tl.data.samples import ImageSamples, Samples, TableSamples, TextSamples
from automl_tl.data.schema import InputSchema
from automl_tl.errors import DataError

# Words such as "None" are plausible labels and categories, so fewer strings than pandas' own count as missing.
MISSING = ["", "NA", "N/A", "NaN", "nan", "null", "NULL", "#N/A"]


@dataclass(frozen=True, eq=False)
class Table:
    """A frame, with its labels beside it or in one of its columns."""

    frame: pd.DataFrame
    origin: Origin
    folder: Path  # image paths are relative to it
    labels: Any | None = None
    untyped: bool = False  # all cells are strings, as a file of plain text has them


def table_file(path: Path) -> Table:
    """Read one table file.

    Raises:
        DataError: the file is corrupt or empty, or a package to read it is not installed.
    """
    try:
        frame = READERS[path.suffix.lower()](path)
    except ImportError as error:
        raise DataError(
            f"reading {path} needs a package that is not installed; run: pip install automl-tl[parquet]"
        ) from error
    except pd.errors.EmptyDataError as error:
        raise DataError(f"the table {path} is empty; expected a header and rows") from error
    except (ValueError, OSError) as error:  # parser, decoding and Arrow errors are all one of these
        raise DataError(f"the table {path} cannot be read: {error}; repair the file or export it again") from error
    if frame.empty:
        raise DataError(f"the table {path} is empty; expected at least one row below the header")
    frame.columns = frame.columns.map(str)
    origin = Origin(str(path), path.name, what="row", first=1)
    return Table(frame, origin, path.parent, untyped=path.suffix.lower() in PLAIN_TEXT)


def dataset_from_tables(tables: Mapping[Part, Table], config: DataConfig, schema: InputSchema | None = None) -> Dataset:
    """Return the labelled samples of each table; the schema is inferred from train unless given."""
    train = tables["train"]
    frame, where = _typed(train.frame) if train.untyped else train.frame, train.origin.name
    notes: list[str] = []
    label = None
    if train.labels is None:
        label, note = choose_label(frame, config, where)
        notes += [note] if note else []
    if schema is None:
        ignored = [require_column(frame, column, "drop", where) for column in config.drop]
        ignored += [require_column(frame, config.group, "group", where)] if config.group is not None else []
        ignored += [label] if label is not None else []
        schema, inferred = choose_schema(frame.drop(columns=list(dict.fromkeys(ignored))), config, where)
        notes += inferred
    notes.append(schema.summary())
    parts: dict[Part, Labelled] = {}
    multilabel, classes = False, None
    numbered = label is not None and train.untyped and _are_numbers(train.frame[label])
    for part, table in tables.items():
        samples, flaws = samples_from_frame(table.frame, schema, table.origin, table.folder)
        labels = _labels(table, label, config.label_separator, numbered=numbered)
        groups, ungrouped = _groups(table, config.group)
        all_flaws = {**flaws, **ungrouped, **labels.flaws}
        parts[part] = Labelled(table.origin, samples, labels.names, groups, all_flaws)
        multilabel, classes = multilabel or labels.multilabel, classes or labels.classes
    return Dataset(parts, schema, multilabel, classes, tuple(notes))


def samples_from_frame(
    frame: pd.DataFrame, schema: InputSchema, origin: Origin, folder: Path
) -> tuple[Samples, dict[int, str]]:
    """Return the inputs of a frame, and what is wrong with single rows.

    Raises:
        DataError: a column of the schema is missing.
    """
    columns = schema.feature_columns if schema.input_column is None else (schema.input_column,)
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise DataError(
            f"{origin.name} lacks the columns {', '.join(map(repr, missing))} that the training data has; "
            f"got {', '.join(map(str, frame.columns)) or 'none'}"
        )
    ids = origin.ids(len(frame))
    if schema.input_column is not None:
        flaws = _missing_cells(frame, schema.input_column, origin)
        cells = ["" if index in flaws else str(cell) for index, cell in enumerate(frame[schema.input_column])]
        if schema.modality == "text":
            return TextSamples(tuple(cells), ids), flaws
        return ImageSamples(tuple(folder / cell for cell in cells), tuple(cells), schema.value_range), flaws
    flaws = {}
    features = {}
    for column in reversed(columns):  # so that the first of several flaws in a row is the one to be named
        if column in schema.categorical_columns:
            flaws |= _missing_cells(frame, column, origin)
            features[column] = frame[column].map(label_name, na_action="ignore").astype(object)
        else:
            numbers = pd.to_numeric(frame[column], errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
            for index in np.flatnonzero(~np.isfinite(numbers)).tolist():
                cell = frame[column].iloc[index]
                flaws[index] = f"{origin.sample(index)} has {cell} in column {column!r}, expected a finite number"
            features[column] = pd.Series(numbers)
    table = pd.DataFrame({column: features[column].to_numpy() for column in columns})
    return TableSamples(table, ids), flaws


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a frame of strings with numbers in the columns that hold nothing else.

    Only train is typed, to see what its columns are: of another file's cells, read on their own, something else may
    become, as of "01" where no "1A" is among them.
    """
    numbers = {column: pd.to_numeric(frame[column], errors="coerce") for column in frame.columns}
    return pd.DataFrame(
        {
            column: found if (found.isna() == frame[column].isna()).all() else frame[column]
            for column, found in numbers.items()
        }
    )


def _are_numbers(labels: pd.Series) -> bool:
    """Whether labels that were read as strings are numbers, of which 1 and 1.0 are the same; codes as 007 are not."""
    cells = labels.dropna().str.strip()
    return not cells.str.match(r"[+-]?0\d").any() and bool(pd.to_numeric(cells, errors="coerce").notna().all())


def _labels(table: Table, column: str | None, separator: str | None, *, numbered: bool) -> Labels:
    if column is not None:
        cells = table.frame[require_column(table.frame, column, "label", table.origin.name)].tolist()
        if numbered and table.untyped:
            cells = [_whole(cell) for cell in cells]
        return parse_labels(cells, table.origin, separator=separator, column=column)
    if table.labels is None:
        raise DataError(f"{table.origin.name} has no labels; pass y as for the training data")
    return parse_labels(table.labels, table.origin, separator=separator)


def _whole(cell: Any) -> Any:
    """Return "1.0" as 1.0, whose name is that of 1; what is no such number as it is."""
    try:
        return float(cell) if "." in str(cell) or "e" in str(cell).lower() else cell
    except ValueError:
        return cell


def _groups(table: Table, column: str | None) -> tuple[np.ndarray | None, dict[int, str]]:
    if column is None or column not in table.frame.columns:  # a given test split needs no groups
        return None, {}
    cells = np.array([label_name(cell) for cell in table.frame[column]], dtype=object)
    return cells, _missing_cells(table.frame, column, table.origin)


def _missing_cells(frame: pd.DataFrame, column: str, origin: Origin) -> dict[int, str]:
    rows = np.flatnonzero(frame[column].isna().to_numpy()).tolist()
    return {index: f"{origin.sample(index)} has no value in column {column!r}" for index in rows}


def _read_csv(path: Path, separator: str = ",") -> pd.DataFrame:
    return pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, na_values=MISSING)


def _read_tsv(path: Path) -> pd.DataFrame:
    return _read_csv(path, separator="\t")


def _read_jsonl(path: Path) -> pd.DataFrame:
    # pandas' own reader would turn digits into numbers and columns with certain names into dates.
    with path.open(encoding="utf-8") as lines:
        return pd.DataFrame([json.loads(line) for line in lines if line.strip()])


PLAIN_TEXT = (".csv", ".tsv")
READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
    ".parquet": pd.read_parquet,
}
