"""A task made ready for children: prepared samples in the feature store, labels and digests in the run directory.

The test split is not among them; it stays sealed until the end.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from automl_tl.data import ImageSamples, TableEncoder, TableSamples
from automl_tl.data.digests import digest_samples
from automl_tl.errors import DataError, RunError
from automl_tl.features.eviction import GIB
from automl_tl.features.frozen import Samples
from automl_tl.features.rows import Rows
from automl_tl.features.samples import InputFormat, image_size_for, open_samples, prepare_samples, samples_key
from automl_tl.features.store import Entry, EntryKey, FeatureStore
from automl_tl.model.assemble import Interface
from automl_tl.plugin import Backbone, ImageInput, TextInput, Tokenizer

if TYPE_CHECKING:  # only the host reads tasks
    from automl_tl.data import Split, Task

DEVELOPMENT = "development"
UNLABELED = "unlabeled"
Progress = Callable[[str, int, int], None]
"""(what is prepared, samples done, samples in all)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedSplit:
    """A split as a child trains on it."""

    rows: Rows
    labels: np.ndarray
    digests: np.ndarray  # (N, 16) uint8
    groups: np.ndarray | None  # int64 (N,)

    @property
    def samples(self) -> Samples:
        """The rows and what they are, without labels."""
        return Samples(rows=self.rows, digests=self.digests)


