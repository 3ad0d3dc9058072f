from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import TrialState

from automl_tl.engine.slots import parse_slots
from automl_tl.search.search import Budget, Clock
from automl_tl.search.status import status_of


@pytest.fixture
def slots():
    return parse_slots("cpu*2", cores=2)


class Scene:
    """A search without data: trials come and go by hand."""

    def __init__(self):
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.study = optuna.create_study(direction="maximize")
        self.clock = Clock(began=0.0)
        self.metric = "f1_macro"
        self.context = SimpleNamespace(weights="transferred")
        self.budget = Budget(trials=5, seconds=None, max_epochs=8, recipes=True, keep_checkpoints=1)

    def begin(self, slot, strategy="last_k", **attributes):
        trial = self.study.ask()
        spec = {"backbone": "mobilenet_v2", "strategy": strategy, "head": "linear"}
        for name, value in {"slot": slot.name, "spec": spec, **attributes}.items():
            trial.set_user_attr(name, value)
        return trial

    def end(self, trial, score=None, state=TrialState.COMPLETE, **attributes):
        for name, value in {"at": 12.5, "validation": {"log_loss": 0.0}, **attributes}.items():
            trial.set_user_attr(name, value)
        self.study.tell(trial, score, state=state)

    @property
    def status(self):
        return status_of(self)


@pytest.fixture
def scene():
    return Scene()
