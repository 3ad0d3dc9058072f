"""How the inputs of a task are read: plain data that a trained model keeps, to read unlabelled inputs the same way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from automl_tl.plugin import Modality

MOST_NAMED = 10  # columns in a sentence


@dataclass(frozen=True)
class InputSchema:
    """Which columns hold the inputs, and how to read them."""

    modality: Modality
    input_column: str | None = None  # of texts or image paths, when they lie in a table
    feature_columns: tuple[str, ...] = ()  # of a table, in this order
    categorical_columns: tuple[str, ...] = ()  # those of the features that are categories, the others are numbers
    value_range: tuple[float, float] = (0.0, 255.0)  # of image arrays

    def summary(self) -> str:
        """Return a sentence that says what the inputs are."""
        if self.modality == "tabular":
            n_categories = len(self.categorical_columns)
            n_numbers = len(self.feature_columns) - n_categories
            named = ", ".join(self.categorical_columns[:MOST_NAMED]) + ", …" * (n_categories > MOST_NAMED)
            listed = f": {named}" if n_categories else ""
            return f"The inputs are {n_numbers} numeric and {n_categories} categorical columns{listed}."
        return f"The inputs are {self.modality}s" + (
            f" of the column {self.input_column!r}." if self.input_column else "."
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data; `from_json` reads it back."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> InputSchema:
        """Return the schema that `to_json` wrote."""
        low, high = data["value_range"]
        return cls(
            modality=data["modality"],
            input_column=data["input_column"],
            feature_columns=tuple(data["feature_columns"]),
            categorical_columns=tuple(data["categorical_columns"]),
            value_range=(float(low), float(high)),
        )