@dataclass(frozen=True, slots=True, kw_only=True)
class Development:
    """What a search may learn from and judge by: training samples, then validation samples."""

    labels: np.ndarray
    groups: np.ndarray | None  # int64 (N,): samples of one number never stand on two sides of a split
    given: np.ndarray | None  # indices of a validation split that the user gave; None: it was carved, so any may judge
    n_train: int
    fraction: float = 0.2  # that judges what learns from the rest


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitFiles:
    """Where a split lies for one backbone; plain data that crosses into children."""

    facts: Path  # labels, digests and groups
    entry: Entry  # of the prepared samples
    pad_id: int = 0  # of the backbone's tokenizer
    chosen: np.ndarray | None = None  # indices of those that are meant; None: all

    def only(self, chosen: np.ndarray) -> SplitFiles:
        """Some of the samples, in this order."""
        return replace(self, chosen=chosen if self.chosen is None else self.chosen[chosen])

    def open(self, backbone: Backbone) -> OpenedSplit:
        """The rows, mapped, and their labels."""
        labels, digests, groups = self._facts()
        values = self.entry.open(digests)
        if values is None:
            raise RunError(
                f"the prepared samples of {self.facts.stem} are no longer in the cache {self.entry.directory.parent}; "
                "resume the run to prepare them again, and raise cache.budget_gib if it happens often"
            )
        rows = open_samples(values, backbone, self.pad_id)
        return OpenedSplit(rows=rows, labels=labels, digests=digests, groups=groups)

    def labels(self) -> np.ndarray:
        """The split's labels alone."""
        return self._facts()[0]

    def digest(self) -> str:
        """A digest of samples, labels and preparation."""
        labels, digests, _ = self._facts()
        return hashlib.sha256(self.entry.key.digest().encode() + labels.tobytes() + digests.tobytes()).hexdigest()

    def _facts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        labels, digests, groups = _read_facts(self.facts)
        if self.chosen is None:
            return labels, digests, groups
        return labels[self.chosen], digests[self.chosen], None if groups is None else groups[self.chosen]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedTask:
    """A task as the search sees it."""

    directory: Path  # the run's own
    store: FeatureStore
    task: Task
    formats: Mapping[str, InputFormat]  # by backbone name
    keys: Mapping[str, EntryKey]  # of the prepared samples, by backbone name

    @property
    def entries(self) -> frozenset[str]:
        """Where the store keeps the samples: entries that must stay as long as the task is worked on."""
        return frozenset(key.digest() for key in self.keys.values())

    def interface(self, backbone: Backbone) -> Interface:
        """What a model of this backbone takes and puts out."""
        shape = self.formats[backbone.name].input_shape(backbone)
        return Interface(input_shape=shape, n_outputs=self.task.n_outputs)

    def files(self, backbone: Backbone, split: str) -> SplitFiles:
        """Where a split lies in this backbone's format.

        `train`, `validation` and `test` are the task's; `development` is training and validation samples in this order:
        all that a search may learn from and judge by. `unlabeled` samples have labels of -1.
        """
        entry = self.store.entry(self.keys[backbone.name])
        pad_id = _pad_id(backbone.input.tokenizer) if isinstance(backbone.input, TextInput) else 0
        return SplitFiles(facts=self.directory / f"{split}.npz", entry=entry, pad_id=pad_id)

    def development(self) -> Development:
        """What is known of all samples that are not test."""
        labels, _, groups = _read_facts(self.directory / f"{DEVELOPMENT}.npz")
        given = np.arange(len(self.task.train), len(labels)) if self.task.validation_given else None
        return Development(
            labels=labels,
            groups=groups,
            given=given,
            n_train=len(self.task.train),
            fraction=self.task.validation_fraction,
        )

    def equal_samples(self) -> np.ndarray:
        """One number for all development samples that are equal, (N,) int64."""
        digests = _read_facts(self.directory / f"{DEVELOPMENT}.npz")[1]
        return np.unique(digests, axis=0, return_inverse=True)[1].reshape(-1)

    def keep_together(self, groups: np.ndarray) -> None:
        """Let development samples of one number, (N,) int64, never stand on two sides of a split."""
        path = self.directory / f"{DEVELOPMENT}.npz"
        labels, digests, _ = _read_facts(path)
        _write_facts(path, labels, digests, groups)

    def note(self, name: str, split: Split) -> np.ndarray:
        """Write down what a split is, and return its digests; raises RunError when the run began with another one."""
        path, digests = self.directory / f"{name}.npz", digest_samples(split.samples)
        if path.exists():
            labels, before, _ = _read_facts(path)
            if not (np.array_equal(labels, split.labels) and np.array_equal(before, digests)):
                raise RunError(
                    f"the data changed since {path} was written, or how it is split; expected the samples the run "
                    "began with; start a new run, or restore the data"
                )
            return digests
        _write_facts(path, split.labels, digests, split.groups)
        return digests

    def prepare(self, backbone: Backbone, name: str, split: Split, progress: Progress) -> SplitFiles:
        """Prepare those samples of a split that no run prepared before. The split must have been noted."""
        files, layout, n = self.files(backbone, name), self.formats[backbone.name], len(split.samples)
        digests = _read_facts(files.facts)[1]
        missing = len(files.entry.missing(digests))
        if missing:
            # `prepare_task` saw to it that there is enough: what has no room now is in another run's hands.
            self.store.make_room(missing * self._row_bytes(backbone), seconds=math.inf, keep=self.entries)
        prepare_samples(
            split.samples,
            digests,
            backbone,
            layout,
            files.entry,
            tick=lambda done: progress(f"preparing {name} samples", done, n),
        )
        return files

    def check_budget(self, backbones: tuple[Backbone, ...]) -> None:
        """Raise RunError when the samples of all splits are more than the store may ever hold."""
        n = len(self.task.train) + len(self.task.validation) + len(self.task.test)
        n += 0 if self.task.unlabeled is None else len(self.task.unlabeled)
        sizes = {self.keys[backbone.name]: n * self._row_bytes(backbone) for backbone in backbones}
        if sum(sizes.values()) > self.store.budget:
            raise RunError(
                f"the prepared samples of {self.task.name} take {sum(sizes.values()) / GIB:.3f} GiB, but the cache may "
                f"hold {self.store.budget / GIB:.3f} GiB; raise cache.budget_gib"
            )

    def _row_bytes(self, backbone: Backbone) -> int:
        """Bytes of one prepared sample; of a text at least, which is little beside what is computed from it."""
        shape = self.formats[backbone.name].input_shape(backbone)
        return math.prod(shape) * self.store.entry(self.keys[backbone.name]).stored_dtype.itemsize


def lay_out_task(
    task: Task,
    backbones: tuple[Backbone, ...],
    directory: Path,
    store: FeatureStore,
    *,
    image_size: int | None = None,
    encoder: TableEncoder | None = None,
) -> PreparedTask:
    """Decide how each backbone is to see the task; nothing is written.

    `encoder` is a source task's: its layers expect inputs on the source's scale. Tables are prepared for one run only,
    because the encoding is fitted on its training rows; so they stay in the run's own directory.
    """
    formats = {backbone.name: _format(task, backbone, image_size, encoder) for backbone in backbones}
    keys = {backbone.name: samples_key(backbone, formats[backbone.name]) for backbone in backbones}
    if isinstance(task.train.samples, TableSamples):
        store = replace(store, root=directory / "store")
    return PreparedTask(directory=directory, store=store, task=task, formats=formats, keys=keys)


