"""FLAML's part of `flaml_features.py`, for an interpreter that has FLAML and nothing of ours.

Reads DIRECTORY/features.npz, searches, and writes DIRECTORY/found.json: classes of the test samples as said by every
incumbent of the search, each trained again on all training samples, with the second at which it was found.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path

import numpy as np

TASK = "classification"
LEARNERS = ["lgbm", "xgboost", "xgb_limitdepth", "rf", "extra_tree", "lrl1"]  # CatBoost overran a budget by 95 s
SHORT_LIVED = 0.02  # of the budget: incumbents replaced so soon are not trained again


def main() -> None:
    began = time.time()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    from flaml import AutoML  # type: ignore[import-not-found, import-untyped, unused-ignore]

    data = np.load(options.directory / "features.npz")
    x, y, test = data["train"], data["labels"], data["test"]
    log = options.directory / "flaml.log"
    started = time.time() - began  # importing takes seconds, too
    model = AutoML()
    model.fit(
        x,
        y,
        task=TASK,
        metric="macro_f1",
        time_budget=max(1.0, options.seconds - started),
        estimator_list=LEARNERS,
        seed=options.seed,
        n_jobs=-1,
        log_file_name=str(log),
        verbose=0,
    )
    seconds = time.time() - began
    incumbents = []
    found = times_of_incumbents(log)
    for at, until in zip(found, [*found[1:], seconds], strict=True):
        if until - at >= SHORT_LIVED * options.seconds and at < found[-1]:
            again = AutoML()
            again.retrain_from_log(str(log), X_train=x, y_train=y, task=TASK, train_full=True, time_budget=at + 1e-3)
            incumbents.append((started + at, again.predict(test).tolist()))
    last = found[-1] if found else 0.0
    if model.best_estimator is not None:
        incumbents.append((started + last, model.predict(test).tolist()))
    answer = {"incumbents": incumbents, "seconds": seconds, "best": model.best_estimator}
    (options.directory / "found.json").write_text(json.dumps(answer))


def times_of_incumbents(log: Path) -> list[float]:
    """Seconds of the search at which a better configuration was found."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [line["wall_clock_time"] for line in lines if "wall_clock_time" in line]


if __name__ == "__main__":
    main()
