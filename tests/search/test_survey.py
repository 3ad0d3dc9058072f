"""Before anything trains: which backbones are scored and in which order, what comes of it, and who is drawn."""

import threading
import time
from collections import Counter
from dataclasses import replace

import pytest
from optuna.trial import TrialState

from automl_tl.engine.slot import ChildDied
from automl_tl.engine.slots import parse_slots
from automl_tl.errors import DataError
from automl_tl.features.shards import shard_directories
from automl_tl.features.store import FeatureStore
from automl_tl.search import passes
from automl_tl.search import survey as module
from automl_tl.search.passes import ROWS_PASSED, Passed
from automl_tl.search.proposals import enqueue_recipes
from automl_tl.search.scores import TapScore
from automl_tl.search.survey import BackboneScore, contenders, survey

INLINE = parse_slots("inline", cores=1)
RECIPES = {"recipes": True, "strategies": ("suffix", "linear_probe")}
BOTH = {"trained": (12, 6), "backbones": ("trained0", "trained1")}  # the second one is the smaller


class Told:
    """Hears what a survey says, and of how far it is."""

    def __init__(self):
        self.said, self.progress = [], []

    def tell(self, text):
        self.said.append(text)

    def show(self, what, done, n):
        self.progress.append((what, done, n))


def carry_out(search, crew, stop=None):
    told = Told()
    surveyed, scores = survey(search, crew, stop or threading.Event(), told.tell, told.show)
    return surveyed, scores, told


def recipes(search):
    return [trial.user_attrs.get("recipe") for trial in search.study.trials]


def test_the_cheapest_backbone_is_scored_first_and_leaves_a_model_at_once(make_picture_search, crew):
    search = make_picture_search(**RECIPES, **BOTH)
    seen = []
    told = Told()

    def tell(text):
        told.tell(text)
        seen.append(len(search.study.trials))

    surveyed, scores = survey(search, crew, threading.Event(), tell, told.show)
    assert [score.backbone for score in scores] == ["trained1", "trained0"]
    assert [text.partition(":")[0] for text in told.said] == ["trained1", "trained0"]
    assert seen == [0, 1]  # the first one's probe is done before the second one is scored
    assert recipes(search) == ["ridge on the best tap (trained1)", "ridge on the best tap (trained0)"]
    for trial, score in zip(search.study.trials, scores, strict=True):
        assert trial.state == TrialState.COMPLETE
        assert trial.user_attrs["inputs"] == "stored features"
        assert (trial.user_attrs["rows_passed"], trial.user_attrs["epochs"]) == (0, 0)
        assert [group["action"] for group in trial.user_attrs["spec"]["plan"]["groups"]].count(
            "freeze"
        ) == score.best.tap
    known = enqueue_recipes(surveyed).study.trials
    assert Counter(trial.user_attrs["recipe"] for trial in known).most_common(1)[0][1] == 1  # none of them twice


def test_what_was_learned_guides_the_search(make_picture_search, crew):
    search = make_picture_search(**BOTH)
    surveyed, scores, _ = carry_out(search, crew)
    best = {score.backbone: score.best.f1 for score in scores}
    assert surveyed.context.taps == {score.backbone: score.ranked for score in scores}
    assert list(surveyed.favored) == sorted(surveyed.favored, key=lambda name: -best[name])
    assert surveyed.favored == {name: best[name] for name in contenders(scores, search.context)}
    for score in scores:
        stored = surveyed.stored[score.backbone]
        assert stored.network == score.passed.network
        assert stored.network.seconds_per_row > 0
    assert search.favored == {}  # the one that was given is as it was


def test_one_hears_where_a_backbone_is_read_best(make_picture_search, crew):
    _, [score], told = carry_out(make_picture_search(), crew)
    assert [tap.tap for tap in score.taps] == [1, 2, 3]
    assert sorted(score.ranked) == [1, 2, 3]
    assert score.best == score.taps[score.ranked[0] - 1]
    [sentence] = told.said
    assert f"best read at {score.best.group}, {score.best.tap} of 3 layer groups" in sentence
    assert f"left-out F1 {score.best.f1:.3f}" in sentence
    assert ("; the last tap has" in sentence) == (score.best.tap != 3)
    assert {what for what, _, _ in told.progress} == {"passing trained0", "scoring trained0"}


def test_rows_that_passed_are_counted_once(make_picture_search, crew):
    search = make_picture_search(**BOTH)
    first, scores, _ = carry_out(search, crew)
    passed = sum(score.passed.rows for score in scores)
    assert passed == 2 * (len(search.prepared.task.train) + len(search.prepared.task.validation))
    assert search.study.user_attrs[ROWS_PASSED] == passed
    second, again, _ = carry_out(search, crew)
    assert [score.passed.rows for score in again] == [0, 0]
    assert search.study.user_attrs[ROWS_PASSED] == passed
    assert [score.taps for score in again] == [score.taps for score in scores]
    assert second.favored == first.favored


