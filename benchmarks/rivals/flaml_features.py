"""FLAML (gradient boosting, forests, logistic regression; cost-frugal search) on features of the frozen backbone.

Features are computed here, on the clock; the search runs in an interpreter that has FLAML (`--python`), made by
`python -m venv flaml && flaml/bin/pip install flaml==2.7.0 lightgbm xgboost-cpu scikit-learn pandas`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from rivals.curve import Clock, macro_f1
from rivals.frozen_linear import frozen_features
from rivals.reading import parser_of, read_task, use_all_cores

PROGRAM = Path(__file__).with_name("flaml_fit.py")


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--python", default=sys.executable, help="an interpreter that has FLAML")
    options = parser.parse_args()
    use_all_cores(options.seed)
    clock = Clock(options.began, options.budget)
    task = read_task(options.task, options.backbone)
    train, test = frozen_features(task, clock)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        np.savez(directory / "features.npz", train=train, labels=task.train.labels, test=test)
        before = clock.seconds()
        left = max(1.0, options.budget - before)
        command = [options.python, str(PROGRAM), str(directory), "--seconds", str(left), "--seed", str(options.seed)]
        subprocess.run(command, check=True, stdout=sys.stderr)
        found = json.loads((directory / "found.json").read_text())
    points = [
        (round(before + at, 2), round(macro_f1(task.test.labels, np.array(said)), 5))
        for at, said in found["incumbents"]
    ]
    if options.predictions:
        options.predictions.write_text(json.dumps([task.classes[k] for k in found["incumbents"][-1][1]]) + "\n")
    print(json.dumps({"points": points, "seconds": round(before + found["seconds"], 2), "best": found["best"]}))


if __name__ == "__main__":
    main()
