"""A trained model as files: `model.safetensors` holds the weights, `model.json` all else that prediction needs.

A model is one network or an ensemble. Members that share frozen groups form a family, whose file keys are `F.frozen.`
for these groups, which are kept once, and `F.M.` for what is the M-th member's own.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor, nn

from automl_tl.data import InputSchema, Samples, TableEncoder, Task
from automl_tl.data.digests import digest_samples
from automl_tl.errors import RunError
from automl_tl.features.frozen import ChangedRows
from automl_tl.features.rows import ImageRows, Rows
from automl_tl.features.samples import InputFormat, rows_in_memory
from automl_tl.host import Item, PluginHost, PluginSources, load_host
from automl_tl.metrics.scores import Kind, decide
from automl_tl.model.assemble import TransferModel, assemble_head, frozen_groups, trained_state
from automl_tl.model.checkpoint import load_tensors, save_tensors
from automl_tl.model.ensemble import UNADJUSTED, Adjustment, Family, Member, share_frozen
from automl_tl.model.plan import check_plan, cut, kept
from automl_tl.model.spec import only_head_trains, spec_from_json
from automl_tl.plugin import Backbone, ImageInput
from automl_tl.training.batches import evaluation_batches
from automl_tl.training.evaluation import EVALUATION_BATCH
from automl_tl.training.precision import laid_out

SCHEMA_VERSION = 2
WEIGHTS = "model.safetensors"
CARD = "model.json"
CHUNK = 2048  # samples prepared and predicted at a time


@dataclass(frozen=True, kw_only=True)
class Part:
    """A family of members, and how raw samples become its inputs."""

    family: Family
    backbone: Backbone
    layout: InputFormat

    def probabilities(self, rows: Rows, kind: Kind, device: str) -> np.ndarray:
        """The family's probabilities (N, K), float32, in the order of the rows."""
        said: list[np.ndarray] = []
        batches = list(evaluation_batches(len(rows), EVALUATION_BATCH, rows.lengths))
        for indices in batches:
            batch = laid_out(rows.batch(indices, device), "channels_last")
            said.append(self.family.probabilities(batch, kind).cpu().numpy())
        ordered: np.ndarray = np.concatenate(said)[np.argsort(np.concatenate(batches))]
        return ordered


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A model with all it needs to take raw samples."""

    parts: tuple[Part, ...]
    schema: InputSchema
    kind: Kind
    classes: tuple[str, ...]
    adjustment: Adjustment = UNADJUSTED
    device: str = "cpu"

    @property
    def members(self) -> tuple[Member, ...]:
        """The networks whose probabilities are averaged, with their weights."""
        return tuple(member for part in self.parts for member in part.family.members)

    def probabilities(self, samples: Samples, *, views: int = 0) -> np.ndarray:
        """Probabilities (N, K), float32; for several labels a sample each is on its own.

        `views`: changed copies of each sample whose probabilities are averaged with its own; changed as in training, or
        lightly where training changed nothing, or the members were trained differently.
        """
        chunks = [
            self._adjusted(samples.take(np.arange(start, min(start + CHUNK, len(samples)))), views)
            for start in range(0, len(samples), CHUNK)
        ]
        return np.concatenate(chunks) if chunks else np.empty((0, len(self.classes)), dtype=np.float32)

    def _adjusted(self, samples: Samples, views: int) -> np.ndarray:
        """The weighted mean of all families and views, adjusted."""
        mean = np.zeros((len(samples), len(self.classes)), dtype=np.float32)
        total = sum(part.family.weight for part in self.parts)
        names = [f"{self._augmentation()}-{number}" for number in range(1, views + 1)]
        digests = digest_samples(samples) if names else None
        for part, rows in _prepared(samples, self.parts):
            seen = [rows] if digests is None else [rows, *(ChangedRows(rows, digests, name) for name in names)]
            for each in seen:
                mean += part.family.weight / total / len(seen) * part.probabilities(each, self.kind, self.device)
        return self.adjustment.apply(mean, self.kind)

    def _augmentation(self) -> str:
        """How views are made: one way for all members, or they could not share what they pass."""
        trained_with = {member.model.spec.regularization.augmentation for member in self.members}
        return "strong" if trained_with == {"strong"} else "light"

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


def _prepared(samples: Samples, parts: Sequence[Part]) -> Iterator[tuple[Part, Rows]]:
    """Each part with its inputs; samples are decoded once for all parts that read them alike."""
    alike: dict[str, list[Part]] = {}
    for part in parts:
        alike.setdefault(part.layout.key(part.backbone), []).append(part)
    for group in alike.values():
        rows = rows_in_memory(samples, group[0].backbone, group[0].layout)
        for part in group:
            if isinstance(rows, ImageRows) and isinstance(part.backbone.input, ImageInput):
                rows = replace(rows, mean=part.backbone.input.mean, std=part.backbone.input.std)
            yield part, rows


def save_model(
    directory: Path,
    members: Sequence[Member],
    task: Task,
    formats: Mapping[str, InputFormat],
    host: PluginHost,
    *,
    adjustment: Adjustment = UNADJUSTED,
) -> None:
    """Write the model's files; after this the run directory can predict without retraining.

    The card is written last: files that a killed process left do not load.

    Parameters
    ----------
    members
        One, or those of an ensemble; they share their frozen groups afterwards.
    formats
        How inputs are prepared, by backbone name.
    adjustment
        Of the members' mean.
    """
    tensors: dict[str, Tensor] = {}
    families = []
    for number, family in enumerate(share_frozen(members)):
        deepest = family.members[0].model
        own = trained_state(deepest)
        tensors |= {f"{number}.frozen.{k}": tensor for k, tensor in deepest.state_dict().items() if k not in own}
        for place, member in enumerate(family.members):
            tensors |= {f"{number}.{place}.{k}": tensor for k, tensor in trained_state(member.model).items()}
        backbone = host.backbone(deepest.spec.backbone)
        layout = formats[backbone.name]
        families.append(
            {
                "size": layout.size,
                "encoder": layout.encoder.to_json() if layout.encoder else None,
                "input_shape": list(layout.input_shape(backbone)),
                "members": [{"spec": m.model.spec.to_json(), "weight": m.weight} for m in family.members],
            }
        )
    card = {
        "schema_version": SCHEMA_VERSION,
        "families": families,
        "adjustment": adjustment.to_json(),
        "kind": task.kind,
        "classes": list(task.classes),
        "schema": task.schema.to_json(),
        "plugins": {
            "dirs": [str(path.resolve()) for path in host.sources.dirs],
            "disabled": list(host.sources.disabled),
        },
        "versions": host.versions(),
    }
    with _writing(directory / CARD):
        (directory / CARD).unlink(missing_ok=True)  # that of an earlier model, whose weights are about to go
    save_tensors(tensors, directory / WEIGHTS)
    with _writing(directory / CARD):
        partial = directory / f"{CARD}.partial"
        partial.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
        partial.replace(directory / CARD)


def load_model(directory: Path, *, plugins: tuple[Item, ...] = (), device: str = "cpu") -> TrainedModel:
    """Load a saved model; raises RunError when files are missing or damaged.

    `plugins` are those that were passed in Python when the model was made: files cannot hold them.
    """
    card = _read_card(directory)
    dirs = tuple(Path(path) for path in card["plugins"]["dirs"])
    host = load_host(PluginSources(dirs=dirs, disabled=tuple(card["plugins"]["disabled"]), objects=plugins))
    tensors = load_tensors(directory / WEIGHTS)
    if card["schema_version"] == 1:  # a single model, whose facts and tensors have no family's name
        only = {key: card[key] for key in ("size", "encoder", "input_shape")}
        card |= {"families": [{**only, "members": [{"spec": card["spec"], "weight": 1.0}]}], "adjustment": {}}
        tensors = {f"0.0.{key}": tensor for key, tensor in tensors.items()}
    parts = []
    for number, family in enumerate(card["families"]):
        backbone = host.backbone(spec_from_json(family["members"][0]["spec"]).backbone)
        encoder = TableEncoder.from_json(family["encoder"]) if family["encoder"] else None
        try:
            members = _members(family, _under(tensors, number), backbone, host, len(card["classes"]))
        except (KeyError, RuntimeError) as error:
            raise RunError(f"{directory / WEIGHTS} does not fit its backbone {backbone.name!r}: {error}") from None
        for member in members:
            member.model.eval().to(device)
        layout = InputFormat(size=family["size"], encoder=encoder)
        parts += [Part(family=each, backbone=backbone, layout=layout) for each in share_frozen(members)]
    return TrainedModel(
        parts=tuple(parts),
        schema=InputSchema.from_json(card["schema"]),
        kind=card["kind"],
        classes=tuple(card["classes"]),
        adjustment=Adjustment.from_json(card["adjustment"]),
        device=device,
    )


def _read_card(directory: Path) -> dict[str, Any]:
    try:
        card: dict[str, Any] = json.loads((directory / CARD).read_text(encoding="utf-8"))
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
    return card


def _members(
    family: dict[str, Any], tensors: dict[str, Tensor], backbone: Backbone, host: PluginHost, n_outputs: int
) -> list[Member]:
    """A family's members, around frozen groups that are built once."""
    shape = tuple(family["input_shape"])
    # Random weights: all that is needed is in the file, so the published ones need not be installed.
    trunk, frozen = frozen_groups(backbone, shape, random_seed=0), _under(tensors, "frozen")
    members = []
    for place, facts in enumerate(family["members"]):
        spec, state = spec_from_json(facts["spec"]), _under(tensors, place)
        check_plan(spec.plan, backbone.layer_groups, max_epochs=spec.max_epochs, owner=f"strategy {spec.strategy!r}")
        own = trunk if only_head_trains(spec) else frozen_groups(backbone, shape, random_seed=0)
        names = [group.group for group in kept(spec.plan)]
        groups = {name: (own if depth >= cut(spec.plan) else trunk)[name] for depth, name in enumerate(names)}
        width = len(state["feature_shift"])
        head = assemble_head(spec, host.head(spec.head), in_features=width, n_outputs=n_outputs, seed=0).head
        model = TransferModel(nn.ModuleDict(groups), head, spec, width)
        mine = model.state_dict().keys()
        model.load_state_dict({key: tensor for key, tensor in frozen.items() if key in mine} | state)
        members.append(Member(model=model, weight=facts["weight"]))
    return members


def _under(tensors: Mapping[str, Tensor], name: str | int) -> dict[str, Tensor]:
    """The tensors whose names begin so, by the rest of their names."""
    start = f"{name}."
    return {key.removeprefix(start): tensor for key, tensor in tensors.items() if key.startswith(start)}


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Say in one sentence what kept `path` from being written."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise RunError(f"cannot write {path}: {reason}; choose another place with --run-dir") from None
