from __future__ import annotations

import pytest

from automl_tl.errors import PluginError
from automl_tl.model.replay import Replay


def test_recorded_values_come_back_in_the_asked_type():
    replay = Replay({"rate": 1, "k": 3, "kind": "wide", "bias": None})
    assert replay.suggest_float("rate", 0.0, 0.1) == 1.0
    assert isinstance(replay.suggest_float("rate", 0.0, 0.1), float)
    assert replay.suggest_int("k", 1, 2) == 3
    assert replay.suggest_categorical("kind", ("narrow",)) == "wide"
    assert replay.suggest_categorical("bias", ("x",)) is None


@pytest.mark.parametrize(("values", "known"), [({"hidden": 3}, "hidden"), ({}, "none")])
def test_a_name_that_was_not_suggested_is_the_plugins_mistake(values, known):
    with pytest.raises(PluginError, match=rf"'width' was not suggested when the trial was planned \(known: {known}\)"):
        Replay(values).suggest_int("width", 1, 2)
