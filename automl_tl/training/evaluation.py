"""What a model says of rows, and how likely it finds their labels; no augmentation, no dropout, no gradients."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from automl_tl.features.rows import Rows
from automl_tl.metrics.scores import Kind, log_loss
from automl_tl.model.assemble import TransferModel
from automl_tl.training.batches import evaluation_batches
from automl_tl.training.data import Labelled
from automl_tl.training.losses import probabilities
from automl_tl.training.precision import Precision, laid_out, running

EVALUATION_BATCH = 128


def predict_probabilities(
    model: TransferModel,
    data: Labelled | Rows,
    kind: Kind,
    device: str,
    *,
    precision: Precision = "channels_last",
    tick: Callable[[int], None] = lambda done: None,
) -> np.ndarray:
    """Probabilities (N, K), float32, in the order of the rows. `tick(done)`: progress."""
    labelled = data if isinstance(data, Labelled) else Labelled(rows=data, labels=np.empty(0))
    logits = all_logits(model, labelled, device=device, precision=precision, tick=tick)
    return probabilities(logits, kind).cpu().numpy()


def judge(logits: Tensor, labels: np.ndarray, kind: Kind) -> tuple[np.ndarray, float]:
    """Probabilities (N, K) and the log loss of the labels, which is infinite where a logit is not finite."""
    said = probabilities(logits, kind).cpu().numpy()
    return said, log_loss(labels, said) if bool(logits.isfinite().all()) else float("inf")


@torch.no_grad()
def all_logits(
    model: TransferModel,
    data: Labelled,
    *,
    device: str,
    precision: Precision,
    at_once: int | None = None,
    tick: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """Logits (N, K) in the order of the rows, of which `at_once` go through the model together."""
    model.eval()
    logits: Tensor | None = None
    done = 0
    for indices in evaluation_batches(len(data.rows), at_once or EVALUATION_BATCH, data.rows.lengths):
        with running(precision, device):
            part = model(laid_out(data.rows.batch(indices, device), precision), data.start).float()
        if logits is None:
            logits = part.new_empty(len(data.rows), part.shape[1])
        logits[torch.from_numpy(indices)] = part
        done += len(indices)
        tick(done)
    assert logits is not None
    return logits
