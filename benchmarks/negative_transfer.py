"""Is a bad source task told from a good one? Each case is a short search with a source task, as a user runs it.

Kinds of sources, the target task being the last half of the classes with few samples of each:

- good        other samples of the same classes
- shuffled    the samples of the good one, their labels permuted: there is nothing to learn
- far         inputs of the same shape that are of something else. Images: white noise, its classes are contrasts
              (even seeds), or garments whose pixels were permuted, all in the same way (odd seeds). Tables: another
              table (`ring`, `spambase`), randomly projected to as many columns, each scaled like the target's
- neighbors   the first half of the classes. Nobody knows beforehand whether it helps: shown, but not counted

Two verdicts of each run are counted. That of the source (`finish/source_verdict.py`) holds the source's network, whole
and frozen, against the same without the source task; it warns unless it surely helps. That of the result holds the
model that was found against the one of the same search from random weights; a search that leaves a bad source's layers
aside has lost nothing by it. The rule was chosen by looking at the tasks of CHOSEN_ON and is rated on the others.

Every finished case is a line in WORK/cells.jsonl: stop whenever you like, the same command goes on. Not timed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from results import circumstances, keep
from tasks import digits, emoji, fashion, keel, mnist, pen_digits, pen_digits_source

from automl_tl.api import search
from automl_tl.engine.spread import Crew
from automl_tl.search.crew import open_crew

Kind = Literal["good", "shuffled", "far", "neighbors"]
Arrays = tuple[np.ndarray, np.ndarray]
COUNTED: tuple[Kind, ...] = ("good", "shuffled", "far")
PER_CLASS = (10, 25)  # samples of each class to learn the target task from, by turns
MOST_TEST = 1000
SOURCE_SHARE = 0.6  # of the samples of the target's classes that the good source has
SEARCH = {"trials": 4, "seconds": 20, "max_epochs": 6}
JUDGEMENTS = ("positive", "inconclusive", "negative transfer")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where samples come from, and the network that goes from source to target."""

    load: Callable[[], Arrays]
    backbone: str
    most_source: int  # samples
    epochs: int  # of the source training
    pixels: int | None = None  # a side at which the network sees images; None: these are tables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a directory for data, runs and finished cases")
    parser.add_argument("--tasks", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--kinds", nargs="+", default=list(get_args(Kind)), choices=get_args(Kind))
    parser.add_argument("--seeds", nargs="+", type=int, default=[10, 11])
    parser.add_argument("--report-only", action="store_true", help="run nothing, report the finished cases")
    options = parser.parse_args()
    words = ["WORK" if word == str(options.work) else word for word in sys.argv[1:] if word != "--report-only"]
    about = circumstances() | {"command": shlex.join(["python", "benchmarks/negative_transfer.py", *words])}
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    cases = [Case(*each) for each in itertools.product(options.tasks, options.kinds, options.seeds)]
    if not options.report_only:
        run_all(cases, work)
    finished = read_cells(work)
    report([finished[case.name()] for case in cases if case.name() in finished], about)


@dataclass(frozen=True)
class Case:
    """One run."""

    task: str
    kind: Kind
    seed: int

    def name(self) -> str:
        return f"{self.task}-{self.kind}-{self.seed}"


def run_all(cases: Sequence[Case], work: Path) -> None:
    """Every case that is not finished, one at a time, with a store of features of their own."""
    os.environ["AUTOML_TL_CACHE"] = str(work / "cache")
    with open_crew("cpu") as crew:
        for number, case in enumerate(cases, start=1):
            if case.name() in read_cells(work):
                continue
            began = time.time()
            found = run(case, work, crew)
            with (work / "cells.jsonl").open("a") as file:
                file.write(json.dumps(found) + "\n")
            gain, (low, high) = found["source"]["gain"], found["source"]["interval"]
            said = f"{gain:+.3f} [{low:+.3f}, {high:+.3f}]: {found['source']['verdict']}"
            print(f"{number}/{len(cases)} {case.name()}: {said}, {time.time() - began:.0f} s", flush=True)


def run(case: Case, work: Path, crew: Crew) -> dict[str, Any]:
    """One search; what it says of its source."""
    setting, directory = SETTINGS[case.task], work / "runs" / case.name()
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    drawn = draw_case(case)
    np.savez(directory / "source.npz", x=drawn.source[0], y=drawn.source[1])
    parts = {f"{axis}_{part}": getattr(drawn, part)[n] for part in ("train", "test") for n, axis in enumerate("xy")}
    np.savez(directory / "target.npz", **parts)
    size = {} if setting.pixels is None else {"image_size": setting.pixels}
    result = search(
        {
            "source": {
                "data": {"path": str(directory / "source.npz"), **size},
                "backbone": setting.backbone,
                "epochs": setting.epochs,
            },
            "data": {"path": str(directory / "target.npz"), **size},
            "backbones": setting.backbone,
            "search": SEARCH,
            "seed": case.seed,
            "run_dir": str(directory / "run"),
        },
        crew=crew,
    ).result
    shutil.rmtree(directory)
    over = ("gain_f1_macro", "gain_f1_macro_ci95", "verdict")
    return {
        **asdict(case),
        "far": drawn.far,
        "backbone": setting.backbone,
        "n_source": result["source"]["n_train"],
        "n_target": len(drawn.train[1]),
        "n_test": len(drawn.test[1]),
        "source_f1": result["source"]["f1_macro"],
        "source": result["source"]["verdict"],
        "result": dict(zip(("gain", "interval", "verdict"), (result["transfer"][key] for key in over), strict=True)),
        "transfer_gain": {key: result["transfer_gain"][key] for key in ("rival", "gain", "interval", "verdict")},
        "seconds": result["seconds"]["total"],
    }


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """The samples of one case."""

    source: Arrays
    train: Arrays
    test: Arrays
    far: str | None  # what a far source is of


def draw_case(case: Case) -> Drawn:
    """The target samples depend on task and seed only; those of the source on the kind, too."""
    setting, generator = SETTINGS[case.task], np.random.default_rng(case.seed)
    x, y = setting.load()
    classes = sorted(set(y.tolist()), key=lambda name: (len(name), name))
    is_target = np.isin(y, classes[len(classes) // 2 :])
    order = generator.permutation(np.flatnonzero(is_target))
    cut = int(SOURCE_SHARE * len(order))
    rest = order[cut:]
    learned = np.concatenate(
        [rest[y[rest] == name][: PER_CLASS[case.seed % 2]] for name in classes[len(classes) // 2 :]]
    )
    tested = np.setdiff1d(rest, learned)
    tested = generator.permutation(tested)[:MOST_TEST]
    chosen, far = order[:cut], None
    if case.kind == "neighbors":
        chosen = generator.permutation(np.flatnonzero(~is_target))
    chosen = chosen[: setting.most_source]
    source = x[chosen], y[chosen]
    if case.kind == "shuffled":
        source = source[0], generator.permutation(source[1])
    elif case.kind == "far":
        n_classes = len(classes) - len(classes) // 2
        far, source = far_source(source[0], n_classes, case.seed, generator, images=setting.pixels is not None)
    return Drawn(source=source, train=(x[learned], y[learned]), test=(x[tested], y[tested]), far=far)


def far_source(
    like: np.ndarray, n_classes: int, seed: int, generator: np.random.Generator, *, images: bool
) -> tuple[str, Arrays]:
    """As many samples of the same shape that are of something else, and what they are of."""
    if not images:
        name = ("ring", "spambase")[seed % 2]
        return f"{name}, projected", _projected(keel(name), like, generator)
    if seed % 2 == 0:
        labels = generator.integers(0, n_classes, len(like))
        height = ((labels + 1) / n_classes * 127).reshape(-1, *[1] * (like.ndim - 1))
        noise = 128 + height * generator.uniform(-1, 1, like.shape)
        return "contrasts of noise", (noise.clip(0, 255).astype(np.uint8), labels.astype(str))
    garments, labels = small_fashion()
    rows = generator.permutation(len(labels))[: len(like)]
    side = like.shape[1]
    pixels = generator.permutation(side * side)
    scrambled = _resized(garments[rows], side).reshape(len(rows), -1)[:, pixels].reshape(-1, side, side)
    shown = scrambled if like.ndim == 3 else np.repeat(scrambled[..., None], like.shape[-1], axis=-1)
    return "garments, scrambled", (shown, labels[rows])


def _projected(table: Arrays, like: np.ndarray, generator: np.random.Generator) -> Arrays:
    """Rows of a table, projected to as many columns as `like` has, each with its mean and standard deviation."""
    rows = generator.permutation(len(table[1]))[: len(like)]
    x = table[0][rows].astype(np.float64)
    x = (x - x.mean(0)) / x.std(0).clip(min=1e-9)
    x = x @ generator.normal(size=(x.shape[1], like.shape[1]))
    x = (x - x.mean(0)) / x.std(0).clip(min=1e-9)
    return x * like.std(0) + like.mean(0), table[1][rows]


def _resized(images: np.ndarray, side: int) -> np.ndarray:
    """Gray images (N, H, W) by their nearest pixels."""
    index = np.arange(side) * images.shape[1] // side
    return images[:, index][:, :, index]


def _halved(images: np.ndarray) -> np.ndarray:
    """Gray images (N, H, W) at half the height and width."""
    n, height, width = images.shape
    return np.asarray(images.reshape(n, height // 2, 2, width // 2, 2).mean((2, 4)), dtype=np.uint8)


def small_digits() -> Arrays:
    x, y, *_ = digits()
    return x, y


def small_mnist() -> Arrays:
    x, y, *_ = mnist()
    return _halved(x), y


def small_fashion() -> Arrays:
    x, y, *_ = fashion()
    return _halved(x[:12_000]), y[:12_000]


def small_emoji() -> Arrays:
    x, y, *_ = emoji()
    return x[:, ::2, ::2], y


def pens() -> Arrays:
    """All ten digits, of both halves of the classes."""
    target, source = pen_digits()[:2], pen_digits_source()
    return np.concatenate([source[0], target[0]]), np.concatenate([source[1], target[1]])


def table(name: str) -> Callable[[], Arrays]:
    return lambda: keel(name)


def cnn(load: Callable[[], Arrays]) -> Setting:
    """Small images and a small network, that starts from random weights."""
    return Setting(load=load, backbone="source_cnn", most_source=2000, epochs=12, pixels=16)


def pretrained(load: Callable[[], Arrays]) -> Setting:
    """A network that has published weights already: the source task comes in between."""
    return Setting(load=load, backbone="mobilenet_v2", most_source=600, epochs=5, pixels=32)


def mlp(load: Callable[[], Arrays]) -> Setting:
    return Setting(load=load, backbone="source_mlp", most_source=3000, epochs=30)


CHOSEN_ON: Mapping[str, Setting] = {
    "digits": cnn(small_digits),
    "fashion": cnn(small_fashion),
    "fashion, pretrained": pretrained(small_fashion),
    "pen digits": mlp(pens),
}
RATED_ON: Mapping[str, Setting] = {
    "mnist": cnn(small_mnist),
    "mnist, pretrained": pretrained(small_mnist),
    "emoji, pretrained": pretrained(small_emoji),
    "letter": mlp(table("letter")),
    "texture": mlp(table("texture")),
    "satimage": mlp(table("satimage")),
    "segment": mlp(table("segment")),
}
SETTINGS = {**CHOSEN_ON, **RATED_ON}


def read_cells(work: Path) -> dict[str, dict[str, Any]]:
    """Finished cases by name."""
    path = work / "cells.jsonl"
    cells = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {Case(cell["task"], cell["kind"], cell["seed"]).name(): cell for cell in cells}


def report(cells: Sequence[dict[str, Any]], about: dict[str, Any]) -> None:
    """Print and write the rates, those of the rated tasks first, and a row for each case."""
    rated = [cell for cell in cells if cell["task"] in RATED_ON]
    groups = {"rated": rated, "chosen on": [cell for cell in cells if cell["task"] in CHOSEN_ON]}
    rates = {name: {kind: rates_of(of_kind(each, kind)) for kind in get_args(Kind)} for name, each in groups.items()}
    rows = [
        [
            f"{kind}{'' if name == 'rated' else ', ' + name}",
            str(found["cases"]),
            _share(found["flagged"], found),
            *(str(found["source"][judgement]) for judgement in JUDGEMENTS),
            str(found["unlearned"]),
            "/".join(str(found["result"][judgement]) for judgement in JUDGEMENTS),
        ]
        for name, kinds in rates.items()
        for kind, found in kinds.items()
        if found["cases"]
    ]
    note = (
        "`flagged`: the run warns of its source, because nothing shows that it helps, or it does harm, or its model "
        "did not learn; in brackets the exact 95 % binomial interval. `helps`, `no gain shown` and `negative transfer` "
        "are the source's verdict: the gain at test samples of its network, whole and frozen, over the same without "
        "the source task is surely above 0, neither, or surely below. `did not learn`: no better than guessing on its "
        "own held-back samples. `result`: the same three of the model that was found, beside the same search from "
        "random weights; of a pretrained network that counts what its published weights gain, too, and says little of "
        "the source. The rule was chosen on the tasks of the lower rows with seeds 0 to 3, and is rated on those "
        f"of the upper ones.\n\n{_cases(cells)}"
    )
    header = ["source", "cases", "flagged", "helps", "no gain shown", "negative transfer", "did not learn", "result"]
    keep("negative_transfer", header, rows, {"circumstances": about, "rates": rates, "cases": list(cells)}, note)


def of_kind(cells: Sequence[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [cell for cell in cells if cell["kind"] == kind]


def rates_of(cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How often each verdict came up."""
    flagged = sum(cell["source"]["flagged"] for cell in cells)
    return {
        "cases": len(cells),
        "flagged": flagged,
        "flagged_ci95": binomial(flagged, len(cells)),
        "unlearned": sum(cell["source"]["learned"] is False for cell in cells),
        **{
            which: {each: sum(cell[which]["verdict"] == each for cell in cells) for each in JUDGEMENTS}
            for which in ("source", "result", "transfer_gain")
        },
    }


def binomial(k: int, n: int) -> list[float] | None:
    """The exact 95 % interval of a share (Clopper and Pearson 1934)."""
    from scipy.stats import binomtest

    return [float(end) for end in binomtest(k, n).proportion_ci()] if n else None


def _share(k: int, found: dict[str, Any]) -> str:
    low, high = found["flagged_ci95"]
    return f"{k} ({100 * k / found['cases']:.0f} %) [{100 * low:.0f}, {100 * high:.0f}]"


def _cases(cells: Sequence[dict[str, Any]]) -> str:
    """A table of all cases."""
    header = ["task", "source", "seed", "target, test", "own F1", "with", "without", "gain", "verdict", "result's gain"]
    lines = [" | ".join(each) for each in (header, ["---"] * len(header), *_rows(cells))]
    return "\n".join(f"| {line} |" for line in lines)


def _rows(cells: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    for cell in sorted(cells, key=lambda cell: (cell["task"] in CHOSEN_ON, cell["task"])):
        source, result = cell["source"], cell["result"]
        yield [
            cell["task"],
            cell["far"] or cell["kind"],
            str(cell["seed"]),
            f"{cell['n_target']}, {cell['n_test']}",
            f"{cell['source_f1']:.2f}" + (" (did not learn)" if source["learned"] is False else ""),
            f"{source['with_source']:.3f}",
            f"{np.mean(source['without']):.3f}",
            _interval(source),
            source["verdict"],
            f"{_interval(result)} {result['verdict']}",
        ]


def _interval(found: dict[str, Any]) -> str:
    low, high = found["interval"]
    return f"{found['gain']:+.3f} [{low:+.3f}, {high:+.3f}]"


if __name__ == "__main__":
    main()
