"""From a path in the configuration to one path a part, all of one format. Opens nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from automl_tl.config import DataConfig
from automl_tl.data.folder import LAYOUT, part_of, split_folders
from automl_tl.data.labelled import Part
from automl_tl.data.table import READERS
from automl_tl.errors import DataError, closest

Format = Literal["folder", "table", "npz"]


@dataclass(frozen=True)
class Location:
    """Where the parts of a task lie."""

    root: Path
    format: Format
    parts: dict[Part, Path]


def locate(config: DataConfig, base: Path | None = None) -> Location:
    """Return where the parts lie; relative paths start at the current directory, then at `base`.

    Raises:
        DataError: a path does not exist or has an unknown suffix, or the test path is of another format.
    """
    root = resolve(config.path, base)
    parts: dict[Part, Path] = {"train": root}
    if root.is_dir():
        parts = _split_files(root) or split_folders(root)
    if config.test is not None:
        if "test" in parts:
            raise DataError(f"{root} already has a test split, {parts['test']}; remove data.test")
        parts["test"] = resolve(config.test, base)
    formats = {part: format_of(path) for part, path in parts.items()}
    for part, found in formats.items():
        if found != formats["train"]:
            raise DataError(
                f"the {part} split {parts[part]} is a {found}, but the training data {parts['train']} is a "
                f"{formats['train']}; expected the same format"
            )
    return Location(root, formats["train"], parts)


def resolve(text: str, base: Path | None = None) -> Path:
    """Return the existing path that `text` means.

    Raises:
        DataError: there is none; the message names the nearest one beside it.
    """
    path = Path(text).expanduser()
    candidates = [path] if base is None else [path, base / path]
    for candidate in candidates:
        if candidate.exists():
            return candidate.resolve()
    for candidate in candidates:
        if candidate.parent.is_dir():
            near = closest(candidate.name, (sibling.name for sibling in candidate.parent.iterdir()))
            if near:
                raise DataError(f"{text} does not exist in {candidate.parent.resolve()}.{near}")
    raise DataError(f"{text} does not exist; expected a file or folder, relative to {Path.cwd()} or absolute")


def format_of(path: Path) -> Format:
    """Return the format that a path's suffix tells.

    Raises:
        DataError: the suffix is unknown.
    """
    if path.is_dir():
        return "folder"
    if path.suffix.lower() == ".npz":
        return "npz"
    if path.suffix.lower() in READERS:
        return "table"
    raise DataError(
        f"{path} has the unknown suffix {path.suffix!r}; known are {', '.join(READERS)} and .npz, "
        f"or a folder of images with the layout {LAYOUT}"
    )


def _split_files(root: Path) -> dict[Part, Path]:
    """Return the tables train, validation and test of a directory, nothing when there is none of train."""
    parts: dict[Part, Path] = {}
    for path in sorted(root.iterdir()):
        part = part_of(path.stem)
        if part is None or not path.is_file() or path.suffix.lower() not in (*READERS, ".npz"):
            continue
        if part in parts:
            raise DataError(f"{root} has two {part} files, {parts[part].name} and {path.name}; keep one")
        parts[part] = path
    return parts if "train" in parts else {}
