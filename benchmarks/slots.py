"""How much faster do several slots finish the same trials than one slot?

Three ways to spend the same cores, one after the other in each repeat:
    1 x 1   one slot with one thread
    1 x N   one slot with all N threads, what `--slots 1` gives
    N x 1   N slots with one thread each, what `--slots N` gives on N cores
Ratios are taken within a repeat; the median over repeats counts. Close other programs first.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from fixed_search import fixed_search
from results import circumstances, keep

from automl_tl.engine.child import warm_torch
from automl_tl.engine.slot import Children
from automl_tl.engine.slots import Slot, parse_slots
from automl_tl.search.search import run_search
from automl_tl.search.study import completed


@dataclass(frozen=True, slots=True, kw_only=True)
class Seconds:
    """Wall time of one search."""

    start: float  # until every slot's child has imported what a trial needs
    search: float  # from then on, until the last trial ended

    @property
    def total(self) -> float:
        return self.start + self.search


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, default=2, help="N, the slots to compare with one")
    parser.add_argument("--trials", type=int, default=10, help="trials of each search; a multiple of N")
    parser.add_argument("--epochs", type=int, default=1, help="epochs of each trial")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    n = options.slots
    ways = {
        "1 x 1": parse_slots("cpu", cores=1),
        f"1 x {n}": parse_slots("cpu", cores=n),
        f"{n} x 1": parse_slots(f"cpu*{n}", cores=n),
    }
    about = circumstances()
    measured: dict[str, list[Seconds]] = {way: [] for way in ways}
    for repeat in range(options.repeats):
        for way, slots in ways.items():
            seconds = measure(slots, options.trials, options.epochs)
            measured[way].append(seconds)
            print(f"repeat {repeat + 1}, {way}: start {seconds.start:.1f} s, search {seconds.search:.1f} s", flush=True)

    many = measured[f"{n} x 1"]
    faster = {
        way: {
            "search": median(one.search / of_many.search for one, of_many in zip(measured[way], many, strict=True)),
            "total": median(one.total / of_many.total for one, of_many in zip(measured[way], many, strict=True)),
        }
        for way in ways
    }
    rows = [
        [
            way,
            f"{median(s.start for s in seconds):.1f}",
            f"{median(s.search for s in seconds):.1f}",
            f"{faster[way]['search']:.2f}",
            f"{faster[way]['total']:.2f}",
        ]
        for way, seconds in measured.items()
    ]
    keep(
        "slots",
        ["slots x threads", "start of children (s)", "search (s)", f"{n} x 1 is faster by", "with start"],
        rows,
        {
            "circumstances": about,
            "options": vars(options),
            "seconds": {way: [asdict(s) for s in seconds] for way, seconds in measured.items()},
            "faster_by": faster,
        },
        f"{options.trials} equal trials of {options.epochs} epochs, medians of {options.repeats} repeats.",
    )


def measure(slots: tuple[Slot, ...], trials: int, epochs: int) -> Seconds:
    """Run one search with fresh children and an empty study."""
    with tempfile.TemporaryDirectory() as directory, Children(slots, warm=warm_torch) as children:
        search = fixed_search(Path(directory), trials=trials, epochs=epochs)
        began = time.perf_counter()
        with ThreadPoolExecutor(len(slots)) as pool:
            list(pool.map(lambda slot: children.run(slot, import_what_a_trial_needs), slots))
        ready = time.perf_counter()
        run_search(search, slots, children, threading.Event(), lambda: None)
        ended = time.perf_counter()
        assert len(completed(search.study)) == trials
    return Seconds(start=ready - began, search=ended - ready)


def import_what_a_trial_needs() -> None:
    """In a child. torch imports its compiler with the first optimizer that is made, used or not."""

    import automl_tl.search.trial  # noqa: F401  (imported for its time)


if __name__ == "__main__":
    main()