def test_a_second_survey_runs_no_probe_twice(make_picture_search, crew):
    search = make_picture_search(**RECIPES)
    carry_out(search, crew)
    carry_out(search, crew)
    assert recipes(search) == ["ridge on the best tap (trained0)"]


def test_probes_count_as_trials(make_picture_search, crew):
    search = make_picture_search(**RECIPES, trials=1, **BOTH)
    carry_out(search, crew)
    assert [trial.state.name for trial in search.study.trials] == ["COMPLETE", "WAITING"]


def test_after_a_stop_no_probe_begins(make_picture_search, crew):
    stop = threading.Event()
    stop.set()
    search = make_picture_search(**RECIPES)
    carry_out(search, crew, stop)
    assert [trial.state.name for trial in search.study.trials] == ["WAITING"]


def test_without_weights_to_transfer_there_is_nothing_to_score(make_search, crew):
    search = make_search(**RECIPES)
    surveyed, scores, told = carry_out(search, crew)
    assert (scores, told.said, surveyed.favored, search.study.trials) == ((), [], {}, [])


# What is left out.


@pytest.mark.parametrize(("share_spent", "scored"), [(0.9, ["trained1"]), (0.0, ["trained1", "trained0"])])
def test_when_its_share_of_the_time_is_spent_the_rest_is_not_scored(make_picture_search, crew, share_spent, scored):
    search = make_picture_search(**BOTH)
    clock = replace(search.clock, began=time.time() - share_spent * 3600)
    search = replace(search, clock=clock, budget=replace(search.budget, seconds=3600.0))
    surveyed, scores, told = carry_out(search, crew)
    assert [score.backbone for score in scores] == scored  # one in any case
    late = [text for text in told.said if "not scored beforehand" in text]
    assert len(late) == 2 - len(scored)
    assert all(text.startswith("trained0 is not scored beforehand, to leave the time for training") for text in late)
    assert set(surveyed.context.taps) == set(surveyed.favored) == set(scored)
    assert set(surveyed.context.backbones) == {"trained0", "trained1"}  # it is searched all the same


@pytest.mark.parametrize(("takes", "scored"), [(1700.0, ["trained1", "trained0"]), (1900.0, ["trained1"])])
def test_one_that_would_pass_beyond_half_of_the_time_is_not_scored(
    make_picture_search, crew, monkeypatch, takes, scored
):
    monkeypatch.setattr(module, "surely_in_time", lambda *_: False)
    monkeypatch.setattr(module, "seconds_to_pass", lambda *_, **__: takes)
    search = make_picture_search(**BOTH)
    search = replace(search, budget=replace(search.budget, seconds=3600.0))
    assert [score.backbone for score in carry_out(search, crew)[1]] == scored


def test_a_backbone_that_has_no_room_is_named_and_the_others_go_on(make_picture_search, crew):
    search = make_picture_search(**RECIPES, **BOTH)
    large = search.stored["trained0"]
    small = FeatureStore(root=large.network.store.root, budget=100)
    network = replace(large.network, store=small)
    search = replace(search, stored={**search.stored, "trained0": replace(large, network=network)})
    surveyed, scores, told = carry_out(search, crew)
    assert [score.backbone for score in scores] == ["trained1"]
    assert told.said[-1].startswith("trained0 is not scored beforehand: the pooled outputs of trained0 take")
    assert recipes(search) == ["ridge on the best tap (trained1)"]
    assert set(surveyed.favored) == {"trained1"}


BROKEN = """
    from pathlib import Path
    from automl_tl.plugin import Backbone, ImageInput, Weights, hookimpl

    def build(*, input_shape, weights):
        from torch import nn

        class Broken(nn.Module):
            def forward(self, inputs):
                if len(inputs) > 1:  # when its layer groups were described, there was one
                    raise RuntimeError("I cannot see")
                return inputs

        module = nn.Module()
        module.only = Broken()
        return module

    @hookimpl
    def automl_tl_backbones():
        yield Backbone(
            name="broken",
            description="raises",
            input=ImageInput(size=16, smallest=8),
            layer_groups=("only",),
            build=build,
            weights=Weights(find=lambda: Path(__file__), install="", origin="", license="", sha256=""),
        )
"""


