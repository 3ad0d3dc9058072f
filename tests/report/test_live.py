"""The live display: plain lines where nobody watches, a panel in a terminal."""

import io
import time
from dataclasses import replace

import pytest
from optuna.trial import TrialState
from rich.console import Console

from automl_tl.report.live import Display


def plain():
    return Console(file=io.StringIO(), width=60)


def terminal():
    return Console(file=io.StringIO(), force_terminal=True, width=120, color_system=None)


def told(display):
    """What was printed since the last look."""
    file = display.console.file
    text = file.getvalue()
    file.seek(0)
    file.truncate()
    return text


def test_one_plain_line_a_trial_however_narrow_the_output(scene, slots):
    with Display(plain()) as display:
        display.begin(scene, slots)
        assert told(display) == "searching 5 trials, maximizing validation f1_macro\n"
        first = scene.begin(slots[0], recipe="linear probe (mobilenet_v2)", strategy="linear_probe")
        second = scene.begin(slots[1])
        display.tick(scene.status)
        assert told(display) == ""

        scene.end(first, 0.75)
        display.tick(scene.status)
        assert told(display) == (
            "[   12.5 s] trial 0 complete 0.7500  mobilenet_v2 · linear_probe · linear"
            "  recipe: linear probe (mobilenet_v2)  (best 0.7500)\n"
        )
        scene.end(second, 0.5)
        display.tick(scene.status)
        display.tick(scene.status)
        assert told(display) == "[   12.5 s] trial 1 complete 0.5000  mobilenet_v2 · last_k · linear  (best 0.7500)\n"
        display.end(scene.status)
        assert told(display) == ""


def test_a_pruned_trial_is_never_the_best(scene, slots):
    with Display(plain()) as display:
        display.begin(scene, slots)
        pruned, complete = scene.begin(slots[0]), scene.begin(slots[1])
        pruned.report(0.9, 2)
        scene.end(pruned, state=TrialState.PRUNED)
        display.tick(scene.status)
        scene.end(complete, 0.6)
        told(display)
        display.tick(scene.status)
        assert told(display).endswith("trial 1 complete 0.6000  mobilenet_v2 · last_k · linear  (best 0.6000)\n")


def test_failures_are_warned_of_with_their_reason(scene, slots):
    with Display(plain()) as display:
        display.begin(scene, slots)
        scene.end(scene.begin(slots[0]), state=TrialState.FAIL, reason="trial 0 (…): KeyError: 'layer9' [/layer9]")
        display.end(scene.status)
    lines = told(display).splitlines()
    assert lines[1] == "[   12.5 s] trial 0 fail  mobilenet_v2 · last_k · linear"
    assert lines[2] == "warning: trial 0 failed: trial 0 (…): KeyError: 'layer9' [/layer9]"


@pytest.mark.parametrize(
    ("trials", "seconds", "last", "text"),
    [
        (5, None, None, "5 trials"),
        (None, 60.4, 60.4, "60 s"),
        (5, 60.4, None, "5 trials or 60 s"),
        (None, 60.4, 90.4, "60 to 90 s"),
    ],
)
def test_the_budget_is_announced(scene, slots, trials, seconds, last, text):
    deadline, last_moment = (time.time() + each if each else None for each in (seconds, last))
    budget = replace(scene.budget, trials=trials, seconds=seconds, deadline=deadline)
    scene.budget = replace(budget, last_moment=last_moment)
    with Display(plain()) as display:
        display.begin(scene, slots)
    assert told(display).startswith(f"searching {text}, maximizing")


def test_the_panel_shows_counts_slots_and_the_best_so_far(scene, slots):
    with Display(terminal()) as display:
        display.begin(scene, slots)
        scene.end(scene.begin(slots[0], strategy="suffix"), 0.8123)
        scene.end(scene.begin(slots[0]), state=TrialState.PRUNED)
        running = scene.begin(slots[1], strategy="lp_ft")
        running.report(0.4567, 3)
        display.tick(scene.status)
        display._live.refresh()
        panel = told(display)
        assert "trials: 2 done (1 complete, 1 pruned, 0 failed), 1 running" in panel
        assert "best so far: 0.8123  mobilenet_v2 · suffix · linear" in panel
        rows = {line.split()[0]: line.split() for line in panel.splitlines() if line.startswith("cpu")}
        assert rows["cpu0"] == ["cpu0", "–"]
        assert rows["cpu1"] == ["cpu1", "2", "3/8", "0.4567", "mobilenet_v2", "·", "lp_ft", "·", "linear"]

        scene.end(running, 0.5)
        display.end(scene.status)
        assert display._live is None
        assert "trial 2 complete 0.5000" in told(display)


def test_the_panel_shows_how_much_is_left(scene, slots):
    scene.budget = replace(scene.budget, trials=None, seconds=100.0, deadline=time.time() + 100)
    with Display(terminal()) as display:
        display.begin(scene, slots)
        display.tick(scene.status)
        display._live.refresh()
        assert " s left" in told(display)


def test_the_panel_goes_away_when_the_run_is_interrupted(scene, slots):
    display = Display(terminal())

    def interrupted():
        with display:
            display.begin(scene, slots)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert display._live is None


def test_a_quiet_console_shows_nothing(scene, slots):
    console = Console(file=io.StringIO(), quiet=True, force_terminal=True)
    with Display(console) as display:
        display.begin(scene, slots)
        scene.end(scene.begin(slots[0]), 0.5)
        display.end(scene.status)
        display.warn("careful")
    assert told(display) == ""


def test_every_line_is_kept_in_the_log(scene, slots, tmp_path):
    log = tmp_path / "log.txt"
    with Display(Console(quiet=True), log=log) as display:
        display.say("first [bold]")
        display.warn("second")
    lines = log.read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == ["first [bold]", "warning: second"]


def test_long_steps_say_how_far_they_are(monkeypatch):
    moments = iter([0.0, 0.1, 3.0, 3.1, 9.0])
    monkeypatch.setattr("automl_tl.report.live.time.monotonic", lambda: next(moments))
    with Display(plain()) as display:
        for done in (0, 10, 20, 30, 90):
            display.progress("preparing train samples", done, 100)
    assert told(display) == "preparing train samples: 20 of 100\npreparing train samples: 90 of 100\n"


def test_a_step_that_stands_still_is_told_once(monkeypatch):
    moments = iter(range(0, 30, 3))
    monkeypatch.setattr("automl_tl.report.live.time.monotonic", lambda: next(moments))
    with Display(plain()) as display:
        for done in (0, 1, 1, 1, 2):
            display.progress("fold 1 of 2", done, 5)
    assert told(display) == "fold 1 of 2: 1 of 5\nfold 1 of 2: 2 of 5\n"
