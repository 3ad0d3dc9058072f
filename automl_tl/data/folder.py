"""Image folders: one subfolder a class, with or without train, validation and test folders above them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from automl_tl.config import DataConfig
from automl_tl.data.arrays import reject_table_settings
from automl_tl.data.labelled import Dataset, Labelled, LabelNames, Origin, Part, parse_labels
from automl_tl.data.samples import IMAGE_SUFFIXES, ImageSamples
from automl_tl.data.schema import InputSchema
from automl_tl.errors import DataError

PART_NAMES: dict[str, Part] = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
LAYOUT = "CLASS/IMAGE, for example cat/1.png and dog/1.png, or train/CLASS/IMAGE and test/CLASS/IMAGE"


def dataset_from_folders(parts: Mapping[Part, Path], config: DataConfig) -> Dataset:
    """Return the labelled images of each part's folder.

    Raises:
        DataError: a folder has no class subfolders, or one of them holds no image.
    """
    where = str(parts["train"])
    reject_table_settings(config, where, "an image folder")
    if config.modality not in (None, "image"):
        raise DataError(f"{where} is an image folder, but data.modality says {config.modality!r}")
    labelled = {part: _labelled_folder(folder, config.label_separator) for part, folder in parts.items()}
    note = f"The inputs are images, the classes are the folders of {where}."
    return Dataset(labelled, InputSchema(modality="image"), config.label_separator is not None, notes=(note,))


def split_folders(root: Path) -> dict[Part, Path]:
    """Return the folder of each part: `root` itself is train unless it has a train folder with classes below.

    Raises:
        DataError: two folders are the same part, as val and valid.
    """
    parts: dict[Part, Path] = {}
    for folder in subfolders(root):
        part = PART_NAMES.get(folder.name.lower())
        if part is not None and part in parts:
            raise DataError(f"{root} has two {part} folders, {parts[part].name} and {folder.name}; keep one")
        if part is not None:
            parts[part] = folder
    # A folder called "train" that holds images itself is a class.
    return parts if "train" in parts and subfolders(parts["train"]) else {"train": root}


def subfolders(folder: Path) -> list[Path]:
    """Return the folders right below, sorted, without hidden ones."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not _is_hidden(path.name))


def images_below(folder: Path) -> list[Path]:
    """Return the image files at any depth below, sorted, without hidden ones."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and path.is_file()
        and not any(map(_is_hidden, path.relative_to(folder).parts))
    )


def _labelled_folder(root: Path, separator: str | None) -> Labelled:
    classes = subfolders(root)
    if not classes:
        raise DataError(f"{root} has no class subfolders; expected the layout {LAYOUT}")
    origin = Origin(str(root), root.name, what="image")
    sources: list[Path] = []
    labels: list[LabelNames] = []
    for folder in classes:
        images = images_below(folder)
        if not images:
            raise DataError(
                f"the class folder {folder} holds no image (known suffixes: {', '.join(IMAGE_SUFFIXES)}); "
                f"add images or remove the folder"
            )
        sources += images
        labels += parse_labels([folder.name], origin, separator=separator).names * len(images)
    ids = tuple(source.relative_to(root).as_posix() for source in sources)
    return Labelled(origin, ImageSamples(tuple(sources), ids), tuple(labels))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"
