import itertools
import signal
import threading

import pytest

from automl_tl.engine.slots import parse_slots
from automl_tl.engine.supervise import supervise

SLOTS = parse_slots("cpu*3", cores=3)
INLINE = parse_slots("inline", cores=1)


@pytest.mark.parametrize("slots", [SLOTS, SLOTS[:1], INLINE], ids=["three", "one", "inline"])
def test_every_slot_is_served_until_there_is_no_more_work(slots):
    work = iter(range(30))
    together = threading.Barrier(len(slots), timeout=20)
    served = []

    def ticket(slot):
        if not any(name == slot.name for name, _ in served):
            together.wait()  # every slot gets here, or the barrier breaks
        number = next(work, None)
        served.append((slot.name, number))
        return number is not None

    supervise(slots, ticket, stop=threading.Event())

    assert sorted(number for _, number in served if number is not None) == list(range(30))
    assert sorted(name for name, number in served if number is None) == sorted(slot.name for slot in slots)


@pytest.mark.parametrize("slots", [SLOTS, INLINE], ids=["three", "inline"])
def test_stop_ends_all(slots):
    stop = threading.Event()
    count = itertools.count()

    def ticket(slot):
        if next(count) == 10:
            stop.set()
        return True

    supervise(slots, ticket, stop=stop)

    assert stop.is_set()


@pytest.mark.parametrize("slots", [SLOTS, INLINE], ids=["three", "inline"])
def test_the_first_exception_stops_all_and_is_raised(slots):
    stop = threading.Event()

    def ticket(slot):
        if slot == slots[-1]:
            raise ValueError(f"no good on {slot.name}")
        stop.wait(20)
        raise KeyError("later")

    with pytest.raises(ValueError, match="no good on"):
        supervise(slots, ticket, stop=stop)
    assert stop.is_set()


def test_ticks_come_on_the_calling_thread_while_tickets_run():
    ticked = threading.Event()
    threads = []

    def tick():
        threads.append(threading.current_thread())
        if len(threads) == 3:
            ticked.set()

    def ticket(slot):
        assert ticked.wait(20)
        return False

    supervise(SLOTS, ticket, stop=threading.Event(), tick=tick, interval=0.01)

    assert set(threads) == {threading.current_thread()}


def test_ctrl_c_is_heard_while_tickets_run():
    stop, killed = threading.Event(), threading.Event()
    running = threading.Barrier(len(SLOTS), action=lambda: signal.raise_signal(signal.SIGINT))
    ended = []

    def ticket(slot):
        running.wait(20)
        assert killed.wait(20)
        ended.append(slot.name)
        return True

    with pytest.raises(KeyboardInterrupt):
        supervise(SLOTS, ticket, stop=stop, on_interrupt=killed.set)

    assert stop.is_set()
    assert sorted(ended) == ["cpu0", "cpu1", "cpu2"]


def test_ctrl_c_ends_an_inline_ticket():
    stop, calls = threading.Event(), []

    with pytest.raises(KeyboardInterrupt):
        supervise(
            INLINE,
            lambda slot: bool(signal.raise_signal(signal.SIGINT)),
            stop=stop,
            on_interrupt=lambda: calls.append("interrupt"),
        )

    assert stop.is_set()
    assert calls == ["interrupt"]


def test_a_failing_display_ends_the_run():
    stop = threading.Event()

    def tick():
        raise OSError("no terminal")

    with pytest.raises(OSError, match="no terminal"):
        supervise(SLOTS, lambda slot: stop.wait(20), stop=stop, tick=tick, interval=0.01)
