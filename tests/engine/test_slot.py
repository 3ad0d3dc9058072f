"""Real processes, as few as will do. What is sent to a child is from the standard library or a local function."""

import operator
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import automl_tl.errors
from automl_tl.engine.child import warm_torch
from automl_tl.engine.slot import ChildDied, Children, ChildTraceback, Interrupted
from automl_tl.engine.slots import parse_slots

SLOTS = parse_slots("cpu*2", cores=6)
INLINE = parse_slots("inline", cores=2)
ROOT = Path(automl_tl.errors.__file__).parents[1]


@pytest.fixture(scope="module")
def children():
    with Children(SLOTS) as children:
        yield children


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:  # where nobody reaps orphans, a dead process stays visible as a zombie
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return not Path("/proc").exists()
    return state != "Z"


def wait_until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_each_slot_keeps_one_child_of_its_own(children):
    first, second = SLOTS
    pids = [children.run(slot, os.getpid) for slot in (first, second, first, second)]

    assert pids[:2] == pids[2:]
    assert len({*pids, os.getpid()}) == 3


def test_child_has_the_slots_environment_and_its_own_process_group(children):
    (slot, _) = SLOTS

    assert children.run(slot, os.getenv, "OMP_NUM_THREADS") == "3"
    assert children.run(slot, os.getenv, "CUDA_VISIBLE_DEVICES") == ""
    assert children.run(slot, os.getpgrp) == children.run(slot, os.getpid)
    assert children.run(slot, signal.getsignal, signal.SIGINT) == signal.SIG_IGN


def test_results_larger_than_a_pipe_come_back(children):
    assert len(children.run(SLOTS[0], bytes, 5_000_000)) == 5_000_000


def test_an_exception_is_raised_as_it_is_with_the_childs_traceback(children):
    with pytest.raises(ZeroDivisionError, match="division by zero") as caught:
        children.run(SLOTS[0], operator.truediv, 1, 0)

    assert isinstance(caught.value.__cause__, ChildTraceback)
    assert "in serve" in str(caught.value.__cause__)


def test_an_exception_that_cannot_be_pickled_still_says_what_happened(children):
    def fail():
        class Odd(Exception):
            def __init__(self, a, b):
                super().__init__(f"{a} and {b}")

        raise Odd(1, 2)

    with pytest.raises(RuntimeError, match="Odd: 1 and 2"):
        children.run(SLOTS[0], fail)


def test_a_child_whose_gpu_takes_no_more_work_is_replaced(children):
    def fail():
        raise RuntimeError("CUDA error: device-side assert triggered")

    pid = children.run(SLOTS[0], os.getpid)
    with pytest.raises(RuntimeError, match="device-side assert"):
        children.run(SLOTS[0], fail)
    assert children.run(SLOTS[0], os.getpid) != pid


def test_what_cannot_be_pickled_leaves_the_child_alone(children):
    pid = children.run(SLOTS[0], os.getpid)

    with pytest.raises(TypeError, match="cannot pickle"):
        children.run(SLOTS[0], print, threading.Lock())
    with pytest.raises(TypeError, match="cannot pickle"):
        children.run(SLOTS[0], threading.Lock)
    assert children.run(SLOTS[0], os.getpid) == pid


def test_a_killed_child_costs_its_call_only(children):
    first, second = SLOTS
    pid, other = children.run(first, os.getpid), children.run(second, os.getpid)
    killer = threading.Timer(0.2, os.kill, (pid, signal.SIGKILL))
    killer.start()

    with pytest.raises(ChildDied, match=r"the process of slot 'cpu0' was killed \(SIGKILL; .*\) while it ran sleep"):
        children.run(first, time.sleep, 60)

    killer.join()
    assert children.run(first, os.getpid) not in (pid, other)
    assert children.run(second, os.getpid) == other


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (lambda: sys.exit(3), "exited with code 3"),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "crashed .SIGSEGV; see its traceback on stderr."),
    ],
    ids=["exit", "segfault"],
)
def test_the_way_a_child_ended_is_named(children, end, message):
    with pytest.raises(ChildDied, match=message):
        children.run(SLOTS[0], end)


def test_a_child_that_died_idle_is_replaced(children):
    pid = children.run(SLOTS[0], os.getpid)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(pid))

    assert children.run(SLOTS[0], os.getpid) != pid


