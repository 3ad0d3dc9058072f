"""Finds out which precision is the fastest for a network here: two short batches decide, and the answer is remembered.

What pays depends on the network as much as on the machine: on one and the same processor bfloat16 makes one network
faster and the next one slower. What is timed is a copy: the model and the random streams stay as they are.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from automl_tl.features.rows import Rows
from automl_tl.features.store import feature_root
from automl_tl.model.assemble import TransferModel
from automl_tl.model.plan import tap
from automl_tl.model.pooling import Activation
from automl_tl.model.spec import TrialSpec, only_head_trains
from automl_tl.plugin import Tokens
from automl_tl.training.data import Labelled
from automl_tl.training.precision import Precision, has_bfloat16, laid_out, lay_out, running
from automl_tl.training.stopping import last_unfreezing

SHORT_BATCH = 8  # rows; a GPU gets whole batches, because short ones tell how fast work is handed to it, not done
TIMED = 2  # batches, after one to warm up

ENOUGH: dict[Precision, float] = {"channels_last": 0.95, "bfloat16": 0.85}
"""Of the time of what was fastest before: timings are noisy, and bfloat16 is less exact."""

WORTH = 0.002  # seconds of a short batch, below which a network is too small for any of it

Attempt = Callable[[Precision], object]


def fastest(
    model: TransferModel, rows: Labelled, spec: TrialSpec, device: str, memory: Path, *, micro_batch: int | None = None
) -> Precision:
    """The fastest precision for training steps of this model on these rows, with all its groups unfrozen.

    `memory` is a JSON file, made where there is none. The answer holds for the backbone, the groups from the cut to
    the tap, the shape in which samples enter, this machine and this version of torch.
    """
    with _untouched_streams(device):
        size = SHORT_BATCH if device == "cpu" else spec.optimization.batch_size
        batch = rows.rows.batch(typical_rows(rows.rows, min(size, micro_batch or size)), device)
        if only_head_trains(spec) and not isinstance(batch, Tokens) and batch.ndim == 2:
            return "float32"  # features that are stored: too little is left to be gained

        def prepare() -> tuple[nn.Module, Attempt]:
            copied = copy.deepcopy(model).to(device)
            copied.begin_epoch(last_unfreezing(model))

            def step(precision: Precision) -> None:
                copied.zero_grad(set_to_none=True)
                with running(precision, device):
                    logits = copied(laid_out(batch, precision), rows.start)
                torch.autograd.backward(logits.float().logsumexp(1).mean())

            return copied, step

        name = f"training {spec.backbone} from {model.cut} to {tap(spec.plan) + 1}"
        return _recall_or_time(name, batch, device, memory, prepare)


def fastest_pass(groups: Sequence[nn.Module], batch: Activation, device: str, memory: Path, name: str) -> Precision:
    """The fastest precision for passing batches like this one forward through frozen groups, which `name` names."""

    def prepare() -> tuple[nn.Module, Attempt]:
        copied = nn.Sequential(*copy.deepcopy(list(groups))).to(device).eval()

        @torch.no_grad()
        def forward(precision: Precision) -> None:
            with running(precision, device):
                copied(laid_out(batch, precision))

        return copied, forward

    with _untouched_streams(device):
        return _recall_or_time(f"passing {name}", batch, device, memory, prepare)


def _recall_or_time(
    name: str, batch: Activation, device: str, memory: Path, prepare: Callable[[], tuple[nn.Module, Attempt]]
) -> Precision:
    candidates = _candidates(batch, device)
    if len(candidates) == 1:
        return candidates[0]
    key = f"{name}, {_shape(batch)}, {_machine(device)}"
    remembered = _read(memory).get(key)
    if isinstance(remembered, dict):
        for candidate in candidates:
            if remembered.get("fastest") == candidate:
                return candidate
    seconds = _time(candidates, *prepare(), device)
    chosen: Precision = "float32"
    for candidate in candidates[1:] if seconds["float32"] > WORTH else ():
        if seconds[candidate] <= ENOUGH[candidate] * seconds[chosen]:
            chosen = candidate
    _write(memory, key, {"fastest": chosen, "seconds": seconds})
    return chosen


def _candidates(batch: Activation, device: str) -> list[Precision]:
    """The precisions that may differ in speed, plain float32 first."""
    candidates: list[Precision] = ["float32"]
    if not isinstance(batch, Tokens) and batch.ndim == 4:
        candidates.append("channels_last")
    if has_bfloat16(device):
        candidates.append("bfloat16")
    return candidates


def _time(candidates: Sequence[Precision], network: nn.Module, attempt: Attempt, device: str) -> dict[Precision, float]:
    """Seconds a batch, the least of the timed ones; in turns, so that a busy machine is unfair to none."""
    seconds: dict[Precision, float] = dict.fromkeys(candidates, float("inf"))
    for turn in range(1 + TIMED):
        for candidate in candidates:
            lay_out(network, candidate)
            _wait_for(device)
            began = time.perf_counter()
            attempt(candidate)
            _wait_for(device)
            if turn > 0:
                seconds[candidate] = min(seconds[candidate], time.perf_counter() - began)
    return seconds


def _wait_for(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)


def _untouched_streams(device: str) -> contextlib.AbstractContextManager[None]:
    return torch.random.fork_rng(devices=[] if device == "cpu" else [torch.device(device)])


def precision_memory() -> Path:
    """The file that remembers, shared by all runs."""
    return feature_root().with_name("precision.json")


def typical_rows(rows: Rows, n: int) -> np.ndarray:
    """Indices of the first rows, or of texts of middle length."""
    if rows.lengths is None:
        return np.arange(min(n, len(rows)))
    start = max(0, (len(rows) - n) // 2)
    return np.argsort(rows.lengths, kind="stable")[start : start + n]


def _shape(batch: Activation) -> str:
    """One sample's shape, in which texts of any length are alike."""
    values, fixed = (batch.values, 2) if isinstance(batch, Tokens) else (batch, 1)
    return "x".join(map(str, values.shape[fixed:])) or "token ids"


def _machine(device: str) -> str:
    if device != "cpu":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"{_cpu()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return torch.backends.cpu.get_cpu_capability()


def _read(memory: Path) -> dict[str, object]:
    """What is remembered; nothing where the file is missing or damaged, because all can be found out again."""
    try:
        found = json.loads(memory.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(memory: Path, key: str, answer: dict[str, object]) -> None:
    """Replace the file whole. What another process adds at the same moment may be lost; it will be timed again."""
    partial = memory.with_name(f"{memory.name}.{os.getpid()}")
    with contextlib.suppress(OSError):  # a full disk is no reason to fail a trial
        memory.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps({**_read(memory), key: answer}, indent=2, sort_keys=True) + "\n")
        partial.replace(memory)
