"""How much memory does a search over 60,000 images take?

Resident memory is read from `/proc/PID/smaps_rollup` several times a second, of the host and of every child, and the
largest of each counts. `resident` is Rss: it counts mapped pages of the store, which all processes share and the kernel
takes back when it wants; `own` is Anonymous, what the process itself allocated. A process that only imports torch is
measured the same way, and children are held against what they take beyond it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from results import circumstances, keep
from tasks import draw

MIB = 1 << 20


@dataclass(slots=True)
class Peak:
    """The largest that was seen, MiB."""

    resident: float = 0.0
    own: float = 0.0

    def note(self, pid: int) -> None:
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:  # it has ended
            return
        found = {name: int(kib) / 1024 for name, kib in re.findall(r"^(Rss|Anonymous):\s+(\d+) kB", text, re.M)}
        self.resident = max(self.resident, found.get("Rss", 0.0))
        self.own = max(self.own, found.get("Anonymous", 0.0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=60_000)
    parser.add_argument("--backbones", default="mobilenet_v2")
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--slots", default="2")
    parser.add_argument("--budget-gib", type=float, default=4.0)
    options = parser.parse_args()
    about = circumstances()
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        drawn = draw("fashion", options.samples, 10_000)
        data = root / "fashion"
        data.mkdir()
        np.savez(data / "train.npz", x=drawn.x, y=drawn.y)
        np.savez(data / "test.npz", x=drawn.x_test, y=drawn.y_test)
        del drawn
        command = [sys.executable, "-m", "automl_tl", "search", str(data), "--time", str(options.seconds)]
        command += ["--slots", options.slots, "--run-dir", str(root / "run"), "--set", f"backbones={options.backbones}"]
        command += ["--set", f"cache.budget_gib={options.budget_gib}"]
        torch_alone = measure_torch()
        host, children, store = watch(command, {**os.environ, "AUTOML_TL_CACHE": str(root / "cache")}, root / "cache")
        result = json.loads((root / "run" / "result.json").read_text())
    rows = [
        ["torch alone", f"{torch_alone.resident:.0f}", f"{torch_alone.own:.0f}", "", ""],
        ["host", f"{host.resident:.0f}", f"{host.own:.0f}", f"{host.resident - torch_alone.resident:.0f}", "3072"],
    ]
    for number, child in enumerate(children):
        beyond = f"{child.resident - torch_alone.resident:.0f}"
        rows.append([f"child {number}", f"{child.resident:.0f}", f"{child.own:.0f}", beyond, "1536"])
    rows.append(["store on disk", f"{store:.0f}", "", "", f"{options.budget_gib * 1024:.0f}"])
    keep(
        "memory",
        ["MiB", "resident", "own", "beyond torch", "allowed"],
        rows,
        {
            "circumstances": about,
            "options": vars(options),
            "torch_alone": [torch_alone.resident, torch_alone.own],
            "host": [host.resident, host.own],
            "children": [[child.resident, child.own] for child in children],
            "store": store,
            "trials": result["trials"],
            "test_f1": result["test"]["f1_macro"],
        },
        f"{options.samples} Fashion-MNIST images, {result['trials']['complete']} complete trials; the largest that "
        f"/proc/PID/smaps_rollup showed. Test macro-F1 {result['test']['f1_macro']:.3f}.",
    )


def measure_torch() -> Peak:
    """A process that imports torch and has multiplied once."""
    peak = Peak()
    code = "import torch, time; torch.ones(64, 64) @ torch.ones(64, 64); print('ready', flush=True); time.sleep(1)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        peak.note(process.pid)
    return peak


def watch(command: list[str], environment: dict[str, str], cache: Path) -> tuple[Peak, list[Peak], float]:
    """Run a search; the peaks of host and of its largest children, and of the store on disk, MiB."""
    host, children, store, looked = Peak(), dict[int, Peak](), 0.0, 0.0
    with subprocess.Popen(command, env=environment) as process:
        while process.poll() is None:
            host.note(process.pid)
            for pid in children_of(process.pid):
                children.setdefault(pid, Peak()).note(pid)
            if time.monotonic() - looked > 2:
                looked = time.monotonic()
                store = max(store, sum(p.stat().st_size for p in cache.rglob("*") if p.is_file()) / MIB)
            time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"the search ended with {process.returncode}")
    working = [peak for peak in children.values() if peak.resident > 100]  # not the trackers of multiprocessing
    return host, sorted(working, key=lambda peak: -peak.resident), store


def children_of(pid: int) -> Iterator[int]:
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            yield from map(int, (thread / "children").read_text().split())
    except OSError:  # it has ended
        return


if __name__ == "__main__":
    main()
