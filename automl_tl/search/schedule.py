"""What a worker that is free does next: take one of the configurations a rung further, or propose a new one.

Pure functions of plain data: no study, no clock, no network. A configuration is trained rung by rung, to 1, 3, 9, 27, …
epochs in all, each time from where it stopped, and is scored at every rung. Who asks marks what it was given as running
before anybody else may ask; so nothing is given twice, and nothing runs that nobody works on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist, fmean, median

from automl_tl.config import Scheduler

ETA = 3  # epochs of a rung over those of the one below, and configurations that share one promotion
HANDFUL = 2  # configurations that must have been through the first rung before one is promoted
FAIR_SHARE = 0.2  # of the seconds: what promotions get, and what proposals get, whatever they promise
KEPT = 3  # configurations that `one_epoch` trains to the end where no time limit says how many
PROPOSING = 0.5  # of the time limit: what `one_epoch` has for first epochs

BELIEF = 2.0  # observations that the priors below count for
RISE, RISE_SPREAD = 0.1, 0.1  # prior of a rung's gain, as a share of the room up to a score of 1
FIRST_SPREAD = 0.1  # prior spread of first scores, as a share of that room
STANDARD = NormalDist()


@dataclass(frozen=True, slots=True, kw_only=True)
class Climb:
    """How far a configuration has come.

    One that is on no rung, such as a head that is solved for in closed form, is `final` and has no scores here: it is
    compared with none. What it scored is for `best`.
    """

    number: int
    scores: tuple[float, ...] = ()  # at each rung it has been through; finite, at most 1, more is better
    seconds: tuple[float, ...] = ()  # that each of these took
    work: float | None = None  # of its first epoch, beside that of others; None: it is not known
    running: bool = False  # somebody works on it now
    final: bool = False  # it goes no further: at the top, stopped early, diverged, or its checkpoint is gone

    @property
    def rung(self) -> int:
        """The last rung it has been through, from 0; -1 before the first."""
        return len(self.scores) - 1


@dataclass(frozen=True, slots=True)
class Promote:
    """Train a configuration on, up to this rung."""

    number: int
    rung: int


@dataclass(frozen=True, slots=True)
class Propose:
    """Begin a new configuration and train it up to this rung."""

    rung: int
    place: int = 0  # in `works`; later than the first where there is no time for those before it


@dataclass(frozen=True, slots=True, kw_only=True)
class Ladder:
    """What is known when a worker asks."""

    rungs: tuple[int, ...]  # epochs in all at each
    climbs: tuple[Climb, ...]  # those that are on a rung, or on their way to the first
    seconds_left: float
    next_work: float | None = None  # of the first epoch of what would be proposed

    @property
    def top(self) -> int:
        """The last rung."""
        return len(self.rungs) - 1


def rungs(max_epochs: int, eta: int = ETA) -> tuple[int, ...]:
    """Epochs in all at each rung: powers of `eta`, the last one cut short at `max_epochs`. 20 -> (1, 3, 9, 20)."""
    found = [1]
    while found[-1] * eta < max_epochs:
        found.append(found[-1] * eta)
    return (*found, max_epochs) if max_epochs > found[-1] else tuple(found)


def next_step(
    climbs: Sequence[Climb],
    *,
    scheduler: Scheduler,
    rungs: tuple[int, ...],
    may_propose: bool,
    seconds_left: float | None = None,
    seconds_total: float | None = None,
    best: float | None = None,
    works: Sequence[float | None] = (None,),
) -> Promote | Propose | None:
    """Decide for one free worker.

    Parameters
    ----------
    climbs
        All configurations of the search that were begun.
    rungs
        Epochs in all at each rung, as `rungs()` gives them.
    may_propose
        Whether the budget has room for one more configuration.
    seconds_left, seconds_total
        Until the deadline, and of the whole search; None: there is no deadline.
    best
        The highest score that there is, that of configurations on no rung included; None: the highest of `climbs`.
    works
        The work of the first epoch of each configuration that could be begun, one at least, in the order of turns;
        None: not known, as of one that is still to be drawn, and taken to be like others.

    Returns
    -------
    None when there is nothing to do before the deadline. While others are at work it may become something: ask again
    when one of them has ended. Whoever gets None while nothing is running is done.
    """
    if seconds_left is not None and seconds_left <= 0:
        return None
    on_rungs = tuple(climb for climb in climbs if climb.scores or not climb.final)
    left = math.inf if seconds_left is None else seconds_left
    ladders = [Ladder(rungs=rungs, climbs=on_rungs, seconds_left=left, next_work=work) for work in works]
    in_time = [place for place, ladder in enumerate(ladders) if first_seconds(ladder) <= ladder.seconds_left]
    place, may_propose = min(in_time, default=0), may_propose and bool(in_time)
    ladder = ladders[place]
    if scheduler == "promotion":
        scores = [score for climb in climbs for score in climb.scores]
        step = _most_promising(ladder, may_propose, max(scores, default=0.0) if best is None else best)
    elif scheduler == "one_epoch":
        step = _after_one_epoch(ladder, may_propose, seconds_total)
    else:
        step = _to_the_end(ladder, may_propose)
    return replace(step, place=place) if isinstance(step, Propose) else step


def promotable(ladder: Ladder) -> list[Climb]:
    """Configurations that may be promoted, those on the highest rungs first (Li et al., MLSys 2020, Algorithm 2).

    On every rung the best third of all that have ever been through it is promoted, and at least the best one. Who was
    not among them when it came may be so later, when there are more to compare with.
    """
    found = []
    for rung in reversed(range(ladder.top)):
        ranked = _ranked(ladder, rung)
        best = ranked[: max(1, len(ranked) // ETA)]
        found += [climb for climb in best if climb.rung == rung and not climb.running and not climb.final]
    return found


def _most_promising(ladder: Ladder, may_propose: bool, best: float) -> Promote | Propose | None:
    """Promote or propose, whichever promises more gain a second; neither gets less than its fair share of the time."""
    fitting = [climb for climb in promotable(ladder) if part_in_time(ladder, climb) > 0]
    if not fitting:
        return Propose(0) if may_propose else None
    # Something to compare with, unless it takes the time that the only one needs: one epoch tells little of three.
    few = sum(climb.rung >= 0 for climb in ladder.climbs) < HANDFUL
    next_rung = min(seconds_of(ladder, climb, climb.rung + 1) for climb in fitting)
    either = ladder.seconds_left - first_seconds(ladder) < next_rung <= ladder.seconds_left
    if may_propose and few and not either:
        return Propose(0)
    promised = {climb.number: promise_of(ladder, climb, best) for climb in fitting}
    # Between equals the first in the list, which is on the highest rung.
    climb = max(fitting, key=lambda each: promised[each.number])
    promote = Promote(climb.number, climb.rung + 1)
    if not may_propose:
        return promote
    first, above = seconds_spent(ladder)
    if above < FAIR_SHARE * (first + above):
        return promote
    # A first rung without time for a second one is no investment: then it has to be worth it as it is.
    if first < FAIR_SHARE * (first + above) and first_seconds(ladder, 0, 1) <= ladder.seconds_left:
        return Propose(0)
    return promote if promised[climb.number] >= promise_of_new(ladder, best) else Propose(0)


def _after_one_epoch(ladder: Ladder, may_propose: bool, seconds_total: float | None) -> Promote | Propose | None:
    """Train all for one epoch, then the best few to the end (Egele et al., 2023, arXiv 2307.15422).

    With a time limit the first half of it is for first epochs, and the other half trains the best, one after another,
    for as long as it lasts; else the `KEPT` best are trained once no first epoch is left to wait for.
    """
    limited = seconds_total is not None and math.isfinite(ladder.seconds_left)
    half_gone = limited and ladder.seconds_left < (1 - PROPOSING) * (seconds_total or 0.0)
    if may_propose and not half_gone:
        return Propose(0)
    ranked = _ranked(ladder, 0)
    if not limited:
        ranked = [] if any(climb.rung < 0 for climb in ladder.climbs) else ranked[:KEPT]
    for climb in ranked:
        highest = _highest_in_time(ladder, climb)
        if highest > climb.rung and not climb.running and not climb.final:
            return Promote(climb.number, highest)
    return Propose(0) if may_propose else None


def _to_the_end(ladder: Ladder, may_propose: bool) -> Promote | Propose | None:
    """Train every configuration to the top; one that was interrupted on its way first."""
    for climb in ladder.climbs:
        paused = 0 <= climb.rung < ladder.top and not climb.running and not climb.final
        if paused and _highest_in_time(ladder, climb) > climb.rung:
            return Promote(climb.number, ladder.top)
    return Propose(ladder.top) if may_propose else None


def promise_of(ladder: Ladder, climb: Climb, best: float) -> float:
    """Expected improvement over `best` a second, if a configuration is promoted; see `_promise`."""
    room = 1 - climb.scores[-1]
    return _promise(ladder, climb.rung, (room, room**2), lambda rung: seconds_of(ladder, climb, rung), best)


def promise_of_new(ladder: Ladder, best: float) -> float:
    """Expected improvement over `best` a second, if a new configuration is proposed; see `_promise`.

    Its first score is taken to be normal around the median m of those before, with the variance of the upper half of
    them, (2 u² + Σ (x - m)²) / (2 + n) over the n scores x > m, where u = 0.1 (1 - m) is the prior. How bad the bad
    ones are is of no account.
    """
    scores = [climb.scores[0] for climb in ladder.climbs if climb.rung >= 0]
    middle = median(scores) if scores else 0.0
    room = 1 - middle
    above = [(score - middle) ** 2 for score in scores if score > middle]
    variance = (BELIEF * (FIRST_SPREAD * room) ** 2 + sum(above)) / (BELIEF + len(above))
    return _promise(ladder, -1, (room, room**2 + variance), lambda rung: first_seconds(ladder, rung), best)


def _promise(
    ladder: Ladder, start: int, room: tuple[float, float], seconds: Callable[[int], float], best: float
) -> float:
    """The most improvement a second that is expected by going up from `start` to any rung there is time for.

    Let R be the room that a score leaves up to 1, with mean and mean square `room`. A rung closes a share g of it, of
    mean m and spread s as in `rise`, independently of the ones before, so that at rung k

        E[R_k] = E[R_k-1] (1 - m)        E[R_k²] = E[R_k-1²] (s² + (1 - m)²)

    A rung that the deadline cuts off closes a part of it, see `_part`. The score 1 - R_k is taken to be normal. Its
    expected improvement over `best`, with z = (mean - best) / spread, is (mean - best) Φ(z) + spread φ(z). Of those
    that reach a rung one in `ETA` goes on to the next, so rung k is paid for with the probability ETA^-(k - start - 1),
    and the expected seconds are those of the rungs so weighted.
    """
    mean, square = room
    most = whole = expected = 0.0
    for rung in range(start + 1, ladder.top + 1):
        left = ladder.seconds_left - whole
        part = _part(ladder, rung, seconds(rung), left)
        if part <= 0:
            break
        if rung > 0:
            share, spread = (part * each for each in rise(ladder, rung))
            mean, square = mean * (1 - share), square * (spread**2 + (1 - share) ** 2)
        spent = min(seconds(rung), left)
        whole += spent
        expected += spent / ETA ** (rung - start - 1)
        gain = expected_improvement(1 - mean, math.sqrt(max(0.0, square - mean**2)), best)
        most = max(most, gain / max(expected, 1e-9))
        if part < 1:
            break
    return most


def rise(ladder: Ladder, rung: int) -> tuple[float, float]:
    """Mean and spread of the share of the room up to 1 that a rung closes, of a configuration from the rung below.

    Seen in those that have been through both, together with a prior that counts as much as `BELIEF` of them.
    """
    seen = [
        min(1.0, max(-1.0, (climb.scores[rung] - climb.scores[rung - 1]) / max(0.01, 1 - climb.scores[rung - 1])))
        for climb in ladder.climbs
        if climb.rung >= rung
    ]
    weight = BELIEF + len(seen)
    mean = (BELIEF * RISE + sum(seen)) / weight
    variance = (BELIEF * (RISE_SPREAD**2 + (RISE - mean) ** 2) + sum((share - mean) ** 2 for share in seen)) / weight
    return mean, math.sqrt(variance)


def expected_improvement(mean: float, spread: float, best: float) -> float:
    """E[max(0, X - best)] of a normal X."""
    if spread <= 0:
        return max(0.0, mean - best)
    z = (mean - best) / spread
    return max(0.0, (mean - best) * STANDARD.cdf(z) + spread * STANDARD.pdf(z))


def seconds_of(ladder: Ladder, climb: Climb, rung: int) -> float:
    """What a rung will take a configuration: its last rung's seconds, times how much longer this one took others."""
    return climb.seconds[-1] * _times_longer(ladder, climb.rung, rung)