def test_a_dead_childs_own_children_are_not_left_behind(children, tmp_path):
    def start_one_and_die():
        sleeper = subprocess.Popen(["sleep", "60"])
        (tmp_path / "pid").write_text(str(sleeper.pid))
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(ChildDied):
        children.run(SLOTS[0], start_one_and_die)

    pid = int((tmp_path / "pid").read_text())
    wait_until(lambda: not is_alive(pid))


def test_stop_interrupts_what_runs_and_what_comes_later():
    outcome = []
    with Children(SLOTS[:1]) as children:
        pid = children.run(SLOTS[0], os.getpid)

        def sleep_long():
            try:
                children.run(SLOTS[0], time.sleep, 60)
            except Interrupted as error:
                outcome.append(error)

        sleeper = threading.Thread(target=sleep_long)
        sleeper.start()
        time.sleep(0.2)
        children.stop()
        sleeper.join()

        assert len(outcome) == 1
        assert not is_alive(pid)
        with pytest.raises(Interrupted, match="slot 'cpu0' was stopped before its call began"):
            children.run(SLOTS[0], os.getpid)


def test_warm_runs_once_a_child_before_its_first_call():
    def mark(slot):
        os.environ["MARK"] = os.environ.get("MARK", "") + slot.name

    with Children(SLOTS[:1], warm=mark) as children:
        assert [children.run(SLOTS[0], os.getenv, "MARK") for _ in range(2)] == ["cpu0", "cpu0"]


def test_a_warm_that_fails_is_raised_by_the_call():
    def fail(slot):
        raise ImportError(f"no plugin for {slot.name}")

    with Children(SLOTS[:1], warm=fail) as children:
        for _ in range(2):
            with pytest.raises(ImportError, match="no plugin for cpu0"):
                children.run(SLOTS[0], os.getpid)


def test_children_can_be_warmed_before_anything_is_asked_of_them(tmp_path):
    def mark(slot):
        (tmp_path / f"{slot.name}-{os.getpid()}").touch()

    with Children((*SLOTS, *INLINE), warm=mark) as children:
        children.warm_up(at_once=2)
        wait_until(lambda: len(list(tmp_path.iterdir())) == len(SLOTS))
        pids = {f"{slot.name}-{children.run(slot, os.getpid)}" for slot in SLOTS}
        assert pids == {path.name for path in tmp_path.iterdir()}  # they are the ones that work, and warm only once


def test_children_can_be_warmed_one_after_the_other(tmp_path):
    def mark(slot):
        others = [path.name for path in tmp_path.iterdir()]
        (tmp_path / slot.name).write_text("alone" if not any("warming" in name for name in others) else str(others))
        busy = tmp_path / f"{slot.name}-warming"
        busy.touch()
        time.sleep(0.2)
        busy.unlink()

    with Children(SLOTS, warm=mark) as children:
        children.warm_up(at_once=1)
        wait_until(lambda: {path.name for path in tmp_path.iterdir()} == {slot.name for slot in SLOTS})
        assert {path.read_text() for path in tmp_path.iterdir()} == {"alone"}


def test_children_go_on_warming_while_nobody_uses_their_slot(tmp_path):
    def work(slot):
        (tmp_path / "ready").touch()

    def more():
        (tmp_path / f"more-{os.getpid()}").touch()

    with Children(SLOTS[:1], warm=work) as children:
        children.warm_up(at_once=1, while_idle=(more,))
        wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
        assert (tmp_path / f"more-{children.run(SLOTS[0], os.getpid)}").exists()


def test_a_used_slot_is_not_kept_from_its_work_by_more_warming(tmp_path):
    def dawdle():
        (tmp_path / "dawdled").touch()
        time.sleep(0.2)

    with Children(SLOTS[:1]) as children:
        assert children.run(SLOTS[0], os.getpid)
        children.warm_up(at_once=1, while_idle=(dawdle,))
        pids = {children.run(SLOTS[0], os.getpid) for _ in range(5)}
        time.sleep(0.2)
        assert len(pids) == 1
        assert not (tmp_path / "dawdled").exists()


