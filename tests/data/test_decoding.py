"""Images are decoded in order, by one thread or several, and a flaw is raised where it is met."""

import threading
import time

import pytest

from automl_tl.data.decoding import AHEAD, SLOW, TRIED, decode_in_order

COUNTS = (0, 1, TRIED, TRIED + 1, TRIED + AHEAD + 3)


@pytest.mark.parametrize("count", COUNTS)
def test_quick_images_are_decoded_by_the_caller(count):
    threads = set()

    def decode(index):
        threads.add(threading.current_thread())
        return index**2

    assert list(decode_in_order(decode, count)) == [index**2 for index in range(count)]
    assert threads <= {threading.current_thread()}


@pytest.mark.parametrize("count", COUNTS)
def test_slow_images_are_decoded_on_threads_and_come_in_order(count):
    threads = set()

    def decode(index):
        time.sleep(SLOW * (2 if index < TRIED else index % 3))
        threads.add(threading.current_thread())
        return index

    assert list(decode_in_order(decode, count)) == list(range(count))
    assert bool(threads - {threading.current_thread()}) == (count > TRIED)


@pytest.mark.parametrize("pause", [0.0, 2 * SLOW])
def test_an_error_is_raised_at_its_place(pause):
    def decode(index):
        time.sleep(pause)
        if index == TRIED + 5:
            raise OSError("truncated")
        return index

    images = decode_in_order(decode, 100)
    assert [next(images) for _ in range(TRIED + 5)] == list(range(TRIED + 5))
    with pytest.raises(OSError, match="truncated"):
        next(images)
