"""Test macro-F1 that a user has after so many seconds: `automl-tl search` beside rivals with the same weights and data.

Who is measured, each in a fresh process with nothing cached, from the start of the process, imports included:

- ours, one_epoch   `automl-tl search DATA --time …` as a user runs it, once for every share of the budget;
                    the F1 is the one in result.json, the time is when the model lay on disk. With --incumbents
                    also what the search had on its way, see incumbents.py, as is done with the searching rivals
- plain             Optuna's TPE and Hyperband around a PyTorch loop, see rivals/plain_optuna.py
- recipe            one good fine-tuning recipe and no search, once for every share, see rivals/good_recipe.py
- logistic, ridge   frozen features and a cross-validated linear head, see rivals/frozen_linear.py
- flaml             FLAML on frozen features, see rivals/flaml_features.py
- autogluon         AutoGluon MultiModal, once for every share, see rivals/autogluon_multimodal.py

Every finished cell (task, seed, contender, share) is a line in WORK/*/cells.jsonl: stop whenever you like, the same
command goes on, and with --go-on also elsewhere from what is committed. Eight tasks, three seeds and all contenders
take most of a day on two cores; close other programs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from results import RESULTS, circumstances
from rivals.reading import input_format, read_dataset
from rivals.report import ONCE_A_SHARE, Cell, report
from tasks import CONTESTS, Contest, write_task

from automl_tl.host import load_host

HERE = Path(__file__).parent
SEARCHES = {"ours": (), "one_epoch": ("--set", "search.scheduler=one_epoch")}
RIVALS = {
    "plain": ("rivals.plain_optuna",),
    "recipe": ("rivals.good_recipe",),
    "logistic": ("rivals.frozen_linear", "--head", "logistic"),
    "ridge": ("rivals.frozen_linear", "--head", "ridge"),
    "flaml": ("rivals.flaml_features",),
    "autogluon": ("rivals.autogluon_multimodal",),
}
"""Each contender's command, without what depends on the cell."""

NEED_WEIGHTS = ("recipe", "autogluon")
"""Those that fine-tune published weights and have nothing to do where a network comes from a source table."""

