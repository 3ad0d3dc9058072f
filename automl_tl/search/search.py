"""The search itself: a free slot trains a known configuration further or a new one; until the budget is spent.

Each slot has a supervisor that takes one trial after another. What the host knows, the study knows: a killed host loses
nothing, a killed child costs its trial one more try.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from automl_tl.config import FinishConfig, Scheduler
from automl_tl.engine.slot import ChildDied, Children, Interrupted
from automl_tl.engine.slots import Slot
from automl_tl.engine.supervise import supervise
from automl_tl.errors import RunError, TrialError, reason_for
from automl_tl.features.task import PreparedTask
from automl_tl.host import PluginHost
from automl_tl.model.plan import tap
from automl_tl.model.spec import TrialSpec, spec_from_json
from automl_tl.search.checkpoints import drop_checkpoints
from automl_tl.search.configurations import CONTINUES, climbs, configurations
from automl_tl.search.inputs import Stored
from automl_tl.search.judging import Said, comparable_score, load_said
from automl_tl.search.order import climbs_rungs, judged_by_left_out, order_for, trial_seed
from automl_tl.search.proposals import enqueue_recipes, propose
from automl_tl.search.reserve import deadline_of
from automl_tl.search.schedule import Promote, next_step, rungs
from automl_tl.search.space import Space, SpaceContext, suggest_spec
from automl_tl.search.study import begin_new, begin_waiting, fail, is_settled, requeue, settled, waiting
from automl_tl.search.together import AT_ONCE, run_together, shared_parameters, wants_company
from automl_tl.search.trial import STATE, SourceOrder, TrialOrder, TrialReport, run_trial
from automl_tl.search.work import WORK, first_epoch_work

Planned = tuple[optuna.Trial, TrialSpec]

HOPELESS = 8  # failures in a row, with nothing complete, after which a search gives up
YARDSTICK = "yardstick"  # attribute of the study: the trial whose word on all samples makes holdouts comparable
KEPT = ("spec", "recipe", "draw")  # attributes of a configuration's first trial that the later ones have too
LEAST_SHARE = 0.1  # of the time limit that is left to the finish, whatever there is to confirm
LOOK_AGAIN = 0.2  # seconds until a slot that has nothing to do looks again, while another one works


@dataclass(frozen=True, kw_only=True)
class Budget:
    """When a search ends: after so many configurations, or at a moment."""

    trials: int | None
    seconds: float | None  # over all sittings; None: until the trials are done
    finish: FinishConfig = field(default_factory=FinishConfig)  # what comes after the search, and its share
    slots: int = 1  # that the finish will have
    deadline: float | None = None  # time.time() at which the search ends; set when it begins
    last_moment: float | None = None  # at which it ends while there is nothing to train on folds, see `reserve`
    end: float | None = None  # time.time() at which everything but the test split should be done
    max_epochs: int
    scheduler: Scheduler = "promotion"
    recipes: bool
    keep_checkpoints: int


@dataclass(frozen=True, kw_only=True)
class Clock:
    """Seconds of search, over all sittings of a resumed run."""

    began: float  # time.time() of this sitting
    before: float = 0.0  # seconds of the sittings before it

    def now(self) -> float:
        """Seconds since the search first began, pauses between sittings left out."""
        return self.before + time.time() - self.began


@dataclass(frozen=True, kw_only=True)
class Search:
    """All that one study's search needs; `study.db` holds its state."""

    study: optuna.Study
    database: Path
    directory: Path  # of the trials, one folder each
    host: PluginHost
    context: SpaceContext
    space: Space
    prepared: PreparedTask
    metric: str
    budget: Budget
    seed: int
    clock: Clock
    source: SourceOrder | None = None
    stored: Mapping[str, Stored] = field(default_factory=dict)  # by backbone, whose transferred weights it has
    favored: Mapping[str, float] = field(default_factory=dict)  # backbone -> its best tap's score, best backbone first

    @property
    def rungs(self) -> tuple[int, ...]:
        """Epochs after which a configuration is judged."""
        return rungs(self.budget.max_epochs)

    def stored_for(self, spec: TrialSpec) -> Stored | None:
        """What is stored of a spec's network; None where its weights are drawn anew."""
        return self.stored.get(spec.backbone) if spec.weights == "transferred" else None


