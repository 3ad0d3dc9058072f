from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, load_wine
from torch import nn

from automl_tl.config import DataConfig
from automl_tl.data import ImageSamples, TextSamples, load_task
from automl_tl.data import Samples as Raw
from automl_tl.data.digests import digest_samples
from automl_tl.features.frozen import Samples, Source
from automl_tl.features.network import Network, weights_digest
from automl_tl.features.rows import ArrayValues, Rows, TableRows
from automl_tl.features.samples import InputFormat, rows_in_memory
from automl_tl.features.store import GIB, FeatureStore
from automl_tl.model.assemble import BACKBONE_PREFIX, Interface, TransferModel, assemble, assemble_head, frozen_groups
from automl_tl.model.checkpoint import save_tensors
from automl_tl.model.groups import describe_groups
from automl_tl.model.spec import Optimization, Regularization, TrialSpec
from automl_tl.plugin import Backbone, GroupPlan, Head, LayerGroup, TransferPlan
from automl_tl.training import batches
from automl_tl_builtins.backbones import minilm_l6, mobilenet_v2, source_cnn, source_mlp
from automl_tl_builtins.heads import linear

TEXTS = (
    "a warm and funny film",
    "dull",
    "the actors do what they can, but there is nothing to be done with a script like this one",
    "a joy from start to end",
    "I left before it was over",
    "not bad, not good, and over soon",
    "one of the best of its year",
    "a waste of two hours",
)


