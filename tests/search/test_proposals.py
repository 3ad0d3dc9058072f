"""What is tried next: recipes first, then what is like one, what the sampler learned, and what nobody expects."""

import threading
from collections import Counter
from dataclasses import replace

import optuna
import pytest
from optuna.trial import TrialState

from automl_tl.engine.slots import parse_slots
from automl_tl.search.configurations import CONTINUES
from automl_tl.search.proposals import (
    AT_RANDOM,
    FAVOR,
    HALVES_AFTER,
    LIKE_A_RECIPE,
    MAX_RECIPES,
    enqueue_recipes,
    propose,
)
from automl_tl.search.search import run_search, take
from automl_tl.search.study import begin_new, begin_waiting, waiting

INLINE = parse_slots("inline", cores=1)

TWIN = """
    from dataclasses import replace
    from automl_tl.plugin import hookimpl
    from automl_tl_builtins.backbones import source_mlp

    @hookimpl
    def automl_tl_backbones():
        for backbone in source_mlp.automl_tl_backbones():
            yield replace(backbone, name="twin")
"""
TWINS = {"plugins": {"twin": TWIN}, "backbones": ("source_mlp", "twin")}
TRAINS = ("suffix", "full_finetune", "last_k")


def kind_of(search):
    """What kind the next proposal is, and what is fixed of it; it is begun, and told something."""
    proposal = propose(search)
    search.study.tell(begin_new(search.study, proposal.fixed, proposal.attributes), 0.5)
    if proposal.sampler is not None:
        assert isinstance(proposal.sampler, optuna.samplers.RandomSampler)
        assert proposal.fixed == {}
        return "at random", {}
    return "like a recipe" if "like_a_recipe" in proposal.attributes else "the sampler's", proposal.fixed


def kinds(search, n):
    return [kind_of(search) for _ in range(n)]


def names(search):
    return [trial.user_attrs.get("recipe") for trial in search.study.trials]


# Recipes.


def test_recipes_are_queued_once_and_only_when_wanted(make_search):
    without = make_search(trials=4, name="without")
    enqueue_recipes(without)
    assert without.study.trials == []
    search = make_search(trials=4, recipes=True)
    enqueue_recipes(search)
    enqueue_recipes(search)
    assert [trial.state.name for trial in search.study.trials] == ["WAITING"] * 2


def test_without_a_budget_of_trials_there_are_at_most_so_many(make_search):
    search = make_search(recipes=True, strategies=("linear_probe", *TRAINS), **TWINS)
    enqueue_recipes(search)
    assert 2 < len(search.study.trials) <= MAX_RECIPES


def test_recipes_are_for_those_that_are_favored_and_the_space_for_all(make_picture_search):
    both = {"trained": (12, 6), "backbones": ("trained0", "trained1"), "strategies": ("suffix", "linear_probe")}
    search = replace(make_picture_search(recipes=True, trials=10, **both), favored={"trained1": 0.9})
    enqueue_recipes(search)
    assert names(search)
    assert all(name.endswith("(trained1)") for name in names(search))
    assert set(search.context.backbones) == {"trained0", "trained1"}


def test_one_pass_shall_store_the_cuts_that_recipes_train_from(make_picture_search):
    search = make_picture_search(recipes=True, strategies=("last_k", "full_finetune"))
    assert search.stored["trained0"].also == ()
    assert enqueue_recipes(search).stored["trained0"].also == (1,)  # of the last two; all groups need none


# The mix.


def test_the_share_of_what_is_like_a_recipe_falls_as_the_search_learns(make_search):
    search = make_search(recipes=True, strategies=TRAINS)
    begun = [kind for kind, _ in kinds(search, 60)]
    assert begun.count("at random") == pytest.approx(60 * AT_RANDOM, abs=7)
    expected = sum(LIKE_A_RECIPE * 0.5 ** (n / HALVES_AFTER) for n in range(60))
    assert begun.count("like a recipe") == pytest.approx(expected, abs=9)
    assert begun[:20].count("like a recipe") > begun[40:].count("like a recipe")