def start(search: Search, slots: int, began: float | None = None) -> Search:
    """The search with its clock started and its deadline set, which leaves a share of the time to the finish.

    `slots` that the finish will have; `began`: the moment from which this sitting's time counts; None: now.
    """
    clock, budget = start_clock(search.study), search.budget
    clock = clock if began is None else replace(clock, began=began)
    if budget.seconds is None:
        return replace(search, clock=clock)
    end = clock.began + budget.seconds - clock.before
    left = end - clock.began
    deadline = end - budget.finish.share * left
    last_moment = max(deadline, end - LEAST_SHARE * left)
    budget = replace(budget, deadline=deadline, last_moment=last_moment, end=end, slots=slots)
    return replace(search, clock=clock, budget=budget)


def run_search(
    search: Search, slots: tuple[Slot, ...], children: Children, stop: threading.Event, tick: Callable[[], None]
) -> None:
    """Run trials on all slots until the budget is spent.

    Raises
    ------
    KeyboardInterrupt
        After the running trials were put back into the queue.
    TrialError
        When trial after trial failed; it quotes the first one's reason.
    """
    search = enqueue_recipes(search)
    asking = threading.Lock()

    def ticket(slot: Slot) -> bool:
        return run_next(search, slot, children, stop, asking)

    supervise(slots, ticket, stop=stop, tick=tick, on_interrupt=children.stop)


def run_next(search: Search, slot: Slot, children: Children, stop: threading.Event, asking: threading.Lock) -> bool:
    """Train a configuration further, or a new one and those whose heads train along; False: no budget is left."""
    with asking:
        if stop.is_set():
            return False
        others_work = _somebody_works(search)  # before it is planned: one of them may end while it is
        planned = _plan(search, slot)
    if not planned:
        if not others_work:
            return False
        stop.wait(LOOK_AGAIN)  # what the others are at may be worth going on with, and move the deadline
        return True
    if len(planned) == 1:
        _run_one(search, *planned[0], slot, children, stop)
    else:
        _run_together(search, planned, slot, children, stop)
    _give_up_if_hopeless(search)
    return True


def _plan(search: Search, slot: Slot) -> list[Planned]:
    """The next trial, begun in the study; none when nothing is worth it, or can be done in time."""
    if _is_over(search):
        return []
    known, queue = configurations(search.study), waiting(search.study)
    best = max((float(trial.value or 0.0) for each in known for trial in each.done), default=None)
    deadline = deadline_of(search)
    step = next_step(
        climbs(
            known,
            search.rungs,
            can_go_on=lambda trial: (search.directory / str(trial.number) / STATE).exists(),
            timed=deadline is not None,  # else a run repeats exactly
        ),
        scheduler=search.budget.scheduler,
        rungs=search.rungs,
        may_propose=budget_left(search),
        seconds_left=None if deadline is None else deadline - time.time(),
        seconds_total=None if deadline is None else deadline - search.clock.began + search.clock.before,
        best=best,
        works=[*(trial.user_attrs.get(WORK) for trial in queue), None],  # the last is still to be drawn
    )
    if step is None:
        return []
    if isinstance(step, Promote):
        return [_go_on(search, step)]
    planned = [take(search, queue, step.place)]
    trial, spec = planned[0]
    if climbs_rungs(spec) and step.rung < len(search.rungs) - 1:
        trial.set_user_attr("until", search.rungs[step.rung])
    elif wants_company(spec, search.stored_for(spec), search.host, search.prepared.task.n_outputs, slot.device):
        draw = trial_seed(search.seed, spec)  # those that train at once learn from the same samples
        trial.set_user_attr("draw", draw)
        while len(planned) < AT_ONCE and budget_left(search) and step.place >= len(queue) - 1:
            planned.append(_specified(search, begin_new(search.study, shared_parameters(trial, spec), {"draw": draw})))
            if climbs_rungs(planned[-1][1]) and step.rung < len(search.rungs) - 1:  # of a space of the user's own
                planned[-1][0].set_user_attr("until", search.rungs[step.rung])
    return planned


