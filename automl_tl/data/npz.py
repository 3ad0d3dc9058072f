"""Arrays from an `.npz` file. Nothing is ever unpickled."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from automl_tl.data.labelled import Part
from automl_tl.errors import DataError

PART_SUFFIXES: dict[str, Part] = {
    "": "train",
    "_train": "train",
    "_val": "validation",
    "_valid": "validation",
    "_validation": "validation",
    "_test": "test",
}


def labelled_arrays(path: Path) -> dict[Part, tuple[np.ndarray, np.ndarray]]:
    """Return (x, y) of each part: from x and y, or from x_train, y_train and the like; case does not matter.

    Raises:
        DataError: the file cannot be read, holds objects, or lacks x or y.
    """
    arrays = _arrays(path)
    parts = {
        part: (arrays[f"x{suffix}"], arrays[f"y{suffix}"])
        for suffix, part in PART_SUFFIXES.items()
        if f"x{suffix}" in arrays and f"y{suffix}" in arrays
    }
    if "train" not in parts:
        raise DataError(
            f"{path} holds the arrays {', '.join(sorted(arrays)) or 'none'}; expected x and y, or x_train and y_train"
        )
    return parts


def unlabelled_array(path: Path) -> np.ndarray:
    """Return the array x of a file, or its only array.

    Raises:
        DataError: the file cannot be read, holds objects, or it is not plain which array is meant.
    """
    arrays = _arrays(path)
    if "x" not in arrays and len(arrays) != 1:
        raise DataError(f"{path} holds the arrays {', '.join(sorted(arrays)) or 'none'}; expected x")
    return arrays.get("x", next(iter(arrays.values())))


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            names = list(file.files)
            return {name.lower(): _array(path, file, name) for name in names}
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read as an .npz file: {error}; write it with numpy.savez") from error


def _array(path: Path, file: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    try:
        array: np.ndarray = file[name]
    except ValueError as error:
        raise DataError(
            f"the array {name!r} of {path} holds Python objects, which are never unpickled because a pickle may run "
            f"any code; save numbers or fixed-width strings, as numpy.array(values, dtype=str)"
        ) from error
    return array
