"""How much work a training is, before anybody has done it."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from automl_tl.search.order import climbs_rungs
from automl_tl.search.proposals import enqueue_recipes
from automl_tl.search.recipes import MAX_RECIPES, recipe_parameters
from automl_tl.search.study import requeue
from automl_tl.search.work import BACK, BESIDES, WORK, first_epoch_work

ALL = ("linear_probe", "suffix", "full_finetune", "last_k", "lp_ft", "discriminative")


def specs(search):
    """The search's recipes that train layer groups, by name."""
    found = recipe_parameters(search.space, search.context, MAX_RECIPES)
    return {name.partition(" (")[0]: spec for name, spec, _ in found if climbs_rungs(spec)}


def changed(spec, action, **values):
    """A spec whose groups that do this do it as the values say."""
    groups = tuple(replace(group, **values) if group.action == action else group for group in spec.plan)
    return replace(spec, plan=replace(spec.plan, groups=groups))


def shares(search):
    return [group.flop_share for group in search.context.backbones["source_mlp"]]


def test_what_is_passed_forward_and_back_counts(make_search):
    search = make_search(strategies=ALL)
    each = shares(search)
    assert len(each) == 3
    known = specs(search)
    assert first_epoch_work(search, known["full fine-tuning"]) == pytest.approx(BESIDES + 1 + BACK)
    last_two = BESIDES + (1 + BACK) * sum(each[1:])
    assert first_epoch_work(search, known["last two"]) == pytest.approx(last_two)
    plan = known["last two"].plan
    read_second = replace(plan, groups=(*plan.groups[:2], replace(plan.groups[2], action="drop")))
    work = first_epoch_work(search, replace(known["last two"], plan=read_second))
    assert work == pytest.approx(BESIDES + (1 + BACK) * each[1])


def test_what_trains_later_is_passed_forward_only_at_first(make_search):
    search = make_search(strategies=ALL)
    later = changed(specs(search)["last two"], "tune", unfreeze_epoch=2)
    assert first_epoch_work(search, later) == pytest.approx(BESIDES + sum(shares(search)[1:]))


@pytest.mark.parametrize(("views", "first"), [(0, 0), (4, 1)])
def test_samples_that_are_changed_anew_pass_all_layer_groups(make_search, views, first):
    search = make_search(strategies=ALL)
    spec = specs(search)["last two"]
    spec = replace(spec, regularization=replace(spec.regularization, augmentation="light", views=views))
    each = shares(search)
    assert first_epoch_work(search, spec) == pytest.approx(BESIDES + sum(each[first:]) + BACK * sum(each[1:]))


def test_of_several_backbones_it_is_known_once_they_were_passed(make_search):
    search = make_search(strategies=ALL)
    spec = specs(search)["full fine-tuning"]
    twice = replace(search.context, backbones={**search.context.backbones, "twin": ()})
    both = replace(search, context=twice)
    assert first_epoch_work(both, spec) is None
    passed = {"source_mlp": SimpleNamespace(network=SimpleNamespace(seconds_per_row=0.5))}
    work = first_epoch_work(replace(both, stored=passed), replace(spec, weights="transferred"))
    assert work == pytest.approx(0.5 * (BESIDES + 1 + BACK))


def test_recipes_wait_with_the_work_of_their_first_epoch(make_search):
    search = make_search(strategies=ALL, recipes=True)
    enqueue_recipes(search)
    waiting = {trial.user_attrs["recipe"].partition(" (")[0]: trial.user_attrs[WORK] for trial in search.study.trials}
    known = {name: first_epoch_work(search, spec) for name, spec in specs(search).items()}
    assert waiting.items() >= known.items()
    assert waiting["linear probe"] == BESIDES  # of stored features
    repeated = search.study.ask()  # the first one
    requeue(search.study, search.study.get_trials()[repeated.number], reason="a test", crashed=False)
    assert search.study.trials[-1].user_attrs[WORK] == next(iter(waiting.values()))