def part_in_time(ladder: Ladder, climb: Climb) -> float:
    """How much of its way to the next rung there is time for, see `_part`: a training that is cut off is not lost."""
    rung = climb.rung + 1
    return _part(ladder, rung, seconds_of(ladder, climb, rung), ladder.seconds_left)


def _part(ladder: Ladder, rung: int, seconds: float, left: float) -> float:
    """How much of the way from the rung below to this one whole epochs cover before the deadline, 0 to 1.

    In logarithms of epochs, as rungs are: from 3 on the way to 9, epochs 4 and 5 are nearly half of it. The first rung
    is all or nothing.
    """
    if seconds <= left:
        return 1.0
    below, epochs = ladder.rungs[rung - 1] if rung else 0, _epochs(ladder, rung)
    done = math.floor(epochs * left / seconds)
    return math.log((below + done) / below) / math.log((below + epochs) / below) if below and done > 0 else 0.0


def first_seconds(ladder: Ladder, *wanted: int) -> float:
    """What these rungs, by default the first, will take a new configuration; 0 before there is any to learn from.

    By its work, beside those whose work is known, else as long as others on average.
    """
    begun = [climb for climb in ladder.climbs if climb.rung >= 0]
    paces = [climb.seconds[0] / climb.work for climb in begun if climb.work]
    if ladder.next_work is not None and paces:
        first = ladder.next_work * median(paces)
    else:
        first = fmean([climb.seconds[0] for climb in begun] or [0.0])
    return sum(first * _times_longer(ladder, 0, rung) for rung in wanted or (0,) if rung <= ladder.top)