def test_a_backbone_that_raises_is_named_and_the_others_go_on(make_picture_search, crew):
    search = make_picture_search(plugins={"broken": BROKEN}, trained=(12,), backbones=("broken", "trained0"))
    _, scores, told = carry_out(search, crew)
    assert [score.backbone for score in scores] == ["trained0"]
    assert told.said[0] == (
        "broken is not scored beforehand: backbone 'broken' cannot pass the samples: RuntimeError: I cannot see"
    )


@pytest.mark.parametrize("error", [DataError("the 50 samples form 1 group"), ChildDied("was killed")])
def test_a_backbone_that_cannot_be_scored_is_named_and_the_others_go_on(make_picture_search, crew, monkeypatch, error):
    score_tap = module.score_tap

    def fail(order):
        if order.backbone == "trained1":
            raise error
        return score_tap(order)

    monkeypatch.setattr(module, "score_tap", fail)
    _, scores, told = carry_out(make_picture_search(**BOTH), crew)
    assert [score.backbone for score in scores] == ["trained0"]
    assert told.said[0].startswith("trained1 is not scored beforehand: ")


def test_a_damaged_shard_is_named_and_computed_again(make_picture_search, crew):
    search = make_picture_search()
    _, [before], _ = carry_out(search, crew)
    network = before.passed.network
    [dtype] = [t for t in ("float16", "float32") if network.pooled(t).directory.exists()]
    damaged = shard_directories(network.pooled(dtype).directory / "shards")[0]
    values = bytearray((damaged / "values.npy").read_bytes())
    values[-1] ^= 255
    (damaged / "values.npy").write_bytes(values)
    _, [after], told = carry_out(search, crew)
    assert told.said[0].startswith(f"shard {damaged.name[:4]}… of trained0, pooled features: checksum differs")
    assert after.passed.rows > 0
    assert after.taps == before.taps


# Who is left in the race.


def scored(backbone, f1, low, high):
    tap = TapScore(tap=1, group="first", f1=f1, interval=(low, high), knn=f1, log_loss=0.0, diagnostics={})
    passed = Passed(network=None, rows=0, notes=())
    return BackboneScore(backbone=backbone, taps=(tap,), ranked=(1,), passed=passed)


@pytest.fixture
def sized(context):
    """A context with backbones of 100, 200 and 900 parameters."""
    group = context.backbones["source_mlp"][0]
    sizes = {"small": 100, "middle": 200, "large": 900}
    return replace(context, backbones={name: (replace(group, parameters=size),) for name, size in sizes.items()})


@pytest.mark.parametrize(
    ("scores", "left"),
    [
        ([], ()),
        ([("small", 0.5, 0.4, 0.6)], ("small",)),
        # Within each other's interval: all of them, best first.
        (
            [("small", 0.5, 0.4, 0.6), ("middle", 0.55, 0.45, 0.65), ("large", 0.52, 0.4, 0.6)],
            ("middle", "large", "small"),
        ),
        # Surely worse: out.
        ([("small", 0.5, 0.4, 0.6), ("middle", 0.9, 0.85, 0.95), ("large", 0.92, 0.9, 0.94)], ("large", "middle")),
        # Surely worse, but the largest.
        ([("small", 0.9, 0.85, 0.95), ("middle", 0.5, 0.4, 0.6), ("large", 0.3, 0.2, 0.4)], ("small", "large")),
        # An interval that just touches the best one's floor.
        ([("small", 0.9, 0.8, 0.95), ("middle", 0.7, 0.6, 0.8)], ("small", "middle")),
    ],
)
def test_those_that_no_other_surely_beats_and_the_largest_are_left(sized, scores, left):
    assert contenders([scored(*each) for each in scores], sized) == left


def test_the_choice_of_a_precision_is_made_in_a_child_of_its_own(make_picture_search, crew, monkeypatch):
    """And it is part of what the network is: outputs of another precision are other outputs."""
    monkeypatch.setattr(passes, "prefers_bfloat16", lambda order, device: True)
    surveyed, _, _ = carry_out(make_picture_search(), crew)
    assert surveyed.stored["trained0"].network.compute == "bfloat16"
    monkeypatch.setattr(passes, "prefers_bfloat16", lambda order, device: False)
    again, [score], _ = carry_out(surveyed, crew)
    assert again.stored["trained0"].network.compute == "float32"
    assert score.passed.rows > 0


def test_a_text_model_keeps_what_the_recipes_will_begin_at(review_search, make_picture_search, monkeypatch):
    search = replace(review_search, budget=replace(review_search.budget, recipes=True))
    cuts = module._next_cuts(search, "minilm_l6")
    assert cuts[0] == 5  # tuning the last two of seven is tried first
    assert all(0 < cut < 7 for cut in cuts)
    assert module._next_cuts(review_search, "minilm_l6") == ()  # it has no recipes
    assert module._next_cuts(make_picture_search(**RECIPES), "trained0") == ()
