"""Decoding many images in order: on threads, where one takes long enough to be worth handing over."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import TypeVar

T = TypeVar("T")

TRIED = 16  # images that are timed first
SLOW = 1e-3  # seconds an image; to hand a smaller one over takes longer than to decode it
AHEAD = 256  # images that wait to be consumed, at most


def decode_in_order(decode: Callable[[int], T], count: int) -> Iterator[T]:
    """Yield `decode(index)` for each index below `count`; it is to release the interpreter lock, as Pillow does."""
    tried, seconds = min(TRIED, count), list[float]()
    for index in range(tried):
        began = time.perf_counter()
        found = decode(index)
        seconds.append(time.perf_counter() - began)
        yield found
    if tried == count or median(seconds) < SLOW:  # the first one may load what decodes
        yield from map(decode, range(tried, count))
        return
    with ThreadPoolExecutor() as threads:
        for start in range(tried, count, AHEAD):
            yield from threads.map(decode, range(start, min(start + AHEAD, count)))
