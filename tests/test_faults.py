"""Whatever dies, and whenever: in the end every configuration was finished exactly once, and no process is left."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from automl_tl import api
from automl_tl.run import TRANSFERRED
from automl_tl.search.study import open_storage, open_study, settled

PATIENCE = 60.0  # seconds that a test waits for what must happen; far more than it takes

SLOW = """
    import os
    import time
    from pathlib import Path

    import torch
    from torch import nn

    from automl_tl.plugin import Backbone, TabularInput, hookimpl

    HERE = Path(__file__).parent

    class Slow(nn.Linear):
        def forward(self, inputs):
            if self.training:
                (HERE / f"training-{os.getpid()}").touch()
                began = time.monotonic()
                while time.monotonic() - began < float((HERE / "pace").read_text()):
                    time.sleep(0.01)
            return super().forward(inputs)

    def build(*, input_shape, weights):
        module = nn.Module()
        module.only = Slow(*input_shape, 8)
        return module

    @hookimpl
    def automl_tl_backbones():
        yield Backbone(name="slow", description="", input=TabularInput(), layer_groups=("only",), build=build)
"""


class Scene:
    """A search with a backbone that waits in each step, for as long as the file `pace` says."""

    def __init__(self, folder):
        self.plugins = folder / "plugins"
        self.run = folder / "run"
        self.hosts = []
        self.plugins.mkdir()
        (self.plugins / "slow.py").write_text(textwrap.dedent(SLOW))
        self.wait(60)

    def wait(self, seconds):
        pace = self.plugins / "pace.partial"
        pace.write_text(str(seconds))
        pace.replace(self.plugins / "pace")

    def config(self, **search):
        return {
            "data": "sklearn:wine",
            "backbones": "slow",
            "strategies": "full_finetune",
            "heads": "linear",
            "search": {"max_epochs": 1, **search},
            "plugins": {"dirs": [str(self.plugins)]},
            "run_dir": str(self.run),
        }

    def start(self, *arguments):
        """A host of its own, in a session of its own."""
        host = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "automl_tl", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.hosts.append(host)
        return host

    def start_search(self, trials):
        config = self.run.with_name("slow.json.yaml")
        config.write_text(json.dumps(self.config(trials=trials)))
        host = self.start("search", config, "--slots", "cpu*1")
        self.training(host)
        return host

    def training(self, host=None):
        """Wait until a process trains, and return it."""

        def trains():
            assert host is None or host.poll() is None, host.communicate()
            return [int(path.name.partition("-")[2]) for path in self.plugins.glob("training-*")]

        pid = wait_until(trains)[0]
        for path in self.plugins.glob("training-*"):
            path.unlink()
        return pid

    def study(self):
        return open_study(open_storage(self.run / "study.db"), TRANSFERRED, seed=0)

    def check(self, budget):
        """Every configuration that was ever begun is among those that ended for good, and each of them once."""
        trials = self.study().trials
        ended = [str(sorted(trial.params.items())) for trial in settled(self.study())]
        assert len(ended) == len(set(ended)) == budget
        assert {str(sorted(trial.params.items())) for trial in trials} == set(ended)
        assert {trial.state.name for trial in trials} <= {"COMPLETE", "PRUNED", "FAIL"}
        result = json.loads((self.run / "result.json").read_text())
        assert sum(result["trials"].values()) == budget
        assert result["failures"] == []


def wait_until(condition):
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)
    return found


def in_session(session):
    """Processes of a session that are alive."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, owner = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(owner) == session and state != "Z":
            found.append(int(stat.parent.name))
    return found


@pytest.fixture
def scene(tmp_path):
    scene = Scene(tmp_path)
    yield scene
    for host in scene.hosts:
        for pid in in_session(host.pid):  # only where a test failed
            os.kill(pid, signal.SIGKILL)
        host.communicate()


@pytest.mark.slow
def test_a_killed_child(scene):
    finished = []
    config = {**scene.config(trials=5), "slots": "cpu*2"}
    host = threading.Thread(target=lambda: finished.append(api.search(config)), daemon=True)
    host.start()
    killed = scene.training()
    os.kill(killed, signal.SIGKILL)
    scene.wait(0)
    host.join(PATIENCE)

    assert finished
    scene.check(budget=5)
    [dead] = [trial for trial in scene.study().trials if "requeued" in trial.user_attrs]
    assert dead.user_attrs["reason"].startswith("the process of slot 'cpu")
    [again] = [trial for trial in scene.study().trials if trial.user_attrs.get("repeats") == dead.number]
    assert (again.params, again.user_attrs["crashes"]) == (dead.params, 1)
    assert {trial.user_attrs["slot"] for trial in scene.study().trials} == {"cpu0", "cpu1"}


@pytest.mark.slow
def test_a_killed_host_and_whoever_comes_too_early(scene, cli):
    host = scene.start_search(trials=3)

    answer = cli("resume", scene.run)
    assert answer.code == 2
    assert f"{scene.run} is in use by process {host.pid} on" in answer.err

    host.kill()
    host.wait()
    wait_until(lambda: not in_session(host.pid))
    assert [trial.state.name for trial in scene.study().trials].count("RUNNING") == 1

    scene.wait(0)
    answer = cli("resume", scene.run, "--slots", "inline")
    assert (answer.code, answer.err) == (0, "")
    scene.check(budget=3)


@pytest.mark.slow
def test_an_interrupted_host(scene, cli):
    host = scene.start_search(trials=3)
    os.killpg(host.pid, signal.SIGINT)  # as a terminal does
    out, err = host.communicate(timeout=PATIENCE)  # the trial itself would take half an hour

    assert (host.returncode, err) == (130, "")
    assert out.splitlines()[-1].endswith(f"Go on with: automl-tl resume {scene.run}")
    wait_until(lambda: not in_session(host.pid))
    assert [trial.state.name for trial in scene.study().trials if trial.state.name != "WAITING"] == ["FAIL"]

    scene.wait(0)
    answer = cli("resume", scene.run, "--slots", "inline")
    assert (answer.code, answer.err) == (0, "")
    scene.check(budget=3)


@pytest.mark.parametrize("lost", [["result.json"], ["result.json", "model"], ["model/model.json", "result.json"]])
def test_a_host_killed_while_it_finished(wine_run, wine_result, tmp_path, cli, lost):
    run = shutil.copytree(wine_run, tmp_path / "run")
    for name in lost:
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (run / "model").mkdir(exist_ok=True)
    (run / "model" / "model.safetensors.123.partial").write_text("half")

    answer = cli("resume", run)
    assert (answer.code, answer.err) == (0, "")
    again = json.loads((run / "result.json").read_text())
    for key in ("trials", "best", "validation", "test", "baselines", "incumbents"):
        assert again[key] == wine_result[key]
    assert len(api.load_run(run).study.trials) == 2


def test_a_host_killed_before_its_search_began(wine_run, wine_result, tmp_path, cli):
    run = shutil.copytree(wine_run, tmp_path / "run")
    for path in run.iterdir():
        if path.name not in ("config.yaml", "origin.json", "lock"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    answer = cli("resume", run)
    assert (answer.code, answer.err) == (0, "")
    assert json.loads((run / "result.json").read_text())["test"] == wine_result["test"]
