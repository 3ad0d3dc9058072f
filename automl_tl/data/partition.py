"""From a dataset as read to its final parts: flawed samples out, classes fixed and checked, test and validation carved.

The order matters: test is set apart before anything is capped, so `per_class` never changes it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from automl_tl.config import DataConfig
from automl_tl.data.copies import Copies, copies_in
from automl_tl.data.decoding import decode_in_order
from automl_tl.data.folds import holdout
from automl_tl.data.labelled import Dataset, Labelled, Part, multi_hot, natural_order
from automl_tl.data.samples import ImageSamples, Samples, TableSamples, image_flaw
from automl_tl.data.splits import split_indices
from automl_tl.errors import DataError, closest


@dataclass(frozen=True, eq=False)
class Partition:
    """The three parts of a task and what they have in common."""

    classes: tuple[str, ...]
    train: Labelled
    validation: Labelled
    test: Labelled
    notes: tuple[str, ...]


def partition(dataset: Dataset, config: DataConfig, *, seed: int, hold_out_test: bool = True) -> Partition:
    """Return the parts of a dataset; without `hold_out_test` and a given test split, test stays empty.

    Raises:
        DataError: samples are flawed and not to be skipped, or the classes cannot be learnt or split.
    """
    notes: list[str] = []
    parts = {part: _without_flaws(read, read.flaws, config, notes) for part, read in dataset.parts.items()}
    if config.classes is not None:
        parts = _keep_classes(parts, config.classes)
    parts = {part: _without_flaws(read, image_flaws(read.samples), config, notes) for part, read in parts.items()}
    carve_test = "test" not in parts and hold_out_test
    carve_validation = "validation" not in parts
    needed = ["train"] + ["validation"] * carve_validation + ["test"] * carve_test
    classes = _checked_classes(dataset, parts, config, needed)

    train, test = parts["train"], parts.get("test", parts["train"].take([]))
    if carve_test:
        copies = copies_in(train, parts.get("validation"), at_least=len(needed))
        train, test = _carve(train, config.test_fraction, seed, classes, dataset.multilabel, copies)
        notes.append(_split_note("test", test, train, config, seed))
        notes += _copies_notes(copies)
    elif "test" in parts:
        notes.append(f"The given test split of {len(test)} samples is kept as it is.")
    if config.per_class is not None:
        if carve_validation and config.per_class < 2:
            raise DataError("data.per_class is 1, but training and validation need one sample a class each; give 2")
        train = _capped(train, config.per_class, seed)
        notes.append(f"At most {config.per_class} samples a class were kept: {len(train)} before validation.")
    if carve_validation:
        train, validation = _carve(train, config.validation_fraction, seed, classes, dataset.multilabel)
        notes.append(_judging_note(config))
    else:
        validation = parts["validation"]
        notes.append(f"The given validation split of {len(validation)} samples is kept as it is.")
    _check_groups({"train": train, "validation": validation, "test": test})
    return Partition(classes, train, validation, test, dataset.notes + tuple(notes))


def image_flaws(samples: Samples) -> dict[int, str]:
    """Return what is wrong with single images; every file is decoded once, JPEGs at an eighth of their size."""
    if not isinstance(samples, ImageSamples):
        return {}
    flaws = decode_in_order(lambda index: image_flaw(samples.sources[index]), len(samples))
    return {index: f"the image {_image_name(samples, index)} {flaw}" for index, flaw in enumerate(flaws) if flaw}


def flawless(
    flaws: Mapping[int, str], count: int, where: str, *, skip: bool, otherwise: str = ""
) -> tuple[np.ndarray, str | None]:
    """Return the indices of the samples without flaws, and a note when some were skipped.

    Args:
        flaws: by sample, a sentence each.
        count: of the samples.
        where: they come from.
        skip: the flawed ones.
        otherwise: what else one can do than repair or remove a sample, ", or …".

    Raises:
        DataError: there are flaws and they are not to be skipped, or nothing is left.
    """
    if not flaws:
        return np.arange(count), None
    first = flaws[min(flaws)]
    more = f" (and {len(flaws) - 1} more)" if len(flaws) > 1 else ""
    if not skip:
        raise DataError(f"{first}{more}; repair or remove it{otherwise}")
    if len(flaws) == count:
        raise DataError(f"no usable sample is left in {where}: {first}{more}")
    return np.setdiff1d(
        np.arange(count), list(flaws)
    ), f"{len(flaws)} of {count} samples of {where} were skipped: {first}{more}."


def _without_flaws(part: Labelled, flaws: Mapping[int, str], config: DataConfig, notes: list[str]) -> Labelled:
    in_table = isinstance(part.samples, TableSamples)
    otherwise = f", or set data.on_bad_sample: skip{', or leave the column out with data.drop' if in_table else ''}"
    skip = config.on_bad_sample == "skip"
    kept, note = flawless(flaws, len(part), part.origin.name, skip=skip, otherwise=otherwise)
    notes += [note] if note else []
    return part.take(kept)


def _image_name(samples: ImageSamples, index: int) -> str:
    source = samples.sources[index]
    return samples.ids[index] if isinstance(source, np.ndarray) else str(source)


def _keep_classes(parts: Mapping[Part, Labelled], classes: tuple[str, ...]) -> dict[Part, Labelled]:
    """Return the samples that have one of the classes; other labels of a multi-label sample are forgotten."""
    known = natural_order(name for names in parts["train"].labels for name in names)
    for name in classes:
        if name not in known:
            raise DataError(
                f"data.classes names {name!r}, which no training sample of {parts['train'].origin.name} has. "
                f"Classes: {', '.join(known)}.{closest(name, known)}"
            )
    kept = {}
    for part, read in parts.items():
        chosen = read.take([index for index, names in enumerate(read.labels) if set(names) & set(classes)])
        labels = tuple(tuple(name for name in names if name in classes) for names in chosen.labels)
        kept[part] = replace(chosen, labels=labels)
    return kept


def _checked_classes(
    dataset: Dataset, parts: Mapping[Part, Labelled], config: DataConfig, needed: list[str]
) -> tuple[str, ...]:
    train = parts["train"]
    where = train.origin.name
    counts = Counter(name for names in train.labels for name in names)
    in_order = dataset.classes if config.classes is None else None  # as the columns of an indicator matrix are
    classes = in_order or natural_order(config.classes or counts)
    if len(classes) < 2:
        raise DataError(
            f"the label of {where} is constant ({', '.join(classes) or 'no labels'}); at least 2 classes are needed"
        )
    if len(classes) > max(10, len(train) // 2):
        raise DataError(
            f"the label of {where} has {len(classes)} distinct values in {len(train)} samples; only classes can be "
            f"learnt, not numbers: name another label with --label (data.label)"
        )
    for part, read in parts.items():
        unseen = natural_order(name for names in read.labels for name in names if name not in classes)
        if unseen:
            raise DataError(
                f"the label {unseen[0]!r} of the {part} split {read.origin.name} was never seen in the training data "
                f"{where}; add training samples of it, or name the classes to keep with data.classes"
            )
    few = [name for name in classes if counts[name] < len(needed)]
    if few:
        purpose = f"split into {', '.join(needed[:-1])} and {needed[-1]}" if len(needed) > 1 else "train"
        more = f" ({len(few) - 1} more classes are too small)" if len(few) > 1 else ""
        raise DataError(
            f"class {few[0]!r} of {where} has {counts[few[0]]} sample{'s' * (counts[few[0]] != 1)}, at least "
            f"{len(needed)} are needed to {purpose}{more}; add samples or leave the class out with data.classes"
        )
    return classes


def _carve(
    part: Labelled, fraction: float, seed: int, classes: tuple[str, ...], multilabel: bool, copies: Copies | None = None
) -> tuple[Labelled, Labelled]:
    """Return what is kept and what is held out; of copies, either all or none are."""
    labels = multi_hot(part.labels, classes) if multilabel else np.array([names[0] for names in part.labels])
    if copies is None or not copies.count:
        kept, held_out = split_indices(labels, fraction=fraction, seed=seed, groups=part.groups, multilabel=multilabel)
        return part.take(kept), part.take(held_out)
    drawn = np.flatnonzero(~copies.learnt)
    units = copies.units[drawn]
    _, out = holdout(labels[drawn], fraction=fraction, seed=seed, groups=units, multilabel=multilabel)
    return part.take(np.setdiff1d(np.arange(len(part)), drawn[out])), part.take(drawn[out])


def _capped(part: Labelled, per_class: int, seed: int) -> Labelled:
    """Return random samples, at most `per_class` of each class."""
    counts: Counter[str] = Counter()
    kept = []
    for index in np.random.default_rng(seed).permutation(len(part)):
        names = part.labels[index]
        if all(counts[name] < per_class for name in names):
            counts.update(names)
            kept.append(int(index))
    return part.take(sorted(kept))


def _check_groups(parts: Mapping[str, Labelled]) -> None:
    """Raise when a group lies in two parts; only given parts can do that."""
    seen: dict[str, str] = {}
    for name, part in parts.items():
        for group in natural_order(part.groups if part.groups is not None else ()):
            if group in seen:
                raise DataError(
                    f"the group {group!r} lies in the {seen[group]} and in the {name} split; move it to one"
                )
            seen[group] = name


def _judging_note(config: DataConfig) -> str:
    return (
        f"No validation split is given: what is trained is judged by {config.validation_fraction:.0%} of what is not "
        "test, drawn anew for each configuration, and what is solved for by samples left out of the fit."
    )


def _copies_notes(copies: Copies) -> list[str]:
    notes = []
    if copies.count:
        notes.append(f"Copies of other samples: {copies.count}; equal ones lie on one side of the test split.")
    if copies.parted:
        notes.append(f"Copies may lie on both sides where classes have no others: {', '.join(copies.parted)}.")
    return notes


def _split_note(name: str, part: Labelled, rest: Labelled, config: DataConfig, seed: int) -> str:
    grouped = f", whole groups of {config.group!r}" if part.groups is not None else ""
    total = len(part) + len(rest)
    return f"The {name} split is {len(part)} of {total} samples, stratified{grouped}, drawn with seed {seed}."
