"""What it takes to pad small maps beforehand, to let the convolution do it, and to choose as the image backbones do.

Depthwise convolutions of maps of every size that images of 32 to 256 pixels shrink to, in the widths of
EfficientNet-Lite0, once forward alone and once with gradients. Each time is the median of some repeats, a few in
a row after one that does not count: what leaves threads asleep makes the next one wait for them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from itertools import product
from statistics import median

import torch
from results import circumstances, keep
from torch import Tensor, nn
from torch.nn import functional

from automl_tl_builtins.networks.padding import PaddedConv2d

BATCH = 32
IN_A_ROW = 5
WIDTHS = {1: 1152, 2: 1152, 4: 672, 8: 240, 16: 144}  # channels of maps of so many pixels a side
KERNELS = (3, 5)
BEFOREHAND, INSIDE, CHOSEN = "beforehand", "inside", "chosen"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=6)
    options = parser.parse_args()
    about = circumstances()
    rows, facts = [], []
    for gradients, (size, width), kernel in product((False, True), WIDTHS.items(), KERNELS):
        seconds = measure(size, width, kernel, gradients=gradients, repeats=options.repeats)
        what = "forward and backward" if gradients else "forward"
        ratios = [f"{seconds[BEFOREHAND] / seconds[way]:.2f}" for way in (INSIDE, CHOSEN)]
        rows.append([what, f"{size} x {size}", f"{kernel} x {kernel}", str(width), *ratios])
        facts.append({"gradients": gradients, "size": size, "kernel": kernel, "width": width, "seconds": seconds})
    header = ["", "map", "kernel", "channels", "inside: times sooner", "as chosen: times sooner"]
    note = f"Times sooner than with padding beforehand; batches of {BATCH}, channels last, depthwise."
    keep("padding", header, rows, {"circumstances": about, "seconds": facts}, note)


def measure(size: int, width: int, kernel: int, *, gradients: bool, repeats: int) -> dict[str, float]:
    """The seconds that each way takes."""
    chosen = PaddedConv2d(width, width, kernel, groups=width)
    inside = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width, bias=False)
    bare = nn.Conv2d(width, width, kernel, groups=width, bias=False)
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        BEFOREHAND: lambda x: bare(functional.pad(x, (kernel // 2,) * 4)),
        INSIDE: inside,
        CHOSEN: chosen,
    }
    maps = torch.randn(BATCH, width, size, size).contiguous(memory_format=torch.channels_last)
    maps.requires_grad_(gradients)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    with torch.set_grad_enabled(gradients):
        for _ in range(repeats):
            for way, convolve in ways.items():
                for _ in range(1 + IN_A_ROW):
                    began = time.perf_counter()
                    found = convolve(maps)
                    if gradients:
                        torch.autograd.backward(found, torch.ones_like(found))
                    seconds[way].append(time.perf_counter() - began)
                del seconds[way][-1 - IN_A_ROW]
    return {way: median(found) for way, found in seconds.items()}


if __name__ == "__main__":
    main()
