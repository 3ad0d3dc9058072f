"""Early stopping, by rows that are carved from the training rows and that neither training nor selection looks at.

Prechelt, "Early Stopping, but When?", 1998. To stop and to select by the same rows would flatter what is selected.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from automl_tl.data.folds import holdout
from automl_tl.errors import DataError
from automl_tl.model.assemble import TransferModel

STOPPING_ROWS = 1000  # training rows, below which none can be spared
SHARE = 0.1  # of the training rows


@dataclass(slots=True, kw_only=True)
class Patience:
    """Counts the epochs in a row in which the log loss of the stopping rows has not fallen."""

    epochs: int  # after so many the training stops; 0: never
    min_delta: float = 0.0  # a fall of no more than this is none
    waits_from: int = 0  # epoch, from 0, before which no epoch counts as waited for in vain
    lowest: float = float("inf")
    waited: int = 0

    def note(self, epoch: int, loss: float) -> None:
        """Take down the loss after an epoch."""
        if loss < self.lowest - self.min_delta:
            self.lowest, self.waited = loss, 0
        elif epoch >= self.waits_from:
            self.waited += 1

    @property
    def is_exhausted(self) -> bool:
        """Whether it has been waited long enough."""
        return 0 < self.epochs <= self.waited


def stopping_rows(
    labels: np.ndarray, *, seed: int, multilabel: bool, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray] | None:
    """Which of the training rows to train on and which to stop by: sorted indices (kept, held out), or None.

    A stratified tenth is held out; rows of one of the `groups` (N,) stay together, but for a single group of all. None
    where the rows are too few to spare any, or a class has too few.
    """
    if len(labels) < STOPPING_ROWS:
        return None
    try:
        return holdout(labels, fraction=SHARE, seed=seed, groups=groups, multilabel=multilabel)
    except DataError:
        return None


def last_unfreezing(model: TransferModel) -> int:
    """The first epoch in which all layer groups train that ever do."""
    return max((plan.unfreeze_epoch for plan in model.plans if plan.action != "freeze"), default=0)
