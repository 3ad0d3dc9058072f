"""Small real datasets that come with scikit-learn, as `sklearn:NAME`."""

from __future__ import annotations

from typing import Any

from automl_tl.errors import DataError, unknown_name

PREFIX = "sklearn:"
TABLES = ("breast_cancer", "iris", "wine")


def bundled_arrays(path: str) -> tuple[Any, list[str]]:
    """Return (x, y) of `sklearn:NAME`: (N, 8, 8) images for digits, a frame for the others.

    Raises:
        DataError: no such dataset comes with scikit-learn.
    """
    from sklearn import datasets

    name = path.removeprefix(PREFIX)
    if name == "digits":
        digits = datasets.load_digits()
        return digits.images, [str(label) for label in digits.target]
    if name not in TABLES:
        raise DataError(unknown_name("bundled dataset", name, (*TABLES, "digits")))
    table = getattr(datasets, f"load_{name}")(as_frame=True)
    return table.data, [str(table.target_names[label]) for label in table.target]