def take(search: Search, queue: Sequence[FrozenTrial], place: int) -> Planned:
    """Begin the trial that waits at this place, or draw one where none does. Call it where no other thread does."""
    if place < len(queue):
        return _specified(search, begin_waiting(search.study, queue[place]))
    proposal, sampler = propose(search), search.study.sampler
    search.study.sampler = proposal.sampler or sampler
    try:
        return _specified(search, begin_new(search.study, proposal.fixed, proposal.attributes))
    finally:
        search.study.sampler = sampler


def _specified(search: Search, trial: optuna.Trial) -> Planned:
    """A trial that was begun, with its spec; the study's sampler draws whatever is not fixed."""
    try:
        spec = suggest_spec(search.space, trial, search.context)
        trial.set_user_attr("spec", spec.to_json())
        if climbs_rungs(spec):
            trial.set_user_attr(WORK, first_epoch_work(search, spec))
    except BaseException as error:
        fail(search.study, _frozen(search.study, trial), str(error))
        raise
    return trial, spec


def _go_on(search: Search, step: Promote) -> Planned:
    """Begin a trial that takes a configuration to its next rung; it runs at once, whatever waits in the queue."""
    study = search.study
    known = next(each for each in configurations(study) if each.number == step.number)
    first, latest = known.trials[0], known.latest
    attributes = {CONTINUES: known.number, "until": search.rungs[step.rung], "goes_on_from": latest.number}
    attributes["crashes"] = int(first.user_attrs.get("crashes", 0)) + known.failures  # the batch is halved as often
    kept: dict[str, Any] = {key: first.user_attrs[key] for key in KEPT if key in first.user_attrs}
    template = optuna.trial.create_trial(
        state=TrialState.RUNNING,
        params=latest.params,
        distributions=latest.distributions,
        user_attrs={**kept, **attributes},
    )
    trial_id = study._storage.create_new_trial(study._study_id, template_trial=template)
    return optuna.Trial(study, trial_id), spec_from_json(first.user_attrs["spec"])


def _somebody_works(search: Search) -> bool:
    return bool(search.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))


def _is_over(search: Search) -> bool:
    deadline = deadline_of(search)
    return deadline is not None and time.time() >= deadline


def budget_left(search: Search) -> bool:
    """Whether another configuration may be proposed. Those that run count: each will end, or be queued again."""
    if _is_over(search):
        return False
    if search.budget.trials is None:
        return True
    # One look: between two, a trial that ends would be counted by neither.
    trials = [t for t in search.study.get_trials(deepcopy=False) if CONTINUES not in t.user_attrs]
    begun = sum(trial.state == TrialState.RUNNING or is_settled(trial) for trial in trials)
    return begun < search.budget.trials


def _run_one(
    search: Search, trial: optuna.Trial, spec: TrialSpec, slot: Slot, children: Children, stop: threading.Event
) -> None:
    """Train one spec in the slot's child and tell the study how it ended."""
    order = _begin(search, trial, spec, slot)
    with _requeueing(search, [(trial, spec)], stop):
        try:
            report = children.run(slot, run_trial, order)
        except (Interrupted, ChildDied, RunError):
            raise
        except Exception as error:
            # A trial that raises is the trial's failure, whoever wrote the plugin; the search goes on and the report
            # quotes it.
            fail(search.study, _frozen(search.study, trial), f"{_whose(trial, spec)}: {reason_for(error)}")
            return
        _tell(search, trial, spec, report)


def _run_together(
    search: Search, planned: Sequence[Planned], slot: Slot, children: Children, stop: threading.Event
) -> None:
    """Train several specs in one call of the slot's child."""
    orders = [_begin(search, trial, spec, slot) for trial, spec in planned]
    with _requeueing(search, planned, stop):
        reports = children.run(slot, run_together, orders)
        for (trial, spec), report in zip(planned, reports, strict=True):
            if report.state == "failed":
                fail(search.study, _frozen(search.study, trial), f"{_whose(trial, spec)}: {report.facts['reason']}")
            else:
                _tell(search, trial, spec, report)


