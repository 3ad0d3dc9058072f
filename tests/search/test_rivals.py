"""What a final model is compared with, on a small real search; none of it may see the test split while it learns."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from automl_tl.config import FinishConfig
from automl_tl.engine.slot import Children
from automl_tl.engine.slots import parse_slots
from automl_tl.engine.spread import Crew
from automl_tl.errors import TrialError
from automl_tl.finish import rivals as rivals_module
from automl_tl.finish.finish import finish
from automl_tl.finish.rivals import learn_rivals
from automl_tl.finish.seeds import other_seeds
from automl_tl.finish.settle import settle
from automl_tl.finish.whole import Whole, from_scratch, full_finetuning, searched_far_enough, train_whole
from automl_tl.model.spec import spec_from_json
from automl_tl.search.search import run_search
from automl_tl.search.study import completed
from automl_tl.search.survey import survey

INLINE = parse_slots("inline", cores=1)
DIGITS = {"path": "sklearn:digits", "per_class": 6, "validation_fraction": 0.04, "test_fraction": 0.05}
TRAINED = FinishConfig(model="single", finalists=2)


def search_to_the_end(search, crew):
    stop = threading.Event()
    search, _ = survey(search, crew, stop, lambda text: None, lambda what, done, n: None)
    run_search(search, INLINE, crew.children, stop, lambda: None)
    return search


def nothing(*told):
    """Hears and says nothing."""


@pytest.fixture(scope="module")
def crew():
    return Crew(slots=INLINE, children=Children(INLINE))


@pytest.fixture(scope="module")
def pictures(search_in, tmp_path_factory, crew):
    """Return a search on digits that has ended with probes alone, and its final model."""
    settings = {"trials": 2, "max_epochs": 2, "scheduler": "promotion", "recipes": True}
    settings |= {"data": DIGITS, "trained": (12,), "backbones": ("trained0",)}
    search = search_in(tmp_path_factory.mktemp("rivals"), **settings)
    search = search_to_the_end(search, crew)
    return search, settle(search, TRAINED, crew, "cpu")


@pytest.fixture(scope="module")
def tables(search_in, tmp_path_factory, crew):
    """Return a search on wine that has ended with networks trained from random weights, and its final model."""
    folder = tmp_path_factory.mktemp("refits")
    search = search_to_the_end(search_in(folder, trials=2, max_epochs=2, strategies=("full_finetune",)), crew)
    return search, settle(search, TRAINED, crew, "cpu")


def test_a_final_model_is_compared_with_all_that_one_would_do_instead(pictures, crew):
    search, final = pictures
    rivals = learn_rivals(search, final, None, 3, crew, "cpu")
    assert not search.prepared.task.test.opened  # this test comes first
    assert rivals.missing == {}
    assert rivals.refits.repeats
    assert {name: whole.spec.weights for name, whole in rivals.whole.items()} == {
        "full_finetuning": "transferred",
        "from_scratch": "random",
    }
    finished = finish(search, final, rivals, None, "cpu")
    names = {"majority", "raw_inputs", "random_weights", "linear_probe", "full_finetuning", "from_scratch"}
    assert finished.baselines.keys() == names
    for scores in finished.baselines.values():
        low, high = scores["gain_f1_macro_ci95"]
        assert low <= scores["gain_f1_macro"] <= high
        assert scores["gain_f1_macro"] == pytest.approx(finished.test["f1_macro"] - scores["f1_macro"])
    assert finished.test["seed_sd"] == 0
    assert finished.test["refits"] == [finished.test["f1_macro"]]
    assert finished.verdict.rival in ("majority", "raw_inputs", "random_weights", "from_scratch")
    assert finished.random_rows_passed > 0


def test_features_are_compared_with_random_ones_at_every_tap(pictures, crew):
    search, final = pictures
    rivals = learn_rivals(search, final, None, 1, crew, "cpu")
    assert [gain.layer_group for gain in rivals.by_depth] == ["first", "second", "third"]
    for gain in rivals.by_depth:
        assert 0 < gain.transferred < 1
        assert gain.gain == pytest.approx(gain.transferred - gain.random)
        assert gain.interval[0] <= gain.gain <= gain.interval[1]


def test_what_trained_is_trained_again_from_other_seeds_and_its_intervals_are_wider(tables, crew):
    search, final = tables
    rivals = learn_rivals(search, final, None, 3, crew, "cpu")
    assert len(rivals.refits.others) == 2
    assert rivals.whole == {}  # there is nothing to transfer, so nothing to do without it
    finished = finish(search, final, rivals, None, "cpu")
    scores = finished.test["refits"]
    assert len(scores) == 3
    assert scores[0] == finished.test["f1_macro"]
    assert finished.test["seed_sd"] == pytest.approx(np.std(scores, ddof=1))


def test_other_seeds_are_other_models_and_the_same_ones_every_time(tables, crew):
    search, final = tables
    first, second = (other_seeds(search, final, 3, None, crew, "cpu", nothing, nothing).others for _ in range(2))

    found = [[each.members[0].model for each in (final, *others)] for others in (first, second)]
    flat = [[np.concatenate([p.detach().numpy().ravel() for p in m.parameters()]) for m in models] for models in found]
    assert not any(np.allclose(flat[0][i], flat[0][j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert all(np.array_equal(one, same) for one, same in zip(*flat, strict=True))


def test_a_seed_that_fails_does_not_count_and_the_user_hears_of_it(tables, crew):
    search, final = tables
    told = []

    class Failing:
        stop = crew.children.stop

        def run(self, slot, function, order):
            raise TrialError("no luck")

    found = other_seeds(search, final, 3, None, replace(crew, children=Failing()), "cpu", told.append, nothing)
    assert found.others == ()
    assert not found.repeats
    assert "no luck" in told[0]


def test_without_time_nothing_is_trained_and_the_result_says_so(pictures, tables, crew):
    past = time.time() - 1
    search, final = pictures
    late = replace(search, budget=replace(search.budget, end=past))
    rivals = learn_rivals(late, final, None, 3, crew, "cpu")
    assert rivals.missing == {"full_finetuning": "no time", "from_scratch": "no time"}
    assert rivals.whole == {}
    search, final = tables
    assert other_seeds(search, final, 3, past, crew, "cpu", nothing, nothing).others == ()


def test_a_training_that_is_cut_off_is_no_baseline(pictures, crew):
    search, _ = pictures
    spec = replace(from_scratch(search, "trained0"), max_epochs=10_000)
    network = replace(search.stored["trained0"].network, seconds_per_row=0.0)  # as if it took no time
    hopeful = replace(search, stored={"trained0": replace(search.stored["trained0"], network=network)})
    end = time.time() + 1
    assert train_whole(hopeful, "from_scratch", spec, end, crew, "cpu", nothing, nothing) == "no time"


def test_a_baseline_that_fails_is_missed_and_costs_the_run_nothing(pictures, crew):
    search, final = pictures
    told = []

    class Failing:
        stop = crew.children.stop

        def run(self, slot, function, *order):
            if getattr(order[0], "spec", {}).get("weights") == "random":
                raise TrialError("it is too deep")
            return crew.children.run(slot, function, *order)

    rivals = learn_rivals(search, final, None, 1, replace(crew, children=Failing()), "cpu", told.append)
    assert "it is too deep" in rivals.missing["from_scratch"]
    assert any("from scratch is no baseline" in line for line in told)
    assert isinstance(rivals.whole["full_finetuning"], Whole)


def test_random_weights_that_would_take_long_are_left_out(pictures, crew, monkeypatch):
    search, final = pictures
    monkeypatch.setattr(rivals_module, "seconds_to_pass", lambda *given: 20.0)
    limited = replace(search, budget=replace(search.budget, seconds=100.0, end=time.time() + 100))
    rivals = learn_rivals(limited, final, None, 1, crew, "cpu")
    assert rivals.random is None
    assert rivals.by_depth == ()
    assert rivals.missing["random_weights"] == "no time"


def test_baselines_train_everything_as_far_as_the_search_would(pictures):
    search, _ = pictures
    for spec in (full_finetuning(search, "trained0"), from_scratch(search, "trained0")):
        assert {group.action for group in spec.plan} == {"tune"}
        assert spec.max_epochs == search.budget.max_epochs


def test_a_full_fine_tuning_that_was_drawn_at_random_is_no_baseline(make_picture_search, crew):
    """It may be a bad one, beside which anything looks good."""
    search = make_picture_search(trials=1, strategies=("full_finetune",), overrides={"adam.learning_rate": 1e-5})
    search = search_to_the_end(search, crew)
    (drawn,) = completed(search.study)
    assert searched_far_enough(search) is None
    assert full_finetuning(search, "trained0") != spec_from_json(drawn.user_attrs["spec"])


def test_a_full_fine_tuning_by_a_recipe_that_got_far_is_one(make_picture_search, crew):
    search = make_picture_search(trials=1, strategies=("full_finetune",), recipes=True)
    search = search_to_the_end(search, crew)
    (tried,) = completed(search.study)
    assert searched_far_enough(search).number == tried.number
    assert searched_far_enough(replace(search, budget=replace(search.budget, max_epochs=9))) is None


def test_from_scratch_has_the_head_of_the_best_that_trained(make_picture_search, crew):
    settings = {"trials": 1, "strategies": ("last_k",), "heads": ("mlp",), "overrides": {"pooling": "mean_std"}}
    search = search_to_the_end(make_picture_search(**settings), crew)
    best = spec_from_json(completed(search.study)[0].user_attrs["spec"])
    spec = from_scratch(search, "trained0")
    assert (spec.head, spec.head_parameters, spec.pooling) == (best.head, best.head_parameters, "mean_std")
