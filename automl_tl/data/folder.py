"""Image folders: one subfolder a class, with or without train, validation and test folders above them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from automl_tl.config import DataConfig
from automl_tl.data.arrays import reject_table_settings
from automl_tl.data.labelled import Dataset, Labelled, LabelNames, Origin, Part, parse_labels
from automl_tl.data.samples import IMAGE_SUFFIXES, ImageSamples
from automl_tl.data.schema import InputSchema
from automl_tl.errors import DataError

PART_NAMES: dict[str, Part] = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
BESIDE_PART_NAMES = ("set", "data", "dataset", "images", "split")  # as in test_set
MOST_SPLITS = 4  # that a folder is thought to have
LAYOUT = "CLASS/IMAGE, for example cat/1.png and dog/1.png, or train/CLASS/IMAGE and test/CLASS/IMAGE"


def dataset_from_folders(root: Path, parts: Mapping[Part, Path], config: DataConfig) -> Dataset:
    """Return the labelled images of each part's folder; `root` is above them, or the training folder itself.

    Raises:
        DataError: a folder has no class subfolders, or one of them holds no image.
    """
    where = str(parts["train"])
    reject_table_settings(config, where, "an image folder")
    if config.modality not in (None, "image"):
        raise DataError(f"{where} is an image folder, but data.modality says {config.modality!r}")
    labelled = {part: _labelled_folder(folder, config.label_separator, part) for part, folder in parts.items()}
    notes = [f"The inputs are images, the classes are the folders of {where}.", *_doubts(root, parts)]
    return Dataset(labelled, InputSchema(modality="image"), config.label_separator is not None, notes=tuple(notes))


def part_of(name: str) -> Part | None:
    """Return the part that a folder or a file called so holds: train, Testing, seg_train, test_set, …"""
    words = [word for word in re.split(r"[\W\d_]+", name.lower()) if word and word not in BESIDE_PART_NAMES]
    return PART_NAMES.get(words[-1]) if words else None


def split_folders(root: Path) -> dict[Part, Path]:
    """Return the folder of each part: `root` itself is train unless it has a train folder with classes below.

    Raises:
        DataError: two folders are the same part, as val and valid.
    """
    found: dict[Part, list[Path]] = {}
    for folder in subfolders(root):
        part = part_of(folder.name)
        if part is not None:
            found.setdefault(part, []).append(folder)
    if not any(subfolders(folder) for folder in found.get("train", [])):
        return {"train": root}  # a folder called "train" that holds images itself is a class
    for part, folders in found.items():
        if len(folders) > 1:
            names = " and ".join(folder.name for folder in folders)
            raise DataError(f"{root} has {len(folders)} {part} folders, {names}; keep one")
    return {part: folders[0] for part, folders in found.items()}


def subfolders(folder: Path) -> list[Path]:
    """Return the folders right below, sorted, without hidden ones."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not _is_hidden(path.name))


def images_below(folder: Path) -> list[Path]:
    """Return the image files at any depth below, sorted, without hidden ones."""
    return sorted(path for path in _files_below(folder) if path.suffix.lower() in IMAGE_SUFFIXES)


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield the files at any depth below, without hidden ones."""
    for path in folder.rglob("*"):
        if path.is_file() and not any(map(_is_hidden, path.relative_to(folder).parts)):
            yield path


def _doubts(root: Path, parts: Mapping[Part, Path]) -> Iterator[str]:
    """Yield notes on what lies in the folders and is not read, or not as it may have been meant."""
    left = [folder.name for folder in subfolders(root) if folder not in parts.values()]
    if left and parts["train"] != root:
        yield f"Beside {', '.join(sorted(path.name for path in parts.values()))}, not read: {', '.join(left)}."
    folders = [folder for path in parts.values() for folder in subfolders(path)]
    below = {tuple(folder.name for folder in subfolders(each)) for each in folders}
    inner = below.pop()
    if not below and len(inner) > 1 and 1 < len(folders) <= MOST_SPLITS:
        yield (
            f"All class folders hold the same folders, {', '.join(inner)}, which tell nothing apart here. If these are "
            f"the classes, and {', '.join(folder.name for folder in folders)} are splits, search one of them and give "
            "another as the test split."
        )
    others = [path.suffix.lower() for folder in folders for path in _files_below(folder)]
    counts = Counter(suffix for suffix in others if suffix not in IMAGE_SUFFIXES)
    if counts:
        listed = ", ".join(f"{n} of {suffix or 'no suffix'}" for suffix, n in counts.most_common())
        yield f"Files that are no images by their suffix are not read: {listed}."


def _labelled_folder(root: Path, separator: str | None, part: Part) -> Labelled:
    classes = subfolders(root)
    if not classes:
        without = "" if part == "train" else f"; if they have no labels, search the training folder beside {root.name}"
        raise DataError(f"{root} has no class subfolders; expected the layout {LAYOUT}{without}")
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
