from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from sklearn.datasets import load_digits, load_wine
from torch import Tensor, nn

from automl_tl.model.assemble import Interface, TransferModel, assemble
from automl_tl.model.checkpoint import save_tensors
from automl_tl.model.plan import PARTS
from automl_tl.model.spec import TrialSpec
from automl_tl.plugin import Backbone, GroupPlan, Head, TransferPlan
from automl_tl_builtins.backbones import source_cnn, source_mlp
from automl_tl_builtins.heads import linear

EPOCHS = 3


@dataclass(frozen=True, kw_only=True, repr=False)
class Subject:
    """A backbone with source weights that are far from any initialization, and a batch of a real task for it."""

    backbone: Backbone
    head: Head
    interface: Interface
    batch: Tensor
    labels: Tensor
    source: Path

    def model(self, spec: TrialSpec, *, seed: int = 0, source: bool = True) -> TransferModel:
        weights = self.source if source and spec.weights == "transferred" else None
        return assemble(spec, self.backbone, self.head, self.interface, source_weights=weights, seed=seed)

    def plan(self, action: str) -> TransferPlan:
        """The same action for every group."""
        return TransferPlan(tuple(GroupPlan(group=name, action=action) for name in self.backbone.layer_groups))

    def step(self, model: TransferModel, optimizer: torch.optim.Optimizer) -> None:
        """One step of training in the state that the model is in."""
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(self.batch), self.labels).backward()
        optimizer.step()


@pytest.fixture(scope="session")
def subjects(tmp_path_factory):
    """Return the subjects by the name of their backbone: digits for the images, wine for the table."""
    images, digits = load_digits(return_X_y=True)
    pixels = torch.from_numpy(images[:12]).float().view(-1, 1, 8, 8) / 8 - 1
    pixels = nn.functional.interpolate(pixels, size=(16, 16), mode="bilinear").repeat(1, 3, 1, 1)
    rows, wines = load_wine(return_X_y=True)
    table = torch.from_numpy((rows - rows.mean(0)) / rows.std(0)).float()[::15]
    folder = tmp_path_factory.mktemp("sources")
    (head,) = linear.automl_tl_heads()
    found = {}
    for module, batch, labels in ((source_cnn, pixels, digits[:12]), (source_mlp, table, wines[::15])):
        (backbone,) = module.automl_tl_backbones()
        found[backbone.name] = Subject(
            backbone=backbone,
            head=head,
            interface=Interface(input_shape=tuple(batch.shape[1:]), n_outputs=int(labels.max()) + 1),
            batch=batch,
            labels=torch.from_numpy(np.asarray(labels)),
            source=_source_checkpoint(backbone, tuple(batch.shape[1:]), folder / f"{backbone.name}.safetensors"),
        )
    return found


def _source_checkpoint(backbone: Backbone, input_shape: tuple[int, ...], path: Path) -> Path:
    generator = torch.Generator().manual_seed(7)
    state = backbone.build(input_shape=input_shape, weights=None).state_dict()
    for tensor in state.values():
        if tensor.is_floating_point():
            tensor.add_(0.05 * torch.rand(tensor.shape, generator=generator) - 0.025)
    save_tensors({f"groups.{name}": tensor for name, tensor in state.items()}, path)
    return path


@pytest.fixture(scope="session")
def cnn(subjects):
    return subjects["source_cnn"]


@pytest.fixture(scope="session")
def mlp(subjects):
    return subjects["source_mlp"]


@pytest.fixture(scope="session")
def plans():
    """Return the strategy that draws any valid plan for these layer groups."""

    @st.composite
    def draw_plan(draw, groups, max_epochs=EPOCHS):
        n_kept = draw(st.integers(1, len(groups)))
        chosen = [draw(_group_plan(name, max_epochs)) for name in groups[:n_kept]]
        return TransferPlan((*chosen, *(GroupPlan(group=name, action="drop") for name in groups[n_kept:])))

    return draw_plan


@st.composite
def _group_plan(draw, name, max_epochs):
    action = draw(st.sampled_from(("freeze", "tune", "reinit")))
    return GroupPlan(
        group=name,
        action=action,
        unfreeze_epoch=draw(st.integers(0, max_epochs - 1)),
        lr_scale=draw(st.sampled_from((0.1, 1.0, 2.6))),
        part=draw(st.sampled_from(PARTS)) if action == "tune" else "all",
    )
