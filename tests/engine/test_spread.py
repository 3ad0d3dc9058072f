"""Calls shared out over real children, and over the calling process where there is none."""

import os
import signal
import threading
import time

import pytest

from automl_tl.engine.slot import ChildDied, Children, Interrupted
from automl_tl.engine.slots import parse_slots
from automl_tl.engine.spread import Crew, spread

SLOTS = parse_slots("cpu*2", cores=2)
INLINE = parse_slots("inline", cores=1)


@pytest.fixture(scope="module")
def crew():
    with Children(SLOTS) as children:
        yield Crew(slots=SLOTS, children=children)


@pytest.fixture
def inline():
    return Crew(slots=INLINE, children=Children(INLINE))


def on_children(crew, function):
    """What `spread` calls: the function, on the slot's child."""
    return lambda slot, order: crew.children.run(slot, function, order)


def slow_square(number):
    import os
    import time

    time.sleep(0.1 if number % 2 else 0.0)
    return number * number, os.getpid()


def test_results_come_in_the_order_of_the_orders_whoever_was_first(crew):
    results = spread(crew, on_children(crew, slow_square), range(9))
    assert [square for square, _ in results] == [number * number for number in range(9)]
    assert len({pid for _, pid in results} - {os.getpid()}) == 2  # both slots took part


def test_the_calling_process_does_alone(inline):
    results = spread(inline, on_children(inline, slow_square), range(4))
    assert results == [(number * number, os.getpid()) for number in range(4)]


@pytest.mark.parametrize("orders", [[], [3]])
def test_few_orders(crew, orders):
    assert spread(crew, lambda slot, order: order, orders) == orders


def dies_once(order):
    """Kill the own process at the first call with this order."""
    import os
    import signal
    from pathlib import Path

    path, number = order
    if number == 2 and not Path(path).exists():
        Path(path).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_a_call_whose_child_died_is_tried_once_more(crew, tmp_path):
    orders = [(str(tmp_path / "died"), number) for number in range(5)]
    assert spread(crew, on_children(crew, dies_once), orders) == list(range(5))
    assert (tmp_path / "died").exists()


def dies_always(number):
    import os
    import signal

    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_a_call_that_kills_every_child_is_given_up(crew):
    with pytest.raises(ChildDied, match=r"was killed \(SIGKILL"):
        spread(crew, on_children(crew, dies_always), range(3))
    assert spread(crew, on_children(crew, slow_square), [5])[0][0] == 25  # the slots go on


def test_a_death_is_counted_for_its_call_alone(inline):
    died = []

    def call(slot, order):
        if died.count(order) == 0:
            died.append(order)
            raise ChildDied("was killed")
        return order

    assert spread(inline, call, range(6)) == list(range(6))
    assert sorted(died) == list(range(6))


def fails(number):
    if number == 3:
        raise KeyError("layer9")
    return number


@pytest.mark.parametrize("which", ["crew", "inline"])
def test_an_exception_is_raised_as_it_is_and_not_tried_again(request, which):
    crew = request.getfixturevalue(which)
    calls = []

    def call(slot, order):
        calls.append(order)
        return crew.children.run(slot, fails, order)

    with pytest.raises(KeyError, match="layer9"):
        spread(crew, call, range(1000))
    assert calls.count(3) == 1
    assert len(calls) < 1000  # nothing was begun after it
    assert spread(crew, call, [7, 8]) == [7, 8]  # the slots go on


def test_ticks_say_how_many_are_done(crew):
    heard = []
    spread(crew, lambda slot, order: time.sleep(0.2), range(6), tick=heard.append)
    assert heard == sorted(heard)
    assert set(heard) <= set(range(7))
    assert len(heard) > 0


def test_an_interrupt_stops_the_children():
    with Children(SLOTS) as children:
        crew = Crew(slots=SLOTS, children=children)
        threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            spread(crew, on_children(crew, time.sleep), [30.0, 30.0, 30.0])
        with pytest.raises(Interrupted):
            children.run(SLOTS[0], os.getpid)
