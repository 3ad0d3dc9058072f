"""The floor: features of the frozen backbone and a cross-validated linear head, scikit-learn's own.

What anybody has in seconds; a search that ends below it was a waste of time. For a table: its standardized columns.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegressionCV, RidgeClassifierCV
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits  # type: ignore[import-not-found, import-untyped, unused-ignore]

from automl_tl.features.rows import Rows
from rivals.curve import Clock, Curve
from rivals.network import EVALUATED, features
from rivals.reading import Task, build_stages, parser_of, read_task, use_all_cores


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--head", choices=["logistic", "ridge"], required=True)
    options = parser.parse_args()
    use_all_cores(options.seed)
    warnings.filterwarnings("ignore")  # of a class with fewer samples than folds
    clock = Clock(options.began, options.budget)
    task = read_task(options.task, options.backbone)
    train, test = frozen_features(task, clock)
    model = logistic(options.seed) if options.head == "logistic" else ridge()
    with threadpool_limits(1):  # a second thread takes longer on matrices so small, and many times on a busy machine
        model.fit(train, task.train.labels)
    curve = Curve(clock, task.test.labels)
    curve.add(lambda: np.asarray(model.predict(test)))
    curve.finish(task.classes, options.predictions, facts={})


def frozen_features(task: Task, clock: Clock) -> tuple[np.ndarray, np.ndarray]:
    """Mean-pooled outputs of the last stage for training and test samples, (N, D); the latter outside the clock."""
    stages = torch.nn.ModuleList() if task.backbone.input.modality == "tabular" else build_stages(task)
    train = passed(stages.eval(), task.train.rows)
    with clock.stopped():
        return train, passed(stages, task.test.rows)


def passed(stages: torch.nn.ModuleList, rows: Rows) -> np.ndarray:
    order = np.arange(len(rows)) if rows.lengths is None else np.argsort(rows.lengths, kind="stable")
    found: np.ndarray | None = None
    with torch.inference_mode():
        for start in range(0, len(order), EVALUATED):
            batch = order[start : start + EVALUATED]
            output = features(stages, rows.batch(batch, "cpu")).float().numpy()
            if found is None:
                found = np.empty((len(rows), output.shape[1]), dtype=np.float32)
            found[batch] = output
    assert found is not None
    return found


def logistic(seed: int) -> Any:
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    head = LogisticRegressionCV(Cs=np.logspace(-4, 2, 7), cv=folds, scoring="f1_macro", max_iter=300, tol=1e-3)
    return make_pipeline(StandardScaler(), head)


def ridge() -> Any:
    """Leave-one-out, in closed form."""
    return make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=np.logspace(-1, 5, 13)))


if __name__ == "__main__":
    main()
