"""How soon is there a model to deploy, and does a second run pass anything again?

`automl-tl search` is started as a user starts it, with an empty cache, and watched until the first trial has left its
model. Beside it: one bare forward pass of the same samples through the same backbone, with all threads. Then the same
command runs again on the same cache, and counts the samples that pass frozen layer groups. Close other programs first.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from results import circumstances, keep
from tasks import Drawn, draw

from automl_tl.config import DataConfig
from automl_tl.data import load_task
from automl_tl.features.samples import InputFormat, image_size_for, rows_in_memory
from automl_tl.host import load_host
from automl_tl.model.assemble import frozen_groups
from automl_tl.plugin import ImageInput

TASKS = {"mnist": "efficientnet_lite0", "r8": "minilm_l6"}
COMMAND = [sys.executable, "-m", "automl_tl", "search"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument(
        "--samples", type=int, default=1000, help="of the training split, validation samples among them"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--slots", default=str(os.cpu_count()))
    options = parser.parse_args()
    about = circumstances()
    rows: list[list[str]] = []
    facts: dict[str, Any] = {"circumstances": about, "options": vars(options), "tasks": {}}
    for name in options.tasks:
        with tempfile.TemporaryDirectory() as directory:
            data = write(name, draw(name, options.samples, 200), Path(directory))
            found = [
                measure(data, TASKS[name], options.slots, Path(directory) / str(n)) for n in range(options.repeats)
            ]
        facts["tasks"][name] = found
        middle = {key: median(each[key] for each in found) for key in ("bare_pass", "imports", "first_model")}
        over = median(each["first_model"] - 1.3 * each["bare_pass"] for each in found)
        beyond = median(each["first_model"] - each["imports"] - 1.3 * each["bare_pass"] for each in found)
        rows.append(
            [
                f"{name}, {TASKS[name]}",
                f"{middle['bare_pass']:.2f}",
                f"{middle['first_model']:.2f}",
                f"{over:.2f}",
                f"{middle['imports']:.2f}",
                f"{beyond:.2f}",
                ", ".join(f"{each['rows_passed_again']:.0f}" for each in found),
            ]
        )
        print(*rows[-1], flush=True)
    header = ["task, backbone", "bare pass (s)", "first model (s)", "beyond 1.3 passes (s)", "imports alone (s)"]
    header.append("beyond both (s)")
    keep(
        "first_model",
        [*header, "rows passed by a second run"],
        rows,
        facts,
        f"{options.samples} training samples, medians of {options.repeats}. From the start of the process, importing "
        "Python packages included; `imports alone` is a process that does nothing else.",
    )


def measure(data: Path, backbone: str, slots: str, directory: Path) -> dict[str, float]:
    """One fresh run and a second one on the same cache; seconds, and rows that the second one passed."""
    directory.mkdir()
    environment = {**os.environ, "AUTOML_TL_CACHE": str(directory / "cache")}
    options = ["--trials", "1", "--slots", slots, "--set", f"backbones={backbone}"]
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import automl_tl.api"], check=True)
    imports = time.perf_counter() - began
    first = until_first_model([*COMMAND, str(data), *options, "--run-dir", str(directory / "first")], environment)
    again = directory / "again"
    subprocess.run(
        [*COMMAND, str(data), *options, "--run-dir", str(again)], env=environment, check=True, stdout=subprocess.DEVNULL
    )
    result = json.loads((again / "result.json").read_text())
    return {
        "bare_pass": bare_pass(data, backbone),
        "imports": imports,
        "first_model": first,
        "rows_passed_again": float(result["store"]["rows_passed"]),
    }


def until_first_model(command: list[str], environment: dict[str, str]) -> float:
    """Seconds from the start of the process until a trial's model lies in the run directory."""
    trials = Path(command[-1]) / "trials"
    began = time.perf_counter()
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        while not list(trials.glob("*/model.safetensors")):
            if process.poll() is not None:
                raise SystemExit(f"the search ended with {process.returncode} and left no model: {' '.join(command)}")
            time.sleep(0.005)
        seconds = time.perf_counter() - began
        process.wait()
    return seconds


def bare_pass(data: Path, name: str) -> float:
    """Seconds of a forward pass of the training and validation samples, prepared already; the best of three."""
    torch.set_num_threads(os.cpu_count() or 1)
    backbone = load_host().backbone(name)
    task = load_task(DataConfig(path=str(data)), seed=0)
    layout = InputFormat()
    if isinstance(backbone.input, ImageInput):
        layout = InputFormat(size=image_size_for(backbone, 28, None))
    parts = [rows_in_memory(split.samples, backbone, layout) for split in (task.train, task.validation)]
    groups = list(frozen_groups(backbone, layout.input_shape(backbone)).values())
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        with torch.inference_mode():
            for rows in parts:
                order = np.arange(len(rows)) if rows.lengths is None else np.argsort(rows.lengths, kind="stable")
                for start in range(0, len(rows), 64):
                    activation = rows.batch(order[start : start + 64], "cpu")
                    for group in groups:
                        activation = group(activation)
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def write(name: str, drawn: Drawn, directory: Path) -> Path:
    """The task as a user has it: a folder of pictures, or two CSV files."""
    root = directory / name
    parts = (("train", drawn.x, drawn.y), ("test", drawn.x_test, drawn.y_test))
    for part, x, y in parts:
        if x.ndim == 1:
            root.mkdir(exist_ok=True)
            pd.DataFrame({"text": x, "label": y}).to_csv(root / f"{part}.csv", index=False)
            continue
        for index, (image, label) in enumerate(zip(x, y, strict=True)):
            folder = root / part / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{index}.png")
    return root


if __name__ == "__main__":
    main()