def seconds_spent(ladder: Ladder) -> tuple[float, float]:
    """Seconds that went into first rungs, and into higher ones; what is running counts as what it will take."""
    first = above = 0.0
    for climb in ladder.climbs:
        first += sum(climb.seconds[:1])
        above += sum(climb.seconds[1:])
        if climb.running and climb.rung < 0:
            first += first_seconds(replace(ladder, next_work=climb.work))
        elif climb.running and climb.rung < ladder.top:
            above += seconds_of(ladder, climb, climb.rung + 1)
    return first, above


def _times_longer(ladder: Ladder, rung: int, later: int) -> float:
    """How many times the seconds of a rung a later one takes: as seen, else by their epochs."""
    pairs = [(climb.seconds[rung], climb.seconds[later]) for climb in ladder.climbs if climb.rung >= later]
    seen = [after / before for before, after in pairs if before > 0 and after > 0]
    return median(seen) if seen else _epochs(ladder, later) / _epochs(ladder, rung)


def _epochs(ladder: Ladder, rung: int) -> int:
    return ladder.rungs[rung] - (ladder.rungs[rung - 1] if rung else 0)


def _highest_in_time(ladder: Ladder, climb: Climb) -> int:
    """The highest rung that a configuration can be trained to before the deadline."""
    spent, rung = 0.0, climb.rung
    while rung < ladder.top:
        spent += seconds_of(ladder, climb, rung + 1)
        if spent > ladder.seconds_left:
            break
        rung += 1
    return rung


def _ranked(ladder: Ladder, rung: int) -> list[Climb]:
    """All that have been through a rung, best first; between equal scores the one that came first."""
    reached = [climb for climb in ladder.climbs if climb.rung >= rung]
    return sorted(reached, key=lambda climb: (-climb.scores[rung], climb.number))