def leave_out_known(task: Task) -> Task:
    """The task without those unlabeled samples that equal a training, validation or test sample, and a note on them.

    What is judged would be learnt from otherwise, if without its label. Raises DataError when none is left.
    """
    if task.unlabeled is None:
        return task
    own = {row.tobytes() for split in (task.train, task.validation) for row in digest_samples(split.samples)}
    known = np.array([row.tobytes() in own for row in digest_samples(task.unlabeled)], bool)
    known |= task.test.holds(task.unlabeled, digest_samples)
    if not known.any():
        return task
    if known.all():
        raise DataError(
            f"each of the {len(known)} unlabeled samples equals a training, validation or test sample of {task.name}; "
            "give others, or remove data.unlabeled"
        )
    note = f"{known.sum()} of {len(known)} unlabeled samples equal a labelled one, test samples included: left out."
    return replace(task, unlabeled=task.unlabeled.take(np.flatnonzero(~known)), notes=(*task.notes, note))


def prepare_task(
    prepared: PreparedTask,
    backbones: tuple[Backbone, ...],
    progress: Progress,
    tell: Callable[[str], None] = lambda text: None,
) -> None:
    """Decode, tokenize or encode the training, validation and unlabeled samples for these backbones.

    `tell` hears of samples prepared before that are damaged; they are prepared again. Raises RunError when the run
    began with other samples or labels, or the store may not hold as much.
    """
    prepared.check_budget(backbones)
    splits = {"train": prepared.task.train, "validation": prepared.task.validation}
    noted = [prepared.note(name, split) for name, split in splits.items()]
    digests = np.concatenate(noted)
    if not (prepared.directory / f"{DEVELOPMENT}.npz").exists():
        development = prepared.task.development
        _write_facts(prepared.directory / f"{DEVELOPMENT}.npz", development.labels, digests, development.groups)
    if prepared.task.unlabeled is not None:
        from automl_tl.data import Split  # brings the readers, which a child does without

        splits[UNLABELED] = Split(prepared.task.unlabeled, np.full(len(prepared.task.unlabeled), -1))
        digests = np.concatenate([digests, prepared.note(UNLABELED, splits[UNLABELED])])
    for entry in {prepared.files(backbone, "train").entry for backbone in backbones}:
        with entry.building():
            for flaw in entry.check(digests):
                tell(f"{flaw}; they are prepared again")
    for name, split in splits.items():
        for backbone in backbones:
            prepared.prepare(backbone, name, split, progress)


@functools.cache
def _pad_id(tokenizer: Callable[[], Tokenizer]) -> int:
    """Remembered: every trial asks for it, and a tokenizer has to be loaded to answer."""
    return tokenizer().pad_id


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Say in one sentence what kept `path` from being written."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise RunError(f"no space is left on the disk for {path}; free some and resume") from None
        raise RunError(f"cannot write {path}: {error.strerror or error}") from None


def _write_facts(path: Path, labels: np.ndarray, digests: np.ndarray, groups: np.ndarray | None) -> None:
    facts: dict[str, Any] = {"labels": labels, "digests": digests}
    if groups is not None:
        facts["groups"] = groups
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, **facts)
        partial.replace(path)


def _read_facts(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    try:
        with path.open("rb") as file, np.load(file) as facts:  # numpy leaves a damaged file open that it opened itself
            return facts["labels"], facts["digests"], facts.get("groups")
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise RunError(f"{path} is missing or damaged ({error}); start a new run") from None


def _format(task: Task, backbone: Backbone, image_size: int | None, encoder: TableEncoder | None) -> InputFormat:
    samples = task.train.samples
    if isinstance(samples, ImageSamples) and isinstance(backbone.input, ImageInput):
        return InputFormat(size=image_size_for(backbone, samples.median_side(), image_size))
    if isinstance(samples, TableSamples):
        return InputFormat(encoder=encoder or TableEncoder.fit(samples.frame, task.schema.categorical_columns))
    return InputFormat()
