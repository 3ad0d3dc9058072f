"""Which models make up the final one: heads on frozen features, what was trained, or both half and half."""

from types import SimpleNamespace

import numpy as np
import pytest

from automl_tl.finish import members as module
from automl_tl.finish.confirm import Confirmed
from automl_tl.finish.members import choose_members
from automl_tl.model.spec import TrialSpec
from automl_tl.plugin import GroupPlan, TransferPlan
from automl_tl.search.finalists import Finalist

CLASSES = 4


def finalist(number, *, floor):
    plan = TransferPlan((GroupPlan(group="g", action="freeze" if floor else "tune"),))
    spec = TrialSpec(backbone="b", plan=plan, fit="ridge" if floor else "descent")
    return Finalist(SimpleNamespace(number=number, user_attrs={"total_parameters": 10 + number}), spec, 1.0)


class Scene:
    """Heads that spoke of all samples, and something trained that spoke of `judged` of them; each errs by itself."""

    def __init__(self, monkeypatch, n, judged, heads, trained, *, seed=0):
        rng = np.random.default_rng(seed)
        self.labels = rng.integers(0, CLASSES, n)
        self.search = SimpleNamespace(
            prepared=SimpleNamespace(
                task=SimpleNamespace(kind="multiclass"), development=lambda: SimpleNamespace(labels=self.labels)
            ),
            metric="f1_macro",
            seed=0,
        )
        right = [*heads, *trained]
        kinds = [True] * len(heads) + [False] * len(trained)
        self.confirmed = [
            Confirmed(finalist(number, floor=floor), self.said(rng, accuracy, judged))
            for number, (accuracy, floor) in enumerate(zip(right, kinds, strict=True))
        ]
        whole = {each.finalist.number: each.probabilities.copy() for each in self.confirmed}
        for each in self.confirmed:
            if not each.finalist.floor:
                each.probabilities[judged:] = np.nan
        monkeypatch.setattr(module, "as_searched", lambda search, each: Confirmed(each, whole[each.number]))

    def said(self, rng, accuracy, judged):
        """Probabilities that are right of this share of the samples, of the first ones as of all."""
        right = np.concatenate([rng.permutation(n) < accuracy * n for n in (judged, len(self.labels) - judged)])
        wrong = (self.labels + rng.integers(1, CLASSES, len(self.labels))) % CLASSES
        shown = np.where(right, self.labels, wrong)
        logits = 1.5 * np.eye(CLASSES)[shown] + rng.normal(scale=0.3, size=(len(self.labels), CLASSES))
        return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)

    def choose(self, model="auto"):
        return choose_members(self.search, model, self.confirmed)


def shares(members):
    """Of heads and of what was trained."""
    floor = np.array([each.finalist.floor for each in members.confirmed])
    return members.weights[floor].sum(), members.weights[~floor].sum()


@pytest.mark.parametrize("trained", [0.75, 0.8, 0.85])
def test_what_is_about_as_good_as_the_heads_makes_half_of_the_model(monkeypatch, trained):
    """Also where it scores a little less: 40 samples could not tell."""
    found = Scene(monkeypatch, 200, 40, [0.8, 0.75], [trained]).choose()
    assert shares(found) == pytest.approx((0.5, 0.5))
    assert len(found.rows) == 40


def test_what_is_clearly_worse_leaves_and_all_samples_judge_the_heads(monkeypatch):
    found = Scene(monkeypatch, 400, 80, [0.85, 0.8], [0.4]).choose()
    assert all(each.finalist.floor for each in found.confirmed)
    assert len(found.rows) == 400
    assert found.trained_gain.below(1.5)


def test_with_enough_samples_what_is_far_better_has_more_than_half(monkeypatch):
    found = Scene(monkeypatch, 3000, 3000, [0.6], [0.97]).choose()
    assert shares(found)[1] > 0.9
    assert found.ensemble_gain.above(1.0)


def test_what_an_adjustment_by_all_samples_gains_the_heads_is_not_given_up(monkeypatch):
    scene = Scene(monkeypatch, 400, 80, [0.8], [0.8])
    monkeypatch.setattr(module, "_adjusting", lambda search, rows, said: 0.5 if len(rows) == 400 else 0.0)
    assert shares(scene.choose()) == (1.0, 0.0)


@pytest.mark.parametrize(("trained", "floor"), [(0.5, True), (0.99, False)])
def test_a_single_one_is_what_the_floor_rule_says(monkeypatch, trained, floor):
    found = Scene(monkeypatch, 600, 120, [0.8, 0.7], [trained]).choose("single")
    assert np.count_nonzero(found.weights) == 1
    assert found.confirmed[int(found.weights.argmax())].finalist.floor == floor
    assert len(found.rows) == (600 if floor else 120)


@pytest.mark.parametrize(("heads", "trained"), [([0.8, 0.8, 0.8], []), ([], [0.8, 0.8, 0.8])])
@pytest.mark.parametrize("model", ["auto", "ensemble"])
def test_of_one_kind_several_are_taken_where_they_pay(monkeypatch, heads, trained, model):
    found = Scene(monkeypatch, 400, 400, heads, trained).choose(model)
    assert np.count_nonzero(found.weights) > 1
    assert found.ensemble_gain.gain > 0
    assert found.trained_gain is None
