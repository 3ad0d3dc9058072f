"""AutoGluon MultiModal, preset medium_quality, on the same weights, in an interpreter of its own that has AutoGluon.

    python -m venv autogluon
    printf 'torch==2.13.0\\ntorchvision==0.28.0\\n' > constraints-autogluon.txt
    autogluon/bin/pip install autogluon-multimodal==1.6.3 -c constraints-autogluon.txt

Without a GPU it also needs benchmarks/rivals/cpu_torchvision on PYTHONPATH, see there. Nothing is downloaded: a folder
stands for timm's or Hugging Face's checkpoint. EfficientNet-Lite0 is the architecture that timm calls
tf_efficientnet_lite0, with the same tensors in the same order under other names. It makes its own validation split.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

ARCHITECTURE = "tf_efficientnet_lite0"
LONGEST = 128  # tokens, as in good_recipe.py: with more, a budget of minutes is over before an epoch is


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", type=Path)
    parser.add_argument("--weights", type=Path, required=True, help="the backbone's file of weights")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--budget", type=float, default=300.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--began", type=float, default=time.time())
    parser.add_argument("--predictions", type=Path)
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    images = (options.task / "train").is_dir()
    train, test = (read_part(options.task, part, images) for part in ("train", "test"))
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        if images:
            model = image_model(
                timm_folder(options.weights, options.image_size, directory / "lite0"), options.image_size
            )
        else:
            model = text_model(options.weights.parent)
        from autogluon.multimodal import MultiModalPredictor  # type: ignore[import-not-found, import-untyped, unused-ignore]

        predictor = MultiModalPredictor(
            label="label", eval_metric="f1_macro", presets="medium_quality", path=str(directory / "run"), verbosity=1
        )
        left = max(1.0, options.budget - (time.time() - options.began))
        predictor.fit(train, time_limit=left, hyperparameters=model | on_this_machine(), seed=options.seed)
        seconds = time.time() - options.began
        predicted = [str(name) for name in predictor.predict(test.drop(columns="label"))]
    if options.predictions:
        options.predictions.write_text(json.dumps(predicted) + "\n")
    points = [(round(seconds, 2), round(macro_f1(test["label"].to_numpy(), np.array(predicted)), 5))]
    ended = seconds < 0.9 * options.budget
    print(json.dumps({"points": points, "seconds": round(seconds, 2), "ended_by_itself": ended}), flush=True)


def read_part(task: Path, part: str, images: bool) -> pd.DataFrame:
    """Columns image or text, and label; rows in the order in which automl_tl reads them."""
    if not images:
        return pd.read_csv(task / f"{part}.csv", dtype=str, keep_default_na=False)
    files = sorted((task / part).rglob("*.png"))
    return pd.DataFrame({"image": [str(file) for file in files], "label": [file.parent.name for file in files]})


def image_model(folder: Path, size: int) -> dict[str, Any]:
    return {
        "model.names": ["timm_image"],
        "model.timm_image.checkpoint_name": str(folder),
        "model.timm_image.image_size": size,
        "model.timm_image.image_norm": "inception",
    }


def text_model(folder: Path) -> dict[str, Any]:
    return {
        "model.names": ["hf_text"],
        "model.hf_text.checkpoint_name": str(folder),
        "model.hf_text.max_text_len": LONGEST,
        "model.hf_text.pooling_mode": "mean",
    }


def on_this_machine() -> dict[str, Any]:
    """No GPU, and no processes for reading: they would only take cores from training."""
    return {
        "env.num_gpus": 0,
        "env.num_workers": 0,
        "env.num_workers_inference": 0,
        "env.precision": "32",
        "env.per_gpu_batch_size": 32,
        "env.batch_size": 32,
    }


def timm_folder(weights: Path, size: int, folder: Path) -> Path:
    """A checkpoint as timm reads it from a folder, without the classifier."""
    import timm  # type: ignore[import-not-found, import-untyped, unused-ignore]
    import torch

    network = timm.create_model(ARCHITECTURE, pretrained=False)
    names = list(network.state_dict())
    tensors = list(torch.load(weights, map_location="cpu", weights_only=True).values())
    state = dict(zip(names, tensors, strict=True))
    network.load_state_dict(state, strict=True)
    folder.mkdir(parents=True)
    kept = {name: value for name, value in state.items() if not name.startswith("classifier")}
    torch.save(kept, folder / "pytorch_model.bin")
    published = network.default_cfg
    config = {
        "architecture": ARCHITECTURE,
        "num_features": network.num_features,
        "input_size": [3, size, size],
        "mean": published["mean"],
        "std": published["std"],
        "crop_pct": published["crop_pct"],
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def macro_f1(labels: np.ndarray, predicted: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predicted, average="macro", zero_division=0))


if __name__ == "__main__":
    main()