NO_RESULT = 2  # exit code of a search that ended without a model, among other things that a user can mend
PATIENCE = 3.0  # times the budget, and ten minutes: what takes longer hangs. Overrunning is shown, not cut


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is asked of one process."""

    task: str
    seed: int
    contender: str
    share: float  # of the whole budget
    seconds: float

    def name(self) -> str:
        return f"{self.task}-{self.seed}-{self.contender}-{self.share:g}"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where things lie, and which interpreters there are."""

    work: Path
    budget: float
    flaml: str
    autogluon: str | None
    n_train: int | None  # None: each task's own number
    n_test: int | None
    incumbents: tuple[float, ...] = ()  # shares whose searches are looked into

    @property
    def kept(self) -> Path:
        """All that depends on budget and sizes."""
        size = f"-{self.n_train}-{self.n_test}" if self.n_train or self.n_test else ""
        return self.work / f"{self.budget:g}s{size}"

    @property
    def cells(self) -> Path:
        return self.kept / "cells.jsonl"

    def data(self, task: str, seed: int) -> Path:
        return self.kept / "tasks" / f"{task}-{seed}"

    def log(self, plan: Plan) -> Path:
        return self.kept / "logs" / f"{plan.name()}.txt"

    def predictions(self, plan: Plan) -> Path:
        return self.kept / "predictions" / f"{plan.name()}.json"

    def result(self, plan: Plan) -> Path:
        return self.kept / "results" / f"{plan.name()}.json"

    def make(self) -> None:
        for name in ("tasks", "logs", "predictions", "results", "runs"):
            (self.kept / name).mkdir(parents=True, exist_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a directory for tasks, runs and finished cells")
    parser.add_argument("--tasks", nargs="+", default=list(CONTESTS), choices=list(CONTESTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--contenders", nargs="+", default=[*SEARCHES, *RIVALS], choices=[*SEARCHES, *RIVALS])
    parser.add_argument("--budget", type=float, default=300.0, help="seconds")
    parser.add_argument("--shares", nargs="+", type=float, default=[0.1, 0.25, 0.5, 1.0], help="of the budget")
    parser.add_argument(
        "--incumbents",
        nargs="+",
        type=float,
        default=[],
        metavar="SHARE",
        help="look into our searches of these shares",
    )
    parser.add_argument("--flaml", metavar="PYTHON", default=sys.executable, help="an interpreter that has FLAML")
    parser.add_argument(
        "--autogluon", metavar="PYTHON", help="an interpreter that has AutoGluon; without, it is skipped"
    )
    parser.add_argument("--train", type=int, metavar="N", help="training samples, instead of each task's own number")
    parser.add_argument("--test", type=int, metavar="N", help="test samples, instead of each task's own number")
    parser.add_argument("--name", default="anytime", help="of the tables under benchmarks/results/")
    parser.add_argument(
        "--go-on", action="store_true", help="count the cells of the committed results as finished, in an empty WORK"
    )
    parser.add_argument("--report-only", action="store_true", help="run nothing, report the finished cells")
    options = parser.parse_args()
    about = circumstances() | {"command": command_without_paths(options)}
    place = Place(
        work=options.work.resolve(),
        budget=options.budget,
        flaml=options.flaml,
        autogluon=options.autogluon,
        n_train=options.train,
        n_test=options.test,
        incumbents=tuple(options.incumbents),
    )
    place.make()
    if options.go_on and not place.cells.exists():
        committed = json.loads((RESULTS / f"{options.name}.json").read_text())
        sizes = ("budget", "train", "test")
        if any(committed["options"][name] != vars(options)[name] for name in sizes):
            parser.error(f"--go-on: the committed cells are of another {', '.join(sizes[:2])} or {sizes[2]}")
        place.cells.write_text("".join(f"{json.dumps(cell)}\n" for cell in committed["cells"]))
    shares = sorted({*options.shares, 1.0})
    tasks = [task for task in options.tasks if has_data(task, options.seeds, place)]
    contenders = [name for name in options.contenders if options.report_only or is_there(name, place)]
    plans = list(planned(tasks, options.seeds, contenders, shares, options.budget))
    if not options.report_only:
        run_all(plans, place)
    finished = read_cells(place)
    report(
        [finished[plan.name()] for plan in plans if plan.name() in finished],
        shares,
        options.budget,
        options.name,
        {"circumstances": about, "options": shown(options)},
        lambda task, seed, contender: place.predictions(whole(task, seed, contender, options.budget)),
        lambda task, seed: [names[0] for names in read_dataset(place.data(task, seed)).parts["test"].labels],
    )


def whole(task: str, seed: int, contender: str, budget: float) -> Plan:
    return Plan(task=task, seed=seed, contender=contender, share=1.0, seconds=budget)


def command_without_paths(options: argparse.Namespace) -> str:
    """How this program was started; paths of this machine tell a reader nothing."""
    placeholders = {str(options.work): "WORK", options.flaml: "PYTHON", options.autogluon: "PYTHON"}
    words = [placeholders.get(word, word) for word in sys.argv[1:]]
    return shlex.join(["python", f"benchmarks/{Path(__file__).name}", *words])


def shown(options: argparse.Namespace) -> dict[str, Any]:
    """The options as data, without paths."""
    return {key: value for key, value in vars(options).items() if key not in ("work", "flaml", "autogluon")}


def planned(
    tasks: list[str], seeds: list[int], contenders: list[str], shares: list[float], budget: float
) -> Iterator[Plan]:
    """All seeds of a task, one after another; a contender's small budgets before its large ones."""
    for seed, task, contender in itertools.product(seeds, tasks, contenders):
        if contender in NEED_WEIGHTS and CONTESTS[task].source is not None:
            continue
        for share in shares if contender in ONCE_A_SHARE else [1.0]:
            yield Plan(task=task, seed=seed, contender=contender, share=share, seconds=share * budget)


def has_data(task: str, seeds: list[int], place: Place) -> bool:
    """Write the task's files; say what to install where its data is missing."""
    try:
        for seed in seeds:
            write_task(CONTESTS[task], place.data(task, seed), seed=seed, n_train=place.n_train, n_test=place.n_test)
    except SystemExit as missing:
        print(f"{task} is skipped. {missing}", file=sys.stderr)
        return False
    return True


def is_there(contender: str, place: Place) -> bool:
    if contender == "autogluon" and place.autogluon is None:
        print("autogluon is skipped. Name an interpreter that has it with --autogluon", file=sys.stderr)
        return False
    if contender == "flaml" and subprocess.run([place.flaml, "-c", "import flaml"], capture_output=True).returncode:
        print("flaml is skipped. Name an interpreter that has it with --flaml", file=sys.stderr)
        return False
    return True


def run_all(plans: list[Plan], place: Place) -> None:
    """Every cell that is not finished, one at a time."""
    finished = read_cells(place)
    for number, plan in enumerate(plans, start=1):
        if plan.name() in finished:
            continue
        print(f"{number}/{len(plans)} {time.strftime('%H:%M:%S')} {plan.name()}", end=" ", flush=True)
        smaller = (cell for cell in finished.values() if is_smaller(cell, plan) and cell.facts.get("ended_by_itself"))
        enough = [cell for cell in smaller if place.predictions(replace(plan, share=cell.share)).exists()]
        try:
            found = again(enough[0], plan, place) if enough else run(plan, place)
        except (subprocess.SubprocessError, ValueError, OSError) as error:
            print(f"failed: {error}; see {place.log(plan)}", flush=True)
            continue
        print(f"{found.points[-1][1]:.4f} at {found.points[-1][0]:.1f} s" if found.points else "nothing", flush=True)
        finished[plan.name()] = found
        with place.cells.open("a") as file:
            file.write(json.dumps(found.to_json()) + "\n")


def is_smaller(cell: Cell, plan: Plan) -> bool:
    """Whether a cell is of the same contender on the same samples with less time."""
    return (*cell.draw, cell.contender) == (plan.task, plan.seed, plan.contender) and cell.share < plan.share


def again(cell: Cell, plan: Plan, place: Place) -> Cell:
    """What ended before its budget did would do the same with a larger one."""
    shutil.copyfile(place.predictions(replace(plan, share=cell.share)), place.predictions(plan))
    return replace(cell, share=plan.share)


def read_cells(place: Place) -> dict[str, Cell]:
    """Finished cells by their plan's name; of two lines of one cell, the later."""
    lines = place.cells.read_text().splitlines() if place.cells.exists() else []
    cells = [Cell.from_json(json.loads(line)) for line in lines]
    return {f"{cell.task}-{cell.seed}-{cell.contender}-{cell.share:g}": cell for cell in cells}


def run(plan: Plan, place: Place) -> Cell:
    """One fresh process, measured from its start.

    Raises
    ------
    subprocess.SubprocessError, ValueError, OSError
        When it failed, hung or printed no result; what it said is in WORK/logs.
    """
    commit = circumstances()["commit"]
    found = search(plan, place) if plan.contender in SEARCHES else compete(plan, place)
    asked = {"task": plan.task, "seed": plan.seed, "contender": plan.contender, "share": plan.share}
    found["facts"]["commit"] = commit
    return Cell.from_json({**asked, **found})


def search(plan: Plan, place: Place) -> dict[str, Any]:
    """`automl-tl search` with an empty cache; then its predictions, which are not on the clock."""
    data, contest = place.data(plan.task, plan.seed), CONTESTS[plan.task]
    directory = place.kept / "runs" / plan.name()
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    environment = environment_of(contender=plan.contender) | {"AUTOML_TL_CACHE": str(directory / "cache")}
    command = [sys.executable, "-m", "automl_tl"]
    options = ["--time", f"{plan.seconds:g}", "--seed", str(plan.seed), "--run-dir", str(directory / "run")]
    options += ["--set", f"backbones={contest.backbone}"]
    if plan.share in place.incumbents:
        options += ["--set", "search.keep_checkpoints=1000"]
    command_line = [*command, "search", str(target(contest, data, directory)), *options, *SEARCHES[plan.contender]]
    began = time.time()
    try:
        carry_out(command_line, plan, place, environment)
    except subprocess.CalledProcessError as error:
        if error.returncode != NO_RESULT or not (directory / "run" / "study.db").exists():
            raise
        said = [line for line in place.log(plan).read_text().splitlines() if line.startswith("error:")]
        return {"points": [], "seconds": time.time() - began, "facts": {"failed": said[-1:]}}
    seconds = time.time() - began
    made = (directory / "run" / "model" / "model.safetensors").stat().st_mtime - began
    result = json.loads((directory / "run" / "result.json").read_text())
    predictions = directory / "predictions.csv"
    samples = data / "test" if (data / "test").is_dir() else data / "test.csv"
    command += ["predict", str(directory / "run"), str(samples), "--out", str(predictions)]
    carry_out(command, plan, place, environment)
    said = pd.read_csv(predictions, dtype=str, keep_default_na=False)["class"].tolist()
    place.predictions(plan).write_text(json.dumps(said) + "\n")
    place.result(plan).write_text(json.dumps(result, indent=2) + "\n")
    on_its_way: list[tuple[float, float]] = []
    if plan.share in place.incumbents:
        look = [sys.executable, str(HERE / "incumbents.py"), str(directory / "run"), "--began", f"{began}"]
        on_its_way = json.loads(carry_out(look, plan, place, environment).splitlines()[-1])
    shutil.rmtree(directory)
    return {
        "points": [*on_its_way, (made, result["test"]["f1_macro"])],
        "seconds": seconds,
        "facts": {"trials": result["trials"], "phases": result["seconds"]},
    }


def target(contest: Contest, data: Path, directory: Path) -> Path:
    """What the search is pointed at: the data, or a configuration that also names the source task."""
    if contest.source is None:
        return data
    source = {"data": {"path": str(data / "source.csv")}, "backbone": contest.backbone}
    file = directory / "search.yaml"
    file.write_text(yaml.safe_dump({"data": {"path": str(data)}, "source": source}))
    return file


def compete(plan: Plan, place: Place) -> dict[str, Any]:
    """A rival's program; its last line says what it found."""
    contest, data = CONTESTS[plan.task], place.data(plan.task, plan.seed)
    module, *options = RIVALS[plan.contender]
    python = place.autogluon if plan.contender == "autogluon" and place.autogluon else sys.executable
    if plan.contender == "autogluon":
        options += autogluon_options(contest, data)
    else:
        options += ["--backbone", contest.backbone]
    if plan.contender == "flaml":
        options += ["--python", place.flaml]
    command = [python, "-m", module, str(data), *options, "--budget", f"{plan.seconds:g}", "--seed", str(plan.seed)]
    command += ["--predictions", str(place.predictions(plan)), "--began", str(time.time())]
    printed = carry_out(command, plan, place, environment_of(contender=plan.contender))
    found = json.loads(printed.splitlines()[-1])
    points, seconds = found.pop("points"), found.pop("seconds")
    return {"points": points, "seconds": seconds, "facts": found}


def autogluon_options(contest: Contest, data: Path) -> list[str]:
    """The same file of weights and the same image size that the others take."""
    backbone = load_host().backbone(contest.backbone)
    assert backbone.weights is not None
    size = input_format(backbone, read_dataset(data).parts["train"], None).size
    return ["--weights", str(backbone.weights.find()), *(["--image-size", str(size)] if size else [])]


def environment_of(*, contender: str) -> dict[str, str]:
    """The caller's, where everybody may use all cores and finds this folder's modules.

    Threads wait without spinning, as our command line has it: what else runs on the machine then does less harm.
    """
    environment = {key: value for key, value in os.environ.items() if not key.endswith("_NUM_THREADS")}
    environment["OMP_WAIT_POLICY"] = "PASSIVE"
    if contender == "autogluon":  # of ours it must find only its program, and what lets torchvision be imported
        return environment | {"PYTHONPATH": f"{HERE}{os.pathsep}{HERE / 'rivals' / 'cpu_torchvision'}"}
    paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    return environment | {"PYTHONPATH": os.pathsep.join(paths)}


def carry_out(command: list[str], plan: Plan, place: Place, environment: dict[str, str]) -> str:
    """Run to the end; what is printed, all of which also goes to the cell's log."""
    limit = PATIENCE * plan.seconds + 600
    with place.log(plan).open("a") as file:
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, stderr=file, text=True, timeout=limit, check=False
        )
        file.write(done.stdout)
    done.check_returncode()
    return done.stdout


if __name__ == "__main__":
    main()
