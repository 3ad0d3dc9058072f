"""Before the first step: the scale of what the head reads, and a head that starts from a probe's solution."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from automl_tl.errors import TrialError
from automl_tl.model.assemble import TransferModel
from automl_tl.training.batches import evaluation_batches
from automl_tl.training.data import Labelled, LinearStart
from automl_tl.training.precision import Precision, laid_out, running

SCALE_ROWS = 256  # rows from which the scale of the features is taken


@torch.no_grad()
def fit_feature_scale(
    model: TransferModel,
    train: Labelled,
    device: str,
    generator: np.random.Generator,
    *,
    at_once: int,
    precision: Precision = "channels_last",
) -> None:
    """Center and scale what the head reads by `SCALE_ROWS` training rows drawn by `generator`."""
    indices = np.sort(generator.permutation(len(train.labels))[:SCALE_ROWS])
    lengths = None if train.rows.lengths is None else train.rows.lengths[indices]
    model.eval()
    parts = []
    for some in evaluation_batches(len(indices), at_once, lengths):
        part = indices[some]
        with running(precision, device):
            parts.append(model.features(laid_out(train.rows.batch(part, device), precision), train.start).float())
    model.set_feature_scale(torch.cat(parts))


@torch.no_grad()
def start_head(model: TransferModel, start: LinearStart) -> None:
    """Let the head say of the scaled features what `start` says of the features themselves.

    Fine-tuning that starts from the probe's solution distorts the transferred features less: Kumar et al. ("LP-FT"),
    ICLR 2022.

    Raises TrialError when the head is not a linear layer that it fits.
    """
    head, spec = model.head, model.spec
    if not isinstance(head, nn.Linear) or head.bias is None:
        raise TrialError(
            f"head {spec.head!r} cannot start from a probe: expected one nn.Linear with a bias, got "
            f"{type(head).__name__}; use init_head='random' with this head"
        )
    expected = (head.in_features, head.out_features)
    if start.weight.shape != expected or start.bias.shape != expected[1:]:
        raise TrialError(
            f"head {spec.head!r} cannot start from a probe of shape {start.weight.shape}: expected {expected}, one row "
            f"a feature and one column a class; fit the probe on the features that the head reads"
        )
    # features = scaled * scale + shift, multiplied out in double precision.
    scale, shift = model.feature_scale.double(), model.feature_shift.double()
    weight, bias = _double(start.weight, scale), _double(start.bias, scale)
    head.weight.copy_((scale * weight).T)
    head.bias.copy_(bias + shift @ weight)


def _double(values: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float64)).to(like.device)