def ids(n):
    return tuple(f"sample {index}" for index in range(n))


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Subject:
    """Samples of a task, and a network with certain weights that reads them."""

    backbone: Backbone
    head: Head
    raw: Raw | None
    layout: InputFormat
    rows: Rows
    digests: np.ndarray
    labels: np.ndarray
    input_shape: tuple[int, ...]
    source_weights: Path | None  # None: the published ones
    groups: tuple[nn.Module, ...]
    facts: tuple[LayerGroup, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return self.backbone.layer_groups

    @property
    def samples(self) -> Samples:
        return Samples(rows=self.rows, digests=self.digests)

    @property
    def n_outputs(self) -> int:
        return int(self.labels.max()) + 1

    def take(self, indices) -> Subject:
        """The same with some of the samples only."""
        indices = np.asarray(indices)
        rows = rows_in_memory(self.raw.take(indices), self.backbone, self.layout)
        return replace(self, rows=rows, digests=self.digests[indices], labels=self.labels[indices])

    def network(self, store: FeatureStore, **changes) -> Network:
        weights = self.source_weights or self.backbone.weights.find()
        network = Network(
            store=store,
            backbone=self.backbone.name,
            weights=weights_digest(self.backbone, version="1", input_shape=self.input_shape, weights=weights),
            inputs="as they are",
            groups=self.facts,
        )
        return replace(network, **changes)

    def source(self, **settings) -> Source:
        return Source(groups=self.groups, device="cpu", **settings)

    def spec(self, *actions: str, **settings) -> TrialSpec:
        """A spec whose last groups have these actions; all before are frozen."""
        padded = ("freeze",) * (len(self.names) - len(actions)) + actions
        plan = TransferPlan(tuple(GroupPlan(group=g, action=a) for g, a in zip(self.names, padded, strict=True)))
        settings = {"regularization": Regularization(dropout=0.2), "max_epochs": 2, **settings}
        sgd = Optimization(optimizer="sgd", learning_rate=0.05, batch_size=5)
        return TrialSpec(backbone=self.backbone.name, plan=plan, optimization=sgd, **settings)

    def model(self, spec: TrialSpec, *, seed: int = 0) -> TransferModel:
        interface = Interface(input_shape=self.input_shape, n_outputs=self.n_outputs)
        weights = self.source_weights if spec.weights == "transferred" else None
        return assemble(spec, self.backbone, self.head, interface, source_weights=weights, seed=seed)

    def head_model(self, spec: TrialSpec, in_features: int, *, seed: int = 0) -> TransferModel:
        return assemble_head(spec, self.head, in_features=in_features, n_outputs=self.n_outputs, seed=seed)


def subject(backbone, linear_head, layout, raw, labels, *, source_weights=None, rows=None, digests=None):
    input_shape = (13,) if raw is None else layout.input_shape(backbone)
    groups = frozen_groups(backbone, input_shape, source_weights=source_weights)
    return Subject(
        backbone=backbone,
        head=linear_head,
        raw=raw,
        layout=layout,
        rows=rows or rows_in_memory(raw, backbone, layout),
        digests=digest_samples(raw) if digests is None else digests,
        labels=labels,
        input_shape=input_shape,
        source_weights=source_weights,
        groups=tuple(groups.values()),
        facts=describe_groups(backbone, input_shape),
    )


def random_weights(backbone, input_shape, path, seed=0):
    """Write a source model's layers: weights that no seed of a test draws, and statistics that are not the initial."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1000 + seed)
        module = backbone.build(input_shape=input_shape, weights=None)
        for layer in module.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.running_mean.normal_(std=0.1)
                layer.running_var.uniform_(0.5, 1.5)
    kept = {n: t for n, t in module.state_dict().items() if n.partition(".")[0] in backbone.layer_groups}
    save_tensors({BACKBONE_PREFIX + name: tensor for name, tensor in kept.items()}, path)
    return path


@pytest.fixture(scope="session")
def backbones():
    """Return the built-in backbones by name."""
    modules = (source_cnn, source_mlp, mobilenet_v2, minilm_l6)
    return {backbone.name: backbone for module in modules for backbone in module.automl_tl_backbones()}


@pytest.fixture(scope="session")
def linear_head():
    (head,) = linear.automl_tl_heads()
    return head


@pytest.fixture(scope="session")
def pictures():
    """Return 20 digits, as images without files."""
    images = load_digits().images[:20].astype(np.float64)
    return ImageSamples(sources=tuple(images), ids=ids(20), value_range=(0.0, 16.0))


@pytest.fixture(scope="session")
def texts():
    return TextSamples(texts=TEXTS, ids=ids(len(TEXTS)))


@pytest.fixture(scope="session")
def wine():
    """Return the wine task."""
    return load_task(DataConfig(path="sklearn:wine"), seed=0)


@pytest.fixture(scope="session")
def minilm(backbones):
    """Return MiniLM, where it can be used."""
    pytest.importorskip("tokenizers")
    backbone = backbones["minilm_l6"]
    if backbone.weights.find() is None:
        pytest.skip("the weights of minilm_l6 are not installed")
    return backbone


@pytest.fixture(scope="session")
def mobilenet(backbones):
    """Return MobileNetV2, where its weights are installed."""
    backbone = backbones["mobilenet_v2"]
    if backbone.weights.find() is None:
        pytest.skip("the weights of mobilenet_v2 are not installed")
    return backbone


@pytest.fixture(scope="session")
def wine_table():
    """Return the standardized wine table and its classes."""
    rows, labels = load_wine(return_X_y=True)
    return ((rows - rows.mean(0)) / rows.std(0)).astype(np.float32), labels


@pytest.fixture(scope="session")
def images(backbones, linear_head, pictures, tmp_path_factory):
    """Return 20 digits and a small network of four groups, trained on something else, so to say."""
    backbone, layout = backbones["source_cnn"], InputFormat(size=16)
    weights = random_weights(backbone, (3, 16, 16), tmp_path_factory.mktemp("source") / "cnn.safetensors")
    return subject(backbone, linear_head, layout, pictures, np.arange(20) % 10, source_weights=weights)


@pytest.fixture(scope="session")
def photographs(mobilenet, linear_head, pictures):
    return subject(mobilenet, linear_head, InputFormat(size=32), pictures.take(range(10)), np.arange(10) % 5)


@pytest.fixture(scope="session")
def reviews(minilm, linear_head, texts):
    return subject(minilm, linear_head, InputFormat(), texts, np.arange(8) % 2)


@pytest.fixture(scope="session")
def table(backbones, linear_head, wine_table, tmp_path_factory):
    rows, labels = wine_table
    backbone, rows = backbones["source_mlp"], rows[::9]
    return subject(
        backbone,
        linear_head,
        InputFormat(),
        None,
        labels[::9],
        source_weights=random_weights(backbone, (13,), tmp_path_factory.mktemp("source") / "mlp.safetensors"),
        rows=TableRows(ArrayValues(rows)),
        digests=np.frombuffer(rows.tobytes(), np.uint8).reshape(len(rows), -1)[:, :16].copy(),
    )


@pytest.fixture
def store(tmp_path):
    return FeatureStore(root=tmp_path / "store", budget=GIB)


@pytest.fixture
def few_steps(monkeypatch):
    """Let an epoch be one pass over the rows."""
    monkeypatch.setattr(batches, "MIN_STEPS", 2)
