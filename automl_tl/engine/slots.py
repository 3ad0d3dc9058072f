"""Slots: the shares of this machine on which trials run side by side, and how a configuration names them.

No process starts here, and torch is imported only to count GPUs, when the text needs to know.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import joblib

from automl_tl.errors import ConfigError

DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # of Nvidia, of Nvidia under WSL, of AMD
INLINE = "inline"
"""The slot that runs in the calling process: for debugging, tiny tasks and tests."""

_EXPECTED = "auto, inline, a number, cpu*K or cuda:I*K joined by commas"
_ITEM = re.compile(r"(?:cpu|cuda:(?P<gpu>[0-9]+))(?:\*(?P<count>[0-9]+))?")
_CPU = None  # in a count of slots by GPU index: those without one


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A share of this machine: some cores, and one GPU or none."""

    name: str  # unique in a run
    device: Literal["cpu", "cuda"]  # "cuda" is always "cuda:0" inside: the child sees no other GPU
    environment: tuple[tuple[str, str], ...]  # of the child, set before it imports anything
    threads: int
    gpu: int = 0  # as this process counts them, where the device is one

    @property
    def torch_device(self) -> str:
        """As torch names it in the slot's child, which sees no GPU but its own."""
        return "cuda:0" if self.device == "cuda" else "cpu"

    @property
    def host_device(self) -> str:
        """As torch names it in the process that made the slot, which sees all GPUs."""
        return f"cuda:{self.gpu}" if self.device == "cuda" else "cpu"

    @property
    def inline(self) -> bool:
        """Whether its functions run in the calling process instead of a child."""
        return self.name == INLINE


def parse_slots(text: str, *, cores: int | None = None, gpus: int | None = None) -> tuple[Slot, ...]:
    """Return the slots that `text` asks for.

    `auto` is one slot a visible GPU, or else one per two cores; a number is as many slots, on the GPUs in turn where
    there are any; `cpu*2` and `cuda:0*2,cuda:1` name devices; `inline` runs in the calling process, on the CPU. All
    slots together never get more threads than cores (one each at least): training on oversubscribed cores was measured
    to be 3.5 times slower.

    `cores` and `gpus` default to what this process may use. Raises ConfigError.
    """
    text = text.strip()
    cores = usable_cores() if cores is None else cores
    if text == INLINE:
        return (Slot(name=INLINE, device="cpu", environment=(), threads=max(1, cores)),)

    if text == "auto":
        gpus = visible_gpus() if gpus is None else gpus
        wanted = Counter[int | None](range(gpus)) if gpus else Counter({_CPU: max(1, cores // 2)})
    elif re.fullmatch(r"[0-9]+", text):
        gpus = visible_gpus() if gpus is None else gpus
        wanted = Counter(index % gpus if gpus else _CPU for index in range(_at_least_one(text, text)))
    else:
        wanted = _named_devices(text)
        if set(wanted) != {_CPU}:
            gpus = visible_gpus() if gpus is None else gpus
            _check_gpus(wanted, gpus)

    threads = max(1, cores // wanted.total())
    names = _gpu_names(gpus or 0)
    return tuple(_slot(gpu, place, count, threads, names) for gpu, count in wanted.items() for place in range(count))


def usable_cores() -> int:
    """Return how many cores this process may use: affinity and container limits count."""
    cores: int = joblib.cpu_count()
    return cores


def visible_gpus() -> int:
    """Return how many CUDA devices torch can use here; imports torch where there is a driver for any."""
    if not any(Path(node).exists() for node in DRIVERS):
        return 0
    import torch

    return torch.cuda.device_count()


def _named_devices(text: str) -> Counter[int | None]:
    wanted: Counter[int | None] = Counter()
    for item in (part.strip() for part in text.split(",")):
        match = _ITEM.fullmatch(item)
        if match is None:
            raise ConfigError(f"slots: {item!r} is not a slot; expected {_EXPECTED}")
        gpu = _CPU if match["gpu"] is None else int(match["gpu"])
        wanted[gpu] += _at_least_one(match["count"] or "1", item)
    return wanted


def _at_least_one(count: str, item: str) -> int:
    if int(count) == 0:
        raise ConfigError(f"slots: {item!r} asks for no slot, at least 1 is needed; expected {_EXPECTED}")
    return int(count)


def _check_gpus(wanted: Counter[int | None], gpus: int) -> None:
    missing = sorted(gpu for gpu in wanted if gpu is not None and gpu >= gpus)
    if missing:
        there = f"torch sees {gpus} (from cuda:0 to cuda:{gpus - 1})" if gpus else "torch sees no GPU"
        raise ConfigError(f"slots: 'cuda:{missing[0]}' is not there, {there}; use one that is, cpu*K or auto")


def _gpu_names(gpus: int) -> tuple[str, ...]:
    """Return what CUDA_VISIBLE_DEVICES must say for each GPU: torch counts within the list that is already set."""
    listed = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    # CUDA stops reading the list at the first invalid entry, so it may be longer than the GPUs that are seen.
    return tuple(listed[:gpus]) if len(listed) >= gpus else tuple(str(index) for index in range(gpus))


def _slot(gpu: int | None, place: int, count: int, threads: int, names: tuple[str, ...]) -> Slot:
    environment = (
        ("CUDA_VISIBLE_DEVICES", "" if gpu is None else names[gpu]),
        ("OMP_NUM_THREADS", str(threads)),
        ("MKL_NUM_THREADS", str(threads)),
        # Threads that wait by spinning take the cores from whoever would let them go on, above all on a busy machine.
        ("OMP_WAIT_POLICY", "PASSIVE"),
    )
    if gpu is None:
        return Slot(name=f"cpu{place}", device="cpu", environment=environment, threads=threads)
    name = f"cuda{gpu}" if count == 1 else f"cuda{gpu}-{place}"
    return Slot(name=name, device="cuda", environment=environment, threads=threads, gpu=gpu)