def test_what_fails_while_a_child_is_idle_is_nobodys_failure(tmp_path):
    def fail():
        (tmp_path / "failed").touch()
        raise ImportError("not installed")

    with Children(SLOTS[:1]) as children:
        children.warm_up(at_once=1, while_idle=(fail, fail))
        wait_until(lambda: (tmp_path / "failed").exists())
        assert children.run(SLOTS[0], os.getpid)


def test_what_fails_while_warming_up_is_raised_by_the_first_call():
    def fail(slot):
        raise ImportError(f"no plugin for {slot.name}")

    with Children(SLOTS[:1], warm=fail) as children:
        children.warm_up(at_once=2)
        with pytest.raises(ImportError, match="no plugin for cpu0"):
            children.run(SLOTS[0], os.getpid)


def test_children_that_are_warming_up_can_be_stopped(tmp_path):
    def dawdle(slot):
        (tmp_path / str(os.getpid())).touch()
        time.sleep(60)

    with Children(SLOTS[:1], warm=dawdle) as children:
        children.warm_up(at_once=2)
        wait_until(lambda: list(tmp_path.iterdir()))
    [path] = tmp_path.iterdir()
    assert not is_alive(int(path.name))


@pytest.mark.slow
def test_torch_gets_the_slots_threads():
    def threads():
        import torch

        return torch.get_num_threads(), torch.get_num_interop_threads()

    with Children(SLOTS[:1], warm=warm_torch) as children:
        assert children.run(SLOTS[0], threads) == (3, 1)


def test_inline_runs_in_this_process():
    (slot,) = INLINE
    warmed = []
    with Children(INLINE, warm=warmed.append) as children:
        lock = threading.Lock()
        assert children.run(slot, os.getpid) == os.getpid()
        assert children.run(slot, lambda: lock) is lock
        with pytest.raises(ZeroDivisionError):
            children.run(slot, operator.truediv, 1, 0)
        children.stop()
        with pytest.raises(Interrupted):
            children.run(slot, os.getpid)
    assert warmed == [slot]


# A plain script: no `if __name__ == "__main__"`, and a function of its own.
SCRIPT = """
import os, sys, threading, time
from automl_tl.engine.slot import ChildDied, Children, Interrupted
from automl_tl.engine.slots import parse_slots
from automl_tl.engine.supervise import supervise

def announce():
    os.write(1, f"{os.getpid()}\\n".encode())  # whole lines, also where two children write

slots = parse_slots("cpu*2", cores=2)
stop = threading.Event()
with Children(slots) as children:
    def ticket(slot):
        try:
            children.run(slot, announce)
            children.run(slot, time.sleep, SECONDS)
        except Interrupted:
            os.write(1, f"interrupted on {slot.name}\\n".encode())
        return False
    try:
        supervise(slots, ticket, stop=stop, on_interrupt=children.stop)
    except KeyboardInterrupt:
        sys.exit(130)
"""


def start_host(seconds, path=None):
    code = SCRIPT.replace("SECONDS", str(seconds))
    if path is not None:
        path.write_text(code)
    host = subprocess.Popen(
        [sys.executable, str(path) if path else "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    if path is None:
        host.stdin.write(code)
    host.stdin.close()
    host.stdin = None
    return host


def test_a_program_from_stdin_needs_no_main_guard():
    host = start_host(0)
    out, err = host.communicate(timeout=60)

    assert (host.returncode, err) == (0, "")
    pids = [int(line) for line in out.splitlines()]
    assert len(set(pids)) == 2
    assert not any(is_alive(pid) for pid in pids)


def test_ctrl_c_ends_the_host_at_once_and_leaves_no_child(tmp_path):
    host = start_host(300, tmp_path / "script.py")
    pids = [int(host.stdout.readline()) for _ in range(2)]
    os.killpg(host.pid, signal.SIGINT)
    out, err = host.communicate(timeout=60)  # far less than the sleeps take

    assert (host.returncode, err) == (130, "")
    assert sorted(out.splitlines()) == ["interrupted on cpu0", "interrupted on cpu1"]
    assert not any(is_alive(pid) for pid in pids)


def test_children_die_with_a_killed_host(tmp_path):
    host = start_host(300, tmp_path / "script.py")
    pids = [int(host.stdout.readline()) for _ in range(2)]
    assert all(is_alive(pid) for pid in pids)
    host.kill()
    host.communicate(timeout=60)

    wait_until(lambda: not any(is_alive(pid) for pid in pids))
