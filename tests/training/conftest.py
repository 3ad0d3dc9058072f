from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, load_wine

from automl_tl.data import ImageSamples
from automl_tl.features.rows import ArrayValues, Rows, StoredRows, TableRows
from automl_tl.features.samples import InputFormat, rows_in_memory
from automl_tl.metrics.scores import Kind
from automl_tl.model.assemble import Interface, TransferModel, assemble
from automl_tl.model.spec import Optimization, Regularization, TrialSpec
from automl_tl.plugin import Backbone, GroupPlan, Head, TransferPlan
from automl_tl.training import batches
from automl_tl.training.train import Labelled, Outcome, TrainingData, train
from automl_tl_builtins.backbones import source_cnn, source_mlp
from automl_tl_builtins.heads import linear


@dataclass(frozen=True, kw_only=True, repr=False)
class Subject:
    """A backbone and a task for it: the first rows to train on, the others to validate by."""

    backbone: Backbone
    head: Head
    rows: Rows
    labels: np.ndarray
    n_train: int
    input_shape: tuple[int, ...]
    kind: Kind = "multiclass"

    @property
    def n_outputs(self) -> int:
        return self.labels.shape[1] if self.labels.ndim == 2 else int(self.labels.max()) + 1

    def spec(self, *groups: GroupPlan, max_epochs=2, batch_size=16, learning_rate=1e-3, optimizer="adamw", **settings):
        """A spec with these plans for the last groups, all before frozen; without any, all groups are tuned."""
        names = self.backbone.layer_groups
        frozen = (GroupPlan(group=name, action="freeze") for name in names[: len(names) - len(groups)])
        tuned = (GroupPlan(group=name, action="tune") for name in names)
        plan = TransferPlan((*frozen, *groups) if groups else tuple(tuned))
        names = ("weights", "norm", "joint_source_weight", "pooling", "head", "head_parameters", "init_head")
        top = {key: settings.pop(key) for key in names if key in settings}
        names = ("warm_up", "clip_norm", "averaging", "head_lr_scale")
        descent = {key: settings.pop(key) for key in names if key in settings}
        return TrialSpec(
            backbone=self.backbone.name,
            plan=plan,
            regularization=Regularization(**settings),
            optimization=Optimization(
                optimizer=optimizer, learning_rate=learning_rate, batch_size=batch_size, **descent
            ),
            max_epochs=max_epochs,
            **top,
        )

    def model(self, spec: TrialSpec, *, seed: int = 0) -> TransferModel:
        interface = Interface(input_shape=self.input_shape, n_outputs=self.n_outputs)
        return assemble(spec, self.backbone, self.head, interface, seed=seed)

    def stored(self, model: TransferModel) -> TrainingData:
        """The data from the model's cut on, or from the features that the head reads where only the head trains."""
        indices = np.arange(len(self.labels))
        with torch.no_grad():
            if model.cut == len(model.plans):
                values = model.eval().features(self.rows.batch(indices, "cpu")).numpy()
            else:
                values = model.eval().prefix(self.rows.batch(indices, "cpu")).numpy()
        if values.ndim == 4:
            values = values.transpose(0, 2, 3, 1)
        data = self.data()
        fit, validation = np.split(values, [self.n_train])
        return replace(
            data,
            train=Labelled(rows=_stored(fit), labels=data.train.labels, start=model.cut),
            validation=Labelled(rows=_stored(validation), labels=data.validation.labels, start=model.cut),
        )

    def data(self, *, metric: str = "f1_macro") -> TrainingData:
        splits = np.split(np.arange(len(self.labels)), [self.n_train])
        fit, validation = (Labelled(rows=self.part(split), labels=self.labels[split]) for split in splits)
        return TrainingData(train=fit, validation=validation, kind=self.kind, metric=metric, n_outputs=self.n_outputs)

    def with_stopping(self, n: int = 12) -> TrainingData:
        """The data, of which the last training rows are those to stop by."""
        data, first = self.data(), self.n_train - n
        fit, stopping = (np.arange(first), np.arange(first, self.n_train))
        return replace(
            data,
            train=Labelled(rows=self.part(fit), labels=self.labels[fit]),
            stopping=Labelled(rows=self.part(stopping), labels=self.labels[stopping]),
        )

    def part(self, indices: np.ndarray) -> Rows:
        name = "pixels" if hasattr(self.rows, "pixels") else "values"
        return replace(self.rows, **{name: ArrayValues(getattr(self.rows, name).gather(indices))})

    def train(self, spec: TrialSpec, *, seed: int = 0, **options) -> tuple[TransferModel, Outcome]:
        model = self.model(spec, seed=seed)
        return model, train(model, self.data(), spec, device="cpu", seed=seed, **options)


def _stored(values: np.ndarray) -> Rows:
    return StoredRows(ArrayValues(np.ascontiguousarray(values)), "float32")


@pytest.fixture(scope="session")
def head():
    (found,) = linear.automl_tl_heads()
    return found


@pytest.fixture(scope="session")
def digits(head):
    """Return 48 digits for training and 32 for validation, at 16 pixels."""
    (backbone,) = source_cnn.automl_tl_backbones()
    bunch = load_digits()
    pictures = ImageSamples(sources=tuple(bunch.images[:80]), ids=("",) * 80, value_range=(0.0, 16.0))
    rows = rows_in_memory(pictures, backbone, InputFormat(size=16))
    return Subject(
        backbone=backbone, head=head, rows=rows, labels=bunch.target[:80], n_train=48, input_shape=(3, 16, 16)
    )


@pytest.fixture(scope="session")
def wine(head):
    """Return 120 wines for training and 58 for validation."""
    (backbone,) = source_mlp.automl_tl_backbones()
    values, labels = load_wine(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    table = ((values - values.mean(0)) / values.std(0)).astype(np.float32)
    return Subject(
        backbone=backbone,
        head=head,
        rows=TableRows(ArrayValues(table[order])),
        labels=labels[order],
        n_train=120,
        input_shape=(13,),
    )


@pytest.fixture
def few_steps(monkeypatch):
    """Let an epoch be one pass over the rows."""
    monkeypatch.setattr(batches, "MIN_STEPS", 1)