def _begin(search: Search, trial: optuna.Trial, spec: TrialSpec, slot: Slot) -> TrialOrder:
    order = order_for(search, trial, spec, slot, deadline_of(search))
    trial.set_user_attr("slot", slot.name)
    trial.set_user_attr("started", search.clock.now())
    return order


@contextlib.contextmanager
def _requeueing(search: Search, planned: Sequence[Planned], stop: threading.Event) -> Iterator[None]:
    """Put trials that are still running back into the queue when their child is stopped or dies."""

    def requeue_all(reason: str, *, crashed: bool) -> None:
        for trial, _ in planned:
            frozen = _frozen(search.study, trial)
            if not frozen.state.is_finished():
                requeue(search.study, frozen, reason=reason, crashed=crashed)

    try:
        yield
    except Interrupted:
        requeue_all("interrupted", crashed=False)
    except ChildDied as death:
        requeue_all(str(death), crashed=not stop.is_set())
    except RunError as error:
        # The disk, not the trial: the next one would fail the same way.
        requeue_all(str(error), crashed=False)
        raise


def _whose(trial: optuna.Trial, spec: TrialSpec) -> str:
    return f"trial {trial.number} ({spec.backbone}, {spec.strategy}, {spec.head})"


def _tell(search: Search, trial: optuna.Trial, spec: TrialSpec, report: TrialReport) -> None:
    for name, value in report.facts.items():
        trial.set_user_attr(name, value)
    if "head_parameters" in report.facts:
        groups = search.context.backbones[spec.backbone][: tap(spec.plan) + 1]
        total = report.facts["head_parameters"] + sum(group.parameters for group in groups)
        trial.set_user_attr("total_parameters", total)
    trial.set_user_attr("at", search.clock.now())
    if report.state == "pruned" and report.facts["ending"] == "deadline" and CONTINUES not in trial.user_attrs:
        requeue(search.study, _frozen(search.study, trial), reason="the time was over", crashed=False)
        return
    if report.state == "failed":
        search.study.tell(trial, state=TrialState.FAIL)
    elif report.state == "pruned":
        search.study.tell(trial, state=TrialState.PRUNED)
    else:
        search.study.tell(trial, _comparable(search, trial, spec, report))
        drop_checkpoints(search)


def _comparable(search: Search, trial: optuna.Trial, spec: TrialSpec, report: TrialReport) -> float:
    """The trial's score as it compares with all others; the first that was judged by all samples is the yardstick."""
    assert report.score is not None
    trial.set_user_attr("score", report.score)
    yardstick = search.study.user_attrs.get(YARDSTICK)
    if yardstick is None:
        if judged_by_left_out(spec):
            search.study.set_user_attr(YARDSTICK, trial.number)
        return report.score
    said = said_of(search, trial.number)
    task, labels = search.prepared.task, search.prepared.development().labels
    return comparable_score(report.score, said, said_of(search, yardstick), labels, task.kind, search.metric)


def said_of(search: Search, number: int) -> Said:
    """What a complete trial said of the samples that judged it."""
    return load_said(search.directory / str(number))


def _give_up_if_hopeless(search: Search) -> None:
    ended = settled(search.study)
    failures = [trial for trial in ended if trial.state == TrialState.FAIL]
    if len(failures) >= HOPELESS and len(failures) == len(ended):
        raise TrialError(f"all of the first {len(failures)} trials failed; the first one: {reason_of(failures[0])}")


def reason_of(trial: FrozenTrial) -> str:
    """Why a trial failed."""
    return str(trial.user_attrs.get("reason", "no reason was recorded"))


def start_clock(study: optuna.Study) -> Clock:
    """A clock that goes on from the last thing the study knows of."""
    seen = [float(t.user_attrs.get(key, 0.0)) for t in study.get_trials(deepcopy=False) for key in ("at", "started")]
    return Clock(began=time.time(), before=max(seen, default=0.0))


def _frozen(study: optuna.Study, trial: optuna.Trial) -> FrozenTrial:
    return study._storage.get_trial(trial._trial_id)
