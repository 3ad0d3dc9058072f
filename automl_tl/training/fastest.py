"""Finds out which precision is the fastest for a model here: two short batches decide, and the answer is remembered.

What pays depends on the network as much as on the machine: on one processor bfloat16 can make one network three times
faster and the next one slower. Nothing that is timed leaves a trace in the model or in the random streams.
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

from automl_tl.model.assemble import TransferModel
from automl_tl.model.pooling import Activation
from automl_tl.model.spec import TrialSpec, only_head_trains
from automl_tl.plugin import Tokens
from automl_tl.training.precision import Precision, has_bfloat16, laid_out, lay_out, running
from automl_tl.training.train import Labelled, last_unfreezing

SHORT_BATCH = 16  # rows; a GPU gets whole batches, because short ones measure only how fast work is handed to it
TIMED = 2  # batches, after one to warm up

NEEDED_SHARE: dict[Precision, float] = {"float32": 1.0, "channels_last": 0.95, "bfloat16": 0.85}
"""Of the time of the best one before it, at most this much: timings are noisy, and bfloat16 is less exact."""

Trial = Callable[[Precision], None]


def fastest(
    model: TransferModel, rows: Labelled, spec: TrialSpec, device: str, memory: Path, *, micro_batch: int | None = None
) -> Precision:
    """The fastest precision for training this model on these rows: forward and backward passes, all groups unfrozen.

    `memory` is a JSON file, made where there is none. The answer holds for the backbone, the cut and the shape of what
    enters there, on this machine with this version of torch.
    """
    with torch.random.fork_rng(devices=[torch.device(device)] if device != "cpu" else []):
        size = spec.optimization.batch_size if device != "cpu" else SHORT_BATCH
        batch = rows.rows.batch(_typical(rows, min(size, micro_batch or size)), device)
        if only_head_trains(spec) and not isinstance(batch, Tokens) and batch.ndim == 2:
            return "float32"  # a head on stored features: nothing to gain
        name = f"train {spec.backbone} cut {model.cut} on {_shape(batch)}"

        def attempt(copied: nn.Module, precision: Precision) -> None:
            with running(precision, device):
                logits = copied(laid_out(batch, precision), rows.start)
            torch.autograd.backward(logits.float().logsumexp(1).mean())
            copied.zero_grad(set_to_none=True)

        def prepare() -> nn.Module:
            copied = copy.deepcopy(model).to(device)
            copied.begin_epoch(last_unfreezing(model))
            return copied

        return _recall_or_measure(name, batch, device, memory, prepare, attempt)


def fastest_pass(
    groups: Sequence[nn.Module], batch: Activation, device: str, memory: Path, name: str
) -> Precision:
    """The fastest precision for passing batches like this one forward through frozen groups; `name` says which."""

    def attempt(copied: nn.Module, precision: Precision) -> None:
        with torch.no_grad(), running(precision, device):
            copied(laid_out(batch, precision))

    def prepare() -> nn.Module:
        return nn.Sequential(*copy.deepcopy(list(groups))).to(device).eval()

    return _recall_or_measure(f"pass {name} on {_shape(batch)}", batch, device, memory, prepare, attempt)


def _recall_or_measure(
    name: str,
    batch: Activation,
    device: str,
    memory: Path,
    prepare: Callable[[], nn.Module],
    attempt: Callable[[nn.Module, Precision], None],
) -> Precision:
    candidates = _candidates(batch, device)
    if len(candidates) == 1:
        return candidates[0]
    key = f"{name} · {_machine(device)}"
    remembered = _read(memory).get(key)
    for candidate in candidates:
        if isinstance(remembered, dict) and remembered.get("fastest") == candidate:
            return candidate
    seconds = _measure(prepare(), candidates, device, attempt)
    chosen = _choose(seconds)
    _write(memory, key, {"fastest": chosen, "seconds": seconds})
    return chosen


def _candidates(batch: Activation, device: str) -> tuple[Precision, ...]:
    found: list[Precision] = ["float32"]
    if not isinstance(batch, Tokens) and batch.ndim == 4:
        found.append("channels_last")
    if has_bfloat16(device):
        found.append("bfloat16")
    return tuple(found)


def _measure(
    copied: nn.Module,
    candidates: Sequence[Precision],
    device: str,
    attempt: Callable[[nn.Module, Precision], None],
) -> dict[Precision, float]:
    """Seconds a batch, the shortest of the timed ones; in turns, so that a busy machine is unfair to none."""
    seconds: dict[Precision, float] = dict.fromkeys(candidates, float("inf"))
    for turn in range(1 + TIMED):
        for candidate in candidates:
            lay_out(copied, candidate)
            _wait_for(device)
            began = time.perf_counter()
            attempt(copied, candidate)
            _wait_for(device)
            if turn > 0:
                seconds[candidate] = min(seconds[candidate], time.perf_counter() - began)
    return seconds


def _choose(seconds: dict[Precision, float]) -> Precision:
    chosen: Precision = "float32"
    for candidate, share in NEEDED_SHARE.items():
        if candidate in seconds and seconds[candidate] <= share * seconds[chosen]:
            chosen = candidate
    return chosen


def _typical(rows: Labelled, n: int) -> np.ndarray:
    """The first rows, or texts of middle length."""
    lengths = rows.rows.lengths
    if lengths is None:
        return np.arange(min(n, len(rows.rows)))
    start = max(0, (len(lengths) - n) // 2)
    return np.argsort(lengths, kind="stable")[start : start + n]


def _shape(batch: Activation) -> str:
    """One sample's shape; of texts only what is the same for all of them."""
    values, skipped = (batch.values, 2) if isinstance(batch, Tokens) else (batch, 1)
    return "x".join(map(str, values.shape[skipped:])) or "ids"


def _wait_for(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)


def _machine(device: str) -> str:
    if device != "cpu":
        return f"torch {torch.__version__} · {torch.cuda.get_device_name(device)}"
    model = torch.backends.cpu.get_cpu_capability()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model += "".join(f" {line.partition(':')[2].strip()}" for line in lines if line.startswith("model name"))[:80]
    return f"torch {torch.__version__} · {model} · {torch.get_num_threads()} threads"


def _read(memory: Path) -> dict[str, object]:
    try:
        found = json.loads(memory.read_text())
    except (OSError, ValueError):  # missing or damaged: it is measured again
        return {}
    return found if isinstance(found, dict) else {}


def _write(memory: Path, key: str, answer: dict[str, object]) -> None:
    """Replace the file at once. What another process adds at the same moment may be lost, and is measured again."""
    partial = memory.with_name(f"{memory.name}.{os.getpid()}")
    with contextlib.suppress(OSError):  # a full disk is no reason to fail a trial
        memory.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps({**_read(memory), key: answer}, indent=2, sort_keys=True) + "\n")
        partial.replace(memory)
