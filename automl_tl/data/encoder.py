"""Table rows as numbers: standardized columns and one-hot categories. Fitted on training rows only, kept as JSON."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from automl_tl.errors import DataError

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class TableEncoder:
    """Maps a frame to float32 (N, D): first the numbers, then for each category column one place a known value."""

    numbers: tuple[str, ...]
    means: tuple[float, ...]
    deviations: tuple[float, ...]  # standard deviations; 1 for a constant column
    categories: tuple[tuple[str, tuple[str, ...]], ...]  # (column, its values in the training rows)

    @classmethod
    def fit(cls, frame: pd.DataFrame, categorical_columns: Collection[str]) -> TableEncoder:
        """Learn means, deviations and categories from training rows."""
        numbers = tuple(str(column) for column in frame.columns if column not in categorical_columns)
        values = _numbers(frame, numbers)
        deviations = values.std(axis=0)
        # A constant column's deviation is rounding noise rather than exactly 0.
        constant = deviations <= 1e-12 * np.maximum(np.abs(values).max(axis=0, initial=0.0), 1e-300)
        return cls(
            numbers=numbers,
            means=tuple(values.mean(axis=0).tolist()),
            deviations=tuple(np.where(constant, 1.0, deviations).tolist()),
            categories=tuple(
                (str(column), tuple(sorted(frame[column].astype(str).unique())))
                for column in frame.columns
                if column in categorical_columns
            ),
        )

    @property
    def width(self) -> int:
        """D, the number of encoded columns."""
        return len(self.numbers) + sum(len(values) for _, values in self.categories)

    def transform(self, frame: pd.DataFrame) -> np.ndarray:
        """Return float32 (N, D). A category that was not seen in training becomes all zeros.

        Raises:
            DataError: a column is missing or does not hold numbers.
        """
        expected = [*self.numbers, *(column for column, _ in self.categories)]
        missing = [column for column in expected if column not in frame.columns]
        if missing:
            raise DataError(
                f"the table lacks the columns {', '.join(map(repr, missing))} that the encoder was fitted on; "
                f"got {', '.join(map(repr, frame.columns)) or 'none'}"
            )
        scaled = (_numbers(frame, self.numbers) - np.array(self.means)) / np.array(self.deviations)
        blocks = [scaled.astype(np.float32)]
        for column, values in self.categories:
            cells = frame[column].astype(str).to_numpy(dtype=object)
            blocks.append((cells[:, None] == np.array(values, dtype=object)[None, :]).astype(np.float32))
        return np.concatenate(blocks, axis=1)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data; `from_json` reads it back."""
        return asdict(self) | {"categories": [[column, list(values)] for column, values in self.categories]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TableEncoder:
        """Return the encoder that `to_json` wrote."""
        return cls(
            numbers=tuple(data["numbers"]),
            means=tuple(data["means"]),
            deviations=tuple(data["deviations"]),
            categories=tuple((column, tuple(values)) for column, values in data["categories"]),
        )


def _numbers(frame: pd.DataFrame, columns: tuple[str, ...]) -> np.ndarray:
    """Return the columns as float64 (N, len(columns))."""
    values = np.empty((len(frame), len(columns)))
    for position, column in enumerate(columns):
        try:
            values[:, position] = frame[column].to_numpy(dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise DataError(f"column {column!r} must hold numbers, got {frame[column].dtype} values") from error
    return values
