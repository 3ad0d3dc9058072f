"""The decision of a free worker, by itself and in simulated searches with several workers."""

import gzip
import heapq
import importlib
import itertools
import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automl_tl.search import schedule
from automl_tl.search.schedule import (
    ETA,
    FAIR_SHARE,
    KEPT,
    Climb,
    Ladder,
    Promote,
    Propose,
    expected_improvement,
    first_seconds,
    next_step,
    part_in_time,
    promise_of,
    promise_of_new,
    promotable,
    rise,
    rungs,
    seconds_spent,
)

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ANY_PACE = st.floats(0.1, 10)  # seconds an epoch
ANY_TIME = st.one_of(st.just(math.inf), st.floats(0.5, 300))


@dataclass(frozen=True)
class Curve:
    """What a configuration will score at each rung it can reach, at so many seconds an epoch."""

    scores: tuple
    pace: float = 1.0
    closed_form: bool = False


@dataclass
class Simulated:
    """Workers that train curves; it asserts what must hold whenever a step is decided or done."""

    curves: list
    scheduler: str = "promotion"
    max_epochs: int = 27
    workers: int = 1
    seconds: float = math.inf
    steps: list = field(default_factory=list)
    climbs: dict = field(default_factory=dict)
    late: list = field(default_factory=list)  # steps begun when seconds were known that ended after the deadline

    def run(self):
        ladder, trained, now, queue = rungs(self.max_epochs), set(), 0.0, []
        while True:
            while len(queue) < self.workers:
                step = self.decide(ladder, now)
                if step is None:
                    break
                known = any(climb.scores for climb in self.climbs.values())
                number = step.number if isinstance(step, Promote) else len(self.climbs)
                climb = self.climbs.get(number, Climb(number=number))
                curve = self.curves[number]
                assert not climb.running
                assert not climb.final
                assert climb.rung < step.rung < len(ladder)
                if isinstance(step, Promote) and self.scheduler == "promotion":
                    self.check_promotion(climb, step)
                reached = 0 if curve.closed_form else min(step.rung + 1, len(curve.scores))
                spent = []
                for rung in range(climb.rung + 1, reached):
                    assert (number, rung) not in trained, "an epoch would be trained twice"
                    trained.add((number, rung))
                    spent.append(curve.pace * (ladder[rung] - (ladder[rung - 1] if rung else 0)))
                self.climbs[number] = replace(climb, running=True)
                self.steps.append(step)
                end = now + sum(spent)
                sure = end
                if end > self.seconds * (1 + 1e-9) and isinstance(step, Promote) and self.scheduler == "promotion":
                    sure, reached, spent = now + curve.pace, climb.rung + 1, []  # cut off, it keeps whole epochs
                if known and sure > self.seconds * (1 + 1e-9):
                    self.late.append(step)
                end = min(end, self.seconds)
                heapq.heappush(queue, (end, number, reached, tuple(spent)))
            if not queue:
                assert not any(climb.running for climb in self.climbs.values())
                return self
            now, number, reached, spent = heapq.heappop(queue)
            climb, curve = self.climbs[number], self.curves[number]
            final = reached == len(curve.scores) or curve.closed_form
            seconds = (*climb.seconds, *spent)
            self.climbs[number] = replace(
                climb, scores=curve.scores[:reached], seconds=seconds, running=False, final=final
            )

    def decide(self, ladder, now):
        limited = math.isfinite(self.seconds)
        return next_step(
            list(self.climbs.values()),
            scheduler=self.scheduler,
            rungs=ladder,
            may_propose=len(self.climbs) < len(self.curves),
            seconds_left=self.seconds - now if limited else None,
            seconds_total=self.seconds if limited else None,
        )

    def check_promotion(self, climb, step):
        assert step.rung == climb.rung + 1, "one rung at a time"
        at = [c.scores[climb.rung] for c in self.climbs.values() if c.rung >= climb.rung]
        better = sum(score > climb.scores[-1] for score in at)
        assert better < max(1, len(at) // ETA), "outside the best third of its rung"


@st.composite
def searches(draw, schedulers=("promotion", "one_epoch", "hyperband", "none"), pace=ANY_PACE, seconds=ANY_TIME):
    max_epochs = draw(st.integers(1, 40))
    n_rungs = len(rungs(max_epochs))
    score = st.floats(-0.2, 1.0)

    def curve():
        n_scores = draw(st.integers(1, n_rungs)) if draw(st.booleans()) else n_rungs
        scores = tuple(draw(st.lists(score, min_size=n_scores, max_size=n_scores)))
        return Curve(scores, draw(pace), closed_form=draw(st.integers(0, 5)) == 0)

    return Simulated(
        curves=[curve() for _ in range(draw(st.integers(1, 14)))],
        scheduler=draw(st.sampled_from(schedulers)),
        max_epochs=max_epochs,
        workers=draw(st.integers(1, 4)),
        seconds=draw(seconds),
    )


@given(st.integers(1, 500), st.integers(2, 5))
def test_rungs_climb_by_powers_to_the_last_epoch(max_epochs, eta):
    found = rungs(max_epochs, eta)
    assert found[0] == 1
    assert found[-1] == max_epochs
    assert all(low < high <= eta * low for low, high in itertools.pairwise(found))
    assert all(epochs == eta**number for number, epochs in enumerate(found[:-1]))


def test_rungs_of_usual_lengths():
    assert (rungs(1), rungs(2), rungs(20), rungs(27)) == ((1,), (1, 2), (1, 3, 9, 20), (1, 3, 9, 27))


@settings(deadline=None, max_examples=50)
@given(searches())
def test_no_epoch_twice_no_two_workers_on_one_and_it_ends(search):
    search.run()
    assert len(search.steps) <= len(search.curves) * len(rungs(search.max_epochs))


@settings(deadline=None, max_examples=50)
@given(searches(schedulers=("promotion",), seconds=st.just(math.inf)))
def test_without_a_deadline_all_is_proposed_and_the_best_of_every_rung_goes_on(search):
    found = list(search.run().climbs.values())
    assert len(search.climbs) == len(search.curves)
    for rung in range(len(rungs(search.max_epochs)) - 1):
        reached = [climb for climb in found if climb.rung >= rung]
        if reached:
            best = min(reached, key=lambda climb: (-climb.scores[rung], climb.number))
            assert best.rung > rung or best.final


@settings(deadline=None, max_examples=50)
@given(searches(schedulers=("promotion", "one_epoch"), pace=st.just(1.5), seconds=st.floats(0.5, 300)))
def test_nothing_is_begun_that_cannot_end_before_the_deadline(search):
    assert search.run().late == []


@settings(deadline=None, max_examples=50)
@given(searches(schedulers=("hyperband", "none"), seconds=st.just(math.inf)))
def test_hyperband_and_none_train_each_to_the_end_at_once(search):
    search.run()
    assert search.steps == [Propose(len(rungs(search.max_epochs)) - 1)] * len(search.curves)


def test_a_search_by_hand():
    curves = [(0.5, 0.55), (0.6, 0.7, 0.75), (0.4,), (0.3,), (0.2,), (0.1,)]
    curves = [Curve((*scores, 0.0, 0.0)[:3]) for scores in curves]
    search = Simulated(curves, max_epochs=9).run()
    assert search.steps == [
        *(Propose(0), Propose(0)),
        Promote(1, 1),  # promotions had no time yet
        Promote(1, 2),  # as computed in the next test
        *(Propose(0), Propose(0), Propose(0), Propose(0)),  # the best of up to five is promoted already
        Promote(0, 1),  # the second of six is among the best third
    ]


def test_promises_by_hand():
    climbs = (
        Climb(number=0, scores=(0.5,), seconds=(1.0,)),
        Climb(number=1, scores=(0.6, 0.7), seconds=(1.0, 2.0)),
    )
    ladder = Ladder(rungs=(1, 3, 9), climbs=climbs, seconds_left=math.inf)
    # One rung above: mean 1 - 0.3 * 0.9, spread 0.3 * 0.1, so z = 1; six epochs at one second each.
    assert promise_of(ladder, climbs[1], best=0.7) == pytest.approx(0.03 * (0.84134 + 0.24197) / 6, rel=1e-4)
    assert rise(ladder, 1) == pytest.approx((0.15, math.sqrt(0.035 / 3)))  # (2 * 0.1 + 0.25) / 3
    # First scores: around 0.55, variance (2 * 0.045² + 0.05²) / 3. All the way up promises most: mean 0.65575,
    # variance 0.2046833 * 0.734167 * 0.82 - 0.34425², for 1 + 2 / 3 + 6 / 9 seconds.
    spread = math.sqrt(0.2046833 * 0.7341667 * 0.82 - 0.34425**2)
    expected = expected_improvement(0.65575, spread, 0.7) / (7 / 3)
    assert promise_of_new(ladder, best=0.7) == pytest.approx(expected, rel=1e-4)
    assert promise_of_new(ladder, best=0.7) < promise_of(ladder, climbs[1], best=0.7)


@given(st.floats(-1, 1), st.floats(0, 1), st.floats(-1, 1))
def test_expected_improvement_is_at_least_what_the_mean_improves(mean, spread, best):
    found = expected_improvement(mean, spread, best)
    assert found >= max(0.0, mean - best) - 1e-12
    assert expected_improvement(mean, spread + 0.1, best) >= found - 1e-12


def test_who_came_early_can_still_be_promoted():
    """Optuna's pruner decides once, when a trial arrives: the second best of 25 is gone if the best came before it."""
    scores = [0.9, 0.8, *(0.1 + 0.01 * number for number in range(23))]
    climbs = [Climb(number=n, scores=(score,), seconds=(1.0,)) for n, score in enumerate(scores)]
    two, all_of_them = (Ladder(rungs=(1, 3), climbs=tuple(climbs[:n]), seconds_left=math.inf) for n in (2, 25))
    assert [climb.number for climb in promotable(two)] == [0]
    assert [climb.number for climb in promotable(all_of_them)][:2] == [0, 1]
    assert len(promotable(all_of_them)) == 8


def test_what_is_on_no_rung_takes_nobodys_place():
    solved = [Climb(number=number, final=True) for number in (0, 1)]
    on_rungs = [Climb(number=2, scores=(0.6,), seconds=(1.0,)), Climb(number=3, scores=(0.5,), seconds=(1.0,))]
    assert decided(solved) is None
    assert decided([*solved, *on_rungs]) == Promote(2, 1)
    assert decided([*solved, on_rungs[0]], may_propose=True) == Propose(0)  # one alone is compared with nobody


def test_the_only_one_goes_on_where_a_second_one_would_take_its_time():
    only = [Climb(number=0, scores=(0.6,), seconds=(10.0,))]  # its next rung takes 20 s
    assert decided(only, may_propose=True, seconds_left=31.0, seconds_total=60.0) == Propose(0)
    assert decided(only, may_propose=True, seconds_left=29.0, seconds_total=60.0) == Promote(0, 1)
    assert decided(only, may_propose=True, seconds_left=19.0, seconds_total=60.0) == Propose(0)


def test_what_cannot_go_on_still_counts_where_it_was():
    """Such as those whose checkpoints were dropped: six have been through the rung, so two of them go on."""
    scores = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
    climbs = [Climb(number=n, scores=(score,), seconds=(1.0,), final=n > 1) for n, score in enumerate(scores)]
    assert [climb.number for climb in promotable(Ladder(rungs=(1, 3), climbs=tuple(climbs), seconds_left=9))] == [0, 1]
    ended = [replace(climbs[0], final=True), *climbs[1:]]
    assert [climb.number for climb in promotable(Ladder(rungs=(1, 3), climbs=tuple(ended), seconds_left=9))] == [1]


def test_the_higher_rung_wins_between_equal_promises():
    climbs = [
        Climb(number=0, scores=(0.9,), seconds=(1.0,)),
        Climb(number=1, scores=(0.5, 0.5), seconds=(1.0, 2.0)),
    ]
    assert decided(climbs, best=50.0) == Promote(1, 2)


def decided(climbs, *, scheduler="promotion", max_epochs=9, may_propose=False, **given):
    return next_step(climbs, scheduler=scheduler, rungs=rungs(max_epochs), may_propose=may_propose, **given)


@pytest.mark.parametrize("scores", [(0.1, 0.5, 0.9), (0.9, 0.5, 0.1)], ids=["rising", "falling"])
@pytest.mark.parametrize("workers", [1, 3])
def test_neither_side_starves(scores, workers):
    # A thousandth apart, so that there always is somebody to promote.
    curves = [Curve(tuple(score + 0.001 * number for score in scores)) for number in range(80)]
    search = Simulated(curves, max_epochs=9, workers=workers).run()
    proposals = [isinstance(step, Propose) for step in search.steps]
    last = len(proposals) - proposals[::-1].index(True)
    seconds = [1.0 if isinstance(step, Propose) else 2.0 * 3 ** (step.rung - 1) for step in search.steps[:last]]
    for share in (0.5, 1.0):
        n = int(share * last)
        first = sum(each for each, proposal in zip(seconds[:n], proposals[:n], strict=True) if proposal)
        assert first > 0.7 * FAIR_SHARE * sum(seconds[:n])
        assert sum(seconds[:n]) - first > 0.7 * FAIR_SHARE * sum(seconds[:n])


def test_near_the_deadline_what_can_end_is_taken_further_and_nothing_is_begun():
    climbs = [
        Climb(number=0, scores=(0.70, 0.72, 0.725, 0.73), seconds=(1.0, 2.0, 6.0, 18.0), final=True),
        *(Climb(number=n, scores=(0.6 - 0.01 * n,), seconds=(1.0,)) for n in range(1, 6)),
        Climb(number=6, scores=(0.69,), seconds=(1.0,)),
    ]
    known = {"max_epochs": 27, "may_propose": True, "best": 0.73}
    assert decided(climbs, seconds_left=2.5, **known) == Promote(6, 1)
    assert decided(climbs, seconds_left=1.5, **known) == Propose(0)  # no time for a second rung, but for a first
    high = [*climbs[:-1], replace(climbs[-1], scores=(0.73,))]
    assert decided(high, seconds_left=1.5, **known) == Promote(6, 1)  # one epoch of two
    assert decided(climbs, seconds_left=0.5, **known) is None
    assert decided(climbs, seconds_left=0.0, **known) is None
    assert decided([], seconds_left=0.5, **known) == Propose(0)  # nobody knows yet how long it takes


def test_seconds_are_learnt_from_those_who_went_before():
    slow = Climb(number=0, scores=(0.5, 0.6), seconds=(1.0, 8.0), final=True)  # four times what its epochs say
    fresh = Climb(number=1, scores=(0.7,), seconds=(2.0,))
    assert decided([fresh], seconds_left=5.0) == Promote(1, 1)
    assert decided([slow, fresh], seconds_left=7.0) is None
    assert decided([slow, fresh], seconds_left=9.0) == Promote(1, 1)  # the first of two epochs


def test_what_a_deadline_cuts_off_is_worth_the_epochs_that_it_leaves():
    climbs = tuple(Climb(number=n, scores=(0.6, 0.7 + n / 100), seconds=(1.0, 2.0)) for n in range(3))
    at = {left: Ladder(rungs=(1, 3, 9), climbs=climbs, seconds_left=left) for left in (0.5, 2.5, 6.0, math.inf)}
    parts = {left: part_in_time(ladder, climbs[2]) for left, ladder in at.items()}
    assert parts == {0.5: 0.0, 2.5: pytest.approx(math.log(5 / 3, 3)), 6.0: 1.0, math.inf: 1.0}
    promised = {left: promise_of(ladder, climbs[2], best=0.72) for left, ladder in at.items()}
    assert promised[0.5] == 0.0
    assert promised[6.0] == promised[math.inf]
    # All of the rung: mean 1 - 0.28 (1 - m), spread 0.28 s, of six seconds. Two epochs of it, all of the time left.
    mean, spread = rise(at[2.5], 2)
    for left, part, seconds in ((6.0, 1.0, 6.0), (2.5, parts[2.5], 2.5)):
        gain = expected_improvement(1 - 0.28 * (1 - part * mean), 0.28 * part * spread, 0.72)
        assert promised[left] == pytest.approx(gain / seconds)
    assert decided(climbs, seconds_left=2.5) == Promote(2, 2)


def test_a_first_epoch_takes_as_long_as_its_work_says():
    climbs = [Climb(number=n, scores=(0.6,), seconds=(pace,), work=0.5) for n, pace in enumerate((1.0, 2.0, 9.0))]
    known = Ladder(rungs=(1, 3), climbs=(*climbs, Climb(number=3, scores=(0.5,), seconds=(50.0,))), seconds_left=9.0)
    assert first_seconds(known) == 15.5  # on average, where nothing is known of what comes
    assert first_seconds(replace(known, next_work=1.5)) == pytest.approx(3 * 2.0)  # by the pace in the middle
    assert first_seconds(replace(known, climbs=known.climbs[3:], next_work=1.5)) == 50.0
    running = Ladder(
        rungs=(1, 3), climbs=(*climbs, Climb(number=3, running=True, work=1.5)), seconds_left=9.0, next_work=9
    )
    assert seconds_spent(running) == (12.0 + 6.0, 0.0)  # by its own work, not by that of what comes next
    assert decided(climbs, seconds_left=0.9, may_propose=True, works=[0.1]) == Propose(0)
    assert decided(climbs, seconds_left=0.9, may_propose=True, works=[1.0]) is None


def test_what_there_is_no_time_for_holds_back_nothing_behind_it():
    climbs = [Climb(number=n, scores=(0.6,), seconds=(1.0,), work=1.0, final=True) for n in range(3)]
    known = {"may_propose": True, "works": [9.0, 0.5, 0.2, 9.0]}
    for scheduler, rung in (("promotion", 0), ("one_epoch", 0), ("none", 2)):
        assert decided(climbs, scheduler=scheduler, seconds_left=9.5, **known) == Propose(rung)
        assert decided(climbs, scheduler=scheduler, seconds_left=8.5, **known) == Propose(rung, place=1)
        assert decided(climbs, scheduler=scheduler, seconds_left=0.3, **known) == Propose(rung, place=2)
        assert decided(climbs, scheduler=scheduler, seconds_left=0.1, **known) is None
    assert decided(climbs, **known) == Propose(0)  # without a limit each has its turn
    unknown = {"may_propose": True, "works": [9.0, None]}  # like others, which took a second
    assert decided(climbs, seconds_left=8.5, **unknown) == Propose(0, place=1)


def test_one_epoch_keeps_the_best_few_of_a_number_of_trials():
    curves = [Curve((score, 0.9, 0.9)) for score in (0.1, 0.5, 0.4, 0.3, 0.2)]
    search = Simulated(curves, scheduler="one_epoch", max_epochs=9).run()
    assert search.steps == [Propose(0)] * 5 + [Promote(1, 2), Promote(2, 2), Promote(3, 2)]
    assert len(search.steps) == 5 + KEPT


def test_one_epoch_waits_for_the_last_first_epoch():
    climbs = [Climb(number=0, scores=(0.1,), seconds=(1.0,)), Climb(number=1, running=True)]
    assert decided(climbs, scheduler="one_epoch") is None
    assert decided([climbs[0], replace(climbs[0], number=1)], scheduler="one_epoch") == Promote(0, 2)


def test_one_epoch_spends_half_of_the_time_on_first_epochs_and_the_rest_on_the_best():
    curves = [Curve((0.5 + 0.01 * (number % 7), 0.9, 0.9)) for number in range(90)]
    search = Simulated(curves, scheduler="one_epoch", max_epochs=9, seconds=40.0).run()
    proposed = search.steps.index(Promote(6, 2))
    assert search.steps[:proposed] == [Propose(0)] * 21
    assert search.steps[proposed + 1 : proposed + 2] == [Promote(13, 2)]  # of equal ones the first


def test_what_was_interrupted_is_trained_to_the_end_first():
    paused = Climb(number=0, scores=(0.1,), seconds=(1.0,))
    for scheduler in ("none", "hyperband"):
        assert decided([paused], scheduler=scheduler, may_propose=True) == Promote(0, 2)
        assert decided([replace(paused, running=True)], scheduler=scheduler, may_propose=True) == Propose(2)


def test_the_schedule_knows_neither_torch_nor_optuna():
    text = Path(schedule.__file__).read_text()
    assert not any(f"import {name}" in text or f"from {name}" in text for name in ("torch", "optuna"))


@pytest.fixture
def replaying(monkeypatch):
    """The benchmark that replays recorded curves."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("schedulers")


@pytest.fixture
def pool(replaying, tmp_path):
    """Curves that rise to a height of their own, as `record_curves.py` would write them; the first two are recipes."""
    n = 12
    heights = [0.5 + 0.4 * ((7 * number) % n) / n for number in range(n)]
    configurations = [
        {
            "kind": "recipe" if number < 2 else "random",
            "scores": [height * share for share in (0.7, 0.8, 0.9, 1.0)],
            "test": [height * share - 0.01 for share in (0.7, 0.8, 0.9, 1.0)],
            "seconds": [1.0, 2.0, 6.0, 18.0],
            "again": 0.5,
        }
        for number, height in enumerate(heights)
    ]
    curves = {"made_up": {"rungs": [1, 3, 9, 27], "probe": 0.4, "configurations": configurations}}
    path = tmp_path / "curves.json.gz"
    path.write_bytes(gzip.compress(json.dumps(curves).encode()))
    (found,) = replaying.read_pools(path)
    return found


def test_in_a_replay_as_in_a_search_a_recipe_without_time_holds_back_nothing(replaying, pool):
    first, second, *others = pool.configurations
    slow = replace(second, seconds=(50.0, 100.0, 300.0, 900.0), work=50.0)
    seen = replaying.replay(
        replace(pool, configurations=(first, slow, *others)),
        list(range(12)),
        "promotion",
        workers=1,
        seconds=2.5,
        seed=0,
    )
    assert [each.configuration for each in seen] == [0, 2]


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("scheduler", ["promotion", "one_epoch", "hyperband", "none"])
def test_a_replay_keeps_time_and_trains_nothing_twice(replaying, pool, scheduler, workers):
    seen = replaying.replay(pool, list(range(12)), scheduler, workers=workers, seconds=60.0, seed=0)
    assert seen
    assert [each.at for each in seen] == sorted(each.at for each in seen)
    assert seen[-1].at <= 60.0
    assert len({(each.configuration, each.rung) for each in seen}) == len(seen)
    for each in seen:
        assert each.rung == sum(e.configuration == each.configuration and e.at < each.at for e in seen)
    trained = sum(pool.configurations[each.configuration].seconds[each.rung] for each in seen if each.at < 60.0)
    assert trained <= 60.0 * workers


def test_a_replay_of_none_is_one_after_the_other_and_hyperband_prunes(replaying, pool):
    order = list(range(12))
    seen = replaying.replay(pool, order, "none", workers=1, seconds=60.0, seed=0)
    assert [(each.at, each.configuration, each.rung) for each in seen[:5]] == [
        *((1.0, 0, 0), (3.0, 0, 1), (9.0, 0, 2), (27.0, 0, 3)),
        (28.0, 1, 0),
    ]
    pruned = replaying.replay(pool, order, "hyperband", workers=1, seconds=324.0, seed=0)
    assert {each.configuration for each in pruned} == set(order)
    assert len(pruned) < len(order) * 4


def test_who_goes_on_later_pays_for_beginning_again(replaying, pool):
    seen = replaying.replay(pool, list(range(12)), "one_epoch", workers=1, seconds=60.0, seed=0)
    first = next(place for place, each in enumerate(seen) if each.rung == 1)
    assert seen[first].at - seen[first - 1].at == 2.5
    assert seen[first + 1].at - seen[first].at == 6.0  # at once


def test_recipes_are_proposed_first_where_it_is_asked_for(replaying, pool):
    anyhow, recipes_first = (replaying.proposal_order(pool, which, 0) for which in ("any order", "recipes first"))
    assert sorted(anyhow) == sorted(recipes_first) == list(range(12))
    assert recipes_first[:2] == [0, 1]
    assert recipes_first[2:] == [number for number in anyhow if number > 1]


def test_regret_falls_from_one_to_what_the_incumbent_lacks(replaying, pool):
    seen = replaying.replay(pool, list(range(12)), "promotion", workers=1, seconds=200.0, seed=0)
    over_time, test, points = replaying.regrets(pool, seen, 200.0)
    assert over_time[0] < 1.0 or seen[0].at > 2.0
    assert all(after <= before for before, after in itertools.pairwise(over_time))
    assert over_time[-1] == pytest.approx(0.0)
    assert test == pytest.approx(0.0)
    assert points == pytest.approx(0.0)
    over_time, test, points = replaying.regrets(pool, [], 200.0)
    assert (set(over_time), test) == ({1.0}, 1.0)


def test_schedulers_are_compared_on_the_same_searches(replaying, pool):
    found = replaying.compare([pool], [1, 2], 3)
    for workers in (1, 2):
        summary = replaying.summarize([run for run in found if run.workers == workers])
        assert list(summary) == ["promotion", "one_epoch", "hyperband", "none"]
        assert summary["promotion"]["minus_ours"] == 0.0
        for name, facts in summary.items():
            assert facts["minus_ours"] == pytest.approx(facts["mean"] - summary["promotion"]["mean"])
            assert facts["lower_on"] == (facts["mean"] < summary["promotion"]["mean"])  # of one task
            assert len(replaying.row("any order", workers, name, facts)) == 13
