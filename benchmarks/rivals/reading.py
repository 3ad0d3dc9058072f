"""A task directory as a rival sees it: prepared training and test samples, and the backbone with its weights."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from automl_tl.config import DataConfig
from automl_tl.data import TableEncoder, TableSamples
from automl_tl.data.folder import dataset_from_folders
from automl_tl.data.labelled import Dataset, Labelled
from automl_tl.data.locate import locate
from automl_tl.data.table import dataset_from_tables, table_file
from automl_tl.features.rows import Rows
from automl_tl.features.samples import InputFormat, image_size_for, rows_in_memory
from automl_tl.host import load_host
from automl_tl.plugin import Backbone, ImageInput, Tokens

SOURCE = "source.csv"


@dataclass(frozen=True)
class Part:
    """Samples, ready for the network, and their class numbers (N,)."""

    rows: Rows
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class ShortenedRows:
    """Texts cut to so many tokens."""

    rows: Rows
    longest: int

    @property
    def lengths(self) -> np.ndarray | None:
        return None if self.rows.lengths is None else np.minimum(self.rows.lengths, self.longest)

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: np.ndarray, device: str) -> Tensor | Tokens:
        inputs = self.rows.batch(indices, device)
        assert isinstance(inputs, Tokens)
        return Tokens(inputs.values[:, : self.longest], inputs.mask[:, : self.longest])


def shortened(part: Part, longest: int) -> Part:
    """The same part, its texts cut to so many tokens: a step takes as much less time. Nothing else is changed."""
    return part if part.rows.lengths is None else Part(ShortenedRows(part.rows, longest), part.labels)


@dataclass(frozen=True, kw_only=True)
class Task:
    backbone: Backbone
    input_shape: tuple[int, ...]
    classes: tuple[str, ...]
    train: Part  # to be split by the rival itself
    test: Part
    source: Part | None = None  # a source task of other classes, where the backbone has no weights of its own


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """The options that all rivals take."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", type=Path, help="train/ and test/ of class folders, or train.csv and test.csv")
    parser.add_argument("--backbone", required=True, help="a backbone plugin")
    parser.add_argument("--budget", type=float, default=300.0, help="seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--began", type=float, default=time.time(), help="when the clock was started, Unix time")
    parser.add_argument("--predictions", type=Path, help="a file for the predicted class of each test sample")
    return parser


def use_all_cores(seed: int) -> None:
    """All cores this process may use; torch alone would take OMP_NUM_THREADS or guess."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(seed)


def read_task(directory: Path, backbone_name: str) -> Task:
    """Decode, tokenize or standardize all samples, as `automl-tl search` would."""
    backbone = load_host().backbone(backbone_name)
    dataset = read_dataset(directory)
    train, test = dataset.parts["train"], dataset.parts["test"]
    source = None
    if (directory / SOURCE).exists():
        source = dataset_from_tables({"train": table_file(directory / SOURCE)}, DataConfig(path=SOURCE)).parts["train"]
    layout = input_format(backbone, train, source)
    classes = class_names(train)
    return Task(
        backbone=backbone,
        input_shape=layout.input_shape(backbone),
        classes=classes,
        train=prepared(train, classes, backbone, layout),
        test=prepared(test, classes, backbone, layout),
        source=None if source is None else prepared(source, class_names(source), backbone, layout),
    )


def read_dataset(directory: Path) -> Dataset:
    config = DataConfig(path=str(directory))
    location = locate(config)
    if location.format == "folder":
        return dataset_from_folders(location.root, location.parts, config)
    return dataset_from_tables({part: table_file(path) for part, path in location.parts.items()}, config)


def input_format(backbone: Backbone, train: Labelled, source: Labelled | None) -> InputFormat:
    if isinstance(train.samples, TableSamples):
        seen = train if source is None else source
        assert isinstance(seen.samples, TableSamples)
        return InputFormat(encoder=TableEncoder.fit(seen.samples.frame, categorical_columns=()))
    if isinstance(backbone.input, ImageInput):
        assert train.samples.modality == "image"
        return InputFormat(size=image_size_for(backbone, train.samples.median_side(), None))
    return InputFormat()


def prepared(part: Labelled, classes: Sequence[str], backbone: Backbone, layout: InputFormat) -> Part:
    number = {name: index for index, name in enumerate(classes)}
    labels = np.array([number[names[0]] for names in part.labels], dtype=np.int64)
    return Part(rows_in_memory(part.samples, backbone, layout), labels)


def class_names(part: Labelled) -> tuple[str, ...]:
    return tuple(sorted({names[0] for names in part.labels}))


def build_stages(task: Task) -> nn.ModuleList:
    """The backbone's layer groups with their published weights, or with random ones where it has none."""
    weights = task.backbone.weights.find() if task.backbone.weights else None
    if task.backbone.weights and weights is None:
        raise SystemExit(f"{task.backbone.name}: run `{task.backbone.weights.install}`")
    network = task.backbone.build(input_shape=task.input_shape, weights=weights)
    return nn.ModuleList(network.get_submodule(group) for group in task.backbone.layer_groups)
