"""Several taps read by one linear probe: their features side by side, each tap weighing the same.

After Head2Toe (Evci et al., ICML 2022). Notation: N samples, D columns of all taps together, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from automl_tl.metrics.scores import Kind
from automl_tl.probes.centering import Features, center
from automl_tl.probes.fit import ProbeFit
from automl_tl.probes.logistic import fit_logistic
from automl_tl.probes.ridge import fit_ridge

if TYPE_CHECKING:
    from automl_tl.model.spec import ClassWeight

Method = Literal["ridge", "logistic"]


@dataclass(frozen=True, slots=True)
class Joined:
    """Taps side by side, each column times its factor; rows are put together when they are read."""

    blocks: Sequence[Features]
    factors: np.ndarray  # (D,)

    @property
    def shape(self) -> tuple[int, ...]:
        """N and D."""
        return self.blocks[0].shape[0], len(self.factors)

    def __getitem__(self, rows: Any) -> np.ndarray:
        side_by_side: np.ndarray = np.concatenate([block[rows] for block in self.blocks], axis=1)
        return np.asarray(side_by_side * self.factors)


def join_taps(blocks: Sequence[Features]) -> np.ndarray:
    """Factors (D,) of the columns: one over the root mean squared norm of a tap's centered features.

    So every tap has the same total variance and none drowns the others, neither by the size of its activations nor by
    how many it has. A weight for scaled columns, times these factors, is the weight for raw ones.

    Args:
        blocks: features (N, d_i) of the taps.
    """
    return np.concatenate([np.full(block.shape[1], 1 / center(block).scale) for block in blocks])


def fit_joined(
    blocks: Sequence[Features],
    labels: np.ndarray,
    kind: Kind,
    n_outputs: int,
    *,
    method: Method = "ridge",
    metric: str = "f1_macro",
    class_weight: ClassWeight = "none",
    groups: np.ndarray | None = None,
) -> ProbeFit:
    """A probe of the taps' raw features side by side: weight (D, K), factors folded in.

    Args:
        blocks: features (N, d_i) of the taps, in the order of their columns.
        labels: (N,) int64 classes, or (N, K) 0/1 for several labels a sample.
        kind: one label a sample or several.
        n_outputs: K.
        method: `logistic` starts from the ridge fit.
        metric: decides between strengths; see `metrics.scores.f1`.
        class_weight: see `fit_ridge` and `fit_logistic`.
        groups: (N,) integers; samples of one group are left out together, but for a single group of all.

    Raises:
        DataError: fewer than two samples, or features that are not finite.
    """
    joined = Joined(blocks, join_taps(blocks))
    fit = fit_ridge(joined, labels, kind, n_outputs, metric=metric, class_weight=class_weight, groups=groups)
    if method == "logistic":
        fit = fit_logistic(
            joined, labels, kind, n_outputs, metric=metric, class_weight=class_weight, groups=groups, start=fit
        )
    return replace(fit, weight=(fit.weight * joined.factors[:, None]).astype(np.float32))