def test_without_recipes_nothing_is_like_one(make_search):
    found = Counter(kind for kind, _ in kinds(make_search(strategies=TRAINS), 40))
    assert set(found) == {"at random", "the sampler's"}


def test_where_no_recipe_trains_layer_groups_the_sampler_decides(make_search):
    found = Counter(kind for kind, _ in kinds(make_search(recipes=True, strategies=("linear_probe",)), 20))
    assert found["like a recipe"] == 0


def test_what_is_proposed_depends_on_seed_and_progress_alone(make_search):
    first, second, other = (
        make_search(name=name, seed=seed, recipes=True, strategies=TRAINS)
        for name, seed in (("first", 1), ("second", 1), ("other", 2))
    )
    begun = kinds(first, 12)
    assert begun == kinds(second, 12)
    assert begun != kinds(other, 12)


def test_trials_that_go_on_are_no_proposals(make_search):
    """Between two proposals there may be any number of them."""
    first, second = (make_search(name=name, recipes=True, strategies=TRAINS) for name in ("first", "second"))
    found = []
    for search in (first, second):
        before = kinds(search, 4)
        if search is second:
            for _ in range(5):
                further = optuna.trial.create_trial(value=0.9, user_attrs={CONTINUES: 0})
                search.study.add_trial(further)
        found.append(before + kinds(search, 8))
    assert found[0] == found[1]


def test_what_waits_is_begun_by_its_place_and_past_the_last_one_is_drawn(make_search):
    search = make_search(recipes=True, strategies=TRAINS)
    for dropout in (0.125, 0.25):
        search.study.enqueue_trial({"dropout": dropout})
    for _ in range(10):
        drawn, spec = take(search, waiting(search.study), 2)
        assert spec.strategy in TRAINS
        assert drawn.number >= 2
    second, spec = take(search, waiting(search.study), 1)
    assert (second.number, spec.regularization.dropout) == (1, 0.25)
    first, spec = take(search, waiting(search.study), 0)
    assert (first.number, spec.regularization.dropout) == (0, 0.125)
    assert {trial.state for trial in search.study.trials} == {TrialState.RUNNING}
    with pytest.raises(RuntimeError, match="trial 0 waits no longer"):
        begin_waiting(search.study, search.study.trials[0])


def test_proposals_at_random_are_drawn_from_all_of_the_space(make_search, fake_children, report):
    """And the sampler that learns is put back afterwards."""
    search = make_search(trials=30, strategies=TRAINS)
    sampler = search.study.sampler
    children = fake_children(lambda order: report(0.9 if order.spec["strategy"] == "suffix" else 0.1))
    run_search(search, INLINE, children, threading.Event(), lambda: None)
    assert search.study.sampler is sampler
    assert {order.spec["strategy"] for order in children.orders} == set(TRAINS)


# The favorite.


@pytest.mark.parametrize(("behind", "drawn"), [(0.0, {"source_mlp", "twin"}), (20 * FAVOR, {"source_mlp"})])
def test_a_backbone_is_drawn_by_its_score(make_search, behind, drawn):
    search = make_search(recipes=True, strategies=TRAINS, **TWINS)
    search = replace(search, favored={"source_mlp": 0.9, "twin": 0.9 - behind})
    found = kinds(search, 40)
    for kind in ("like a recipe", "the sampler's"):
        assert {fixed["backbone"] for each, fixed in found if each == kind} == drawn
    assert "at random" in dict(found)  # of any backbone


@pytest.mark.parametrize("favored", [{}, {"source_mlp": 0.9}])
def test_with_less_than_two_scores_nothing_is_drawn(make_search, favored):
    assert all(fixed == {} for _, fixed in kinds(replace(make_search(), favored=favored), 8))
    assert all(fixed == {} for _, fixed in kinds(replace(make_search(name="two", **TWINS), favored=favored), 8))


def test_a_backbone_that_the_user_named_is_not_drawn(make_search):
    search = make_search(recipes=True, strategies=TRAINS, overrides={"backbone": "twin"}, **TWINS)
    search = replace(search, favored={"source_mlp": 0.9, "twin": 0.5})
    found = kinds(search, 20)
    assert all("backbone" not in fixed for _, fixed in found)
    assert "like a recipe" in dict(found)
