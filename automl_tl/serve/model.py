"""A trained model as files: `model.safetensors` holds the weights, `model.json` all else that prediction needs."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from automl_tl.data import InputSchema, Samples, TableEncoder, Task
from automl_tl.errors import RunError
from automl_tl.features.digests import digest_samples
from automl_tl.features.frozen import ChangedRows
from automl_tl.features.samples import InputFormat, rows_in_memory
from automl_tl.host import Item, PluginHost, PluginSources, load_host
from automl_tl.metrics.scores import Kind, decide
from automl_tl.model.assemble import Interface, TransferModel, assemble
from automl_tl.model.checkpoint import load_tensors, save_tensors
from automl_tl.model.spec import spec_from_json
from automl_tl.plugin import Backbone
from automl_tl.training.train import predict_probabilities

SCHEMA_VERSION = 1
WEIGHTS = "model.safetensors"
CARD = "model.json"
CHUNK = 2048  # samples prepared and predicted at a time


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A model with all it needs to take raw samples."""

    module: TransferModel
    backbone: Backbone
    layout: InputFormat
    schema: InputSchema
    kind: Kind
    classes: tuple[str, ...]
    device: str = "cpu"

    def probabilities(self, samples: Samples, *, views: int = 0) -> np.ndarray:
        """Probabilities (N, K), float32; for several labels a sample each is on its own.

        `views`: changed copies of each sample whose probabilities are averaged with its own; changed as in training, or
        lightly where training changed nothing.
        """
        parts = [
            self._averaged(samples.take(np.arange(start, min(start + CHUNK, len(samples)))), views)
            for start in range(0, len(samples), CHUNK)
        ]
        return np.concatenate(parts) if parts else np.empty((0, len(self.classes)), dtype=np.float32)

    def _averaged(self, samples: Samples, views: int) -> np.ndarray:
        rows = rows_in_memory(samples, self.backbone, self.layout)
        said = predict_probabilities(self.module, rows, self.kind, self.device)
        if not views:
            return said
        trained_with = self.module.spec.regularization.augmentation
        how, digests = "light" if trained_with == "none" else trained_with, digest_samples(samples)
        for number in range(1, views + 1):
            changed = ChangedRows(rows, digests, f"{how}-{number}")
            said = said + predict_probabilities(self.module, changed, self.kind, self.device)
        return np.asarray(said / (views + 1))

    def predictions(self, samples: Samples, *, views: int = 0) -> pd.DataFrame:
        """One row a sample: its id, the predicted class (or `a;b` labels), and the probability of every class."""
        probabilities = self.probabilities(samples, views=views)
        said = decide(probabilities, self.kind)
        if self.kind == "multilabel":
            named = [";".join(self.classes[k] for k in np.flatnonzero(row)) for row in said]
        else:
            named = [self.classes[k] for k in said]
        columns = {f"probability_{name}": probabilities[:, k] for k, name in enumerate(self.classes)}
        return pd.DataFrame({"id": list(samples.ids), "class": named, **columns})


def save_model(
    directory: Path,
    module: TransferModel,
    task: Task,
    layout: InputFormat,
    interface: Interface,
    host: PluginHost,
) -> None:
    """Write the model's files; after this the run directory can predict without retraining."""
    save_tensors(module.state_dict(), directory / WEIGHTS)
    card = {
        "schema_version": SCHEMA_VERSION,
        "spec": module.spec.to_json(),
        "kind": task.kind,
        "classes": list(task.classes),
        "schema": task.schema.to_json(),
        "size": layout.size,
        "encoder": layout.encoder.to_json() if layout.encoder else None,
        "input_shape": list(interface.input_shape),
        "plugins": {
            "dirs": [str(path.resolve()) for path in host.sources.dirs],
            "disabled": list(host.sources.disabled),
        },
        "versions": host.versions(),
    }
    (directory / CARD).write_text(json.dumps(card, indent=2) + "\n")


def load_model(directory: Path, *, plugins: tuple[Item, ...] = (), device: str = "cpu") -> TrainedModel:
    """Load a saved model; raises RunError when files are missing or damaged.

    `plugins` are those that were passed in Python when the model was made: files cannot hold them.
    """
    try:
        card: dict[str, Any] = json.loads((directory / CARD).read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(
            f"{directory} holds no trained model; expected {CARD}; the search has not finished: resume it"
        ) from None
    except ValueError as error:  # neither JSON nor, at worst, text
        raise RunError(f"{directory / CARD} is damaged: {error}") from None
    if card["schema_version"] > SCHEMA_VERSION:
        raise RunError(
            f"{directory} was written by a newer automl-tl (schema {card['schema_version']}); upgrade to read it"
        )
    dirs = tuple(Path(path) for path in card["plugins"]["dirs"])
    host = load_host(PluginSources(dirs=dirs, disabled=tuple(card["plugins"]["disabled"]), objects=plugins))
    spec = spec_from_json(card["spec"])
    backbone = host.backbone(spec.backbone)
    interface = Interface(input_shape=tuple(card["input_shape"]), n_outputs=len(card["classes"]))
    # Random weights: all of them are in the file, so the published ones need not be installed.
    module = assemble(replace(spec, weights="random"), backbone, host.head(spec.head), interface, seed=0)
    try:
        module.load_state_dict(load_tensors(directory / WEIGHTS))
    except RuntimeError as error:
        raise RunError(f"{directory / WEIGHTS} does not fit its backbone {backbone.name!r}: {error}") from None
    encoder = TableEncoder.from_json(card["encoder"]) if card["encoder"] else None
    return TrainedModel(
        module=module.eval().to(device),
        backbone=backbone,
        layout=InputFormat(size=card["size"], encoder=encoder),
        schema=InputSchema.from_json(card["schema"]),
        kind=card["kind"],
        classes=tuple(card["classes"]),
        device=device,
    )
