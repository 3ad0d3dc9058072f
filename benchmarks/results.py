"""Where numbers are kept: a table on the screen and in `results/NAME.md`, all of them in `results/NAME.json`.

Each result says which command, commit and kind of machine it is from, and how busy the machine was before.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def circumstances() -> dict[str, Any]:
    """What a reader must know of a measurement; call it before measuring."""
    return {
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "commit": _git("rev-parse", "--short", "HEAD") + ("-dirty" if _git("status", "--porcelain", "-uno") else ""),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def keep(name: str, header: Sequence[str], rows: Sequence[Sequence[str]], facts: dict[str, Any], note: str) -> None:
    """Print the table with the note below it, and write both and the facts."""
    lines = [" | ".join(row) for row in (header, ["---"] * len(header), *rows)]
    table = "\n".join(f"| {line} |" for line in lines)
    about = facts["circumstances"]
    origin = (
        f"`{about['command']}` at {about['commit']}, {about['cores']} cores ({about['cpu']}), torch {about['torch']}, "
        f"load before {about['load_before']}"
    )
    text = f"{table}\n\n{note}\n\n{origin}\n"
    print(f"\n{text}")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text)
    (RESULTS / f"{name}.json").write_text(json.dumps(facts, indent=2) + "\n")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=RESULTS.parent, capture_output=True, text=True)
    return done.stdout.strip() or ("unknown" if done.returncode else "")


def _cpu() -> str:
    facts = Path("/proc/cpuinfo")
    if facts.exists():
        for line in facts.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
