"""The search itself: ask Optuna for a spec, train it in a slot, tell the study; until the budget is spent.

Each slot has a supervisor that takes one trial after another. What the host knows, the study knows: a killed host loses
nothing, a killed child costs its trial one more try.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from automl_tl.engine.slot import ChildDied, Children, Interrupted
from automl_tl.engine.slots import Slot
from automl_tl.engine.supervise import supervise
from automl_tl.errors import AutomlTlError, RunError, TrialError
from automl_tl.features.task import PreparedTask
from automl_tl.host import PluginHost
from automl_tl.model.plan import cut, tap
from automl_tl.model.spec import TrialSpec
from automl_tl.search.inputs import Stored
from automl_tl.search.recipes import recipe_parameters
from automl_tl.search.space import Space, SpaceContext, suggest_spec
from automl_tl.search.study import completed, fail, is_settled, requeue, settled
from automl_tl.search.together import AT_ONCE, run_together, shared_parameters, wants_company
from automl_tl.search.trial import CHECKPOINT, SourceOrder, TrialOrder, TrialReport, run_trial

MAX_RECIPES = 24
FAVOR = 0.02  # difference of scores that makes a backbone e times as likely
Planned = tuple[optuna.Trial, TrialSpec]

HOPELESS = 8  # failures in a row, with nothing complete, after which a search gives up


@dataclass(frozen=True, kw_only=True)
class Budget:
    """When a search ends: after so many trials, or at a moment."""

    trials: int | None
    seconds: float | None  # over all sittings; None: until the trials are done
    deadline: float | None = None  # time.time(); set when the search begins
    max_epochs: int
    prune: bool
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
    """Ask for one more trial, with company where its head trains among others, and run it; False: no budget is left."""
    with asking:
        if stop.is_set() or not budget_left(search):
            return False
        _favor_a_backbone(search)
        planned = [_ask(search)]
        trial, spec = planned[0]
        stored, n_outputs = search.stored.get(spec.backbone), search.prepared.task.n_outputs
        if wants_company(spec, stored, search.host, n_outputs, slot.device):
            while len(planned) < AT_ONCE and budget_left(search) and not _has_waiting(search):
                search.study.enqueue_trial(shared_parameters(trial, spec))
                planned.append(_ask(search))
    if len(planned) == 1:
        _run_one(search, trial, spec, slot, children, stop)
    else:
        _run_together(search, planned, slot, children, stop)
    _give_up_if_hopeless(search)
    return True


def _ask(search: Search) -> Planned:
    trial = search.study.ask()
    try:
        spec = suggest_spec(search.space, trial, search.context)
        trial.set_user_attr("spec", spec.to_json())
    except BaseException as error:
        fail(search.study, _frozen(search.study, trial), str(error))
        raise
    return trial, spec


def enqueue_recipes(search: Search) -> Search:
    """Queue the known-good recipes; at most half of a trial budget goes to them. Those that were queued stay so.

    Returns the search with the cuts that the recipes train from, so that one pass stores the outputs at all of them.
    """
    if not search.budget.recipes:
        return search
    most = MAX_RECIPES if search.budget.trials is None else min(MAX_RECIPES, -(-search.budget.trials // 2))
    before = {trial.user_attrs.get("recipe") for trial in search.study.get_trials(deepcopy=False)}
    wanted: dict[str, set[int]] = {}
    for name, spec, parameters in recipe_parameters(search.space, search.context, most, tuple(search.favored) or None):
        wanted.setdefault(spec.backbone, set()).add(cut(spec.plan))
        if name not in before:
            search.study.enqueue_trial(parameters, user_attrs={"recipe": name})
    also = {name: tuple(sorted(cuts - {0, len(search.context.backbones[name])})) for name, cuts in wanted.items()}
    stored = {name: replace(stored, also=also.get(name, ())) for name, stored in search.stored.items()}
    return replace(search, stored=stored)


def _has_waiting(search: Search) -> bool:
    return bool(search.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))


def _favor_a_backbone(search: Search) -> None:
    """Let every second proposal be of a backbone drawn by its score; the sampler's own are free.

    A backbone that scored 0.02 less is drawn less than half as often.
    """
    trials = search.study.get_trials(deepcopy=False)
    fixed = "backbone" in search.context.overrides
    if fixed or len(search.favored) < 2 or len(trials) % 2 or _has_waiting(search):
        return
    scores = np.array(list(search.favored.values()))
    odds = np.exp((scores - scores.max()) / FAVOR)
    drawn = np.random.default_rng((search.seed, len(trials))).choice(len(odds), p=odds / odds.sum())
    search.study.enqueue_trial({"backbone": list(search.favored)[int(drawn)]})


def budget_left(search: Search) -> bool:
    """Whether another trial may begin. Trials that are running count: each will end, or come back into the queue."""
    if search.budget.deadline is not None and time.time() >= search.budget.deadline:
        return False
    if search.budget.trials is None:
        return True
    # One look: between two, a trial that ends would be counted by neither.
    trials = search.study.get_trials(deepcopy=False)
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
            text = str(error) if isinstance(error, AutomlTlError) else f"{type(error).__name__}: {error}"
            fail(search.study, _frozen(search.study, trial), f"{_whose(trial, spec)}: {text}")
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
    order = order_for(search, trial, spec, slot)
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
    if report.state == "failed":
        search.study.tell(trial, state=TrialState.FAIL)
    elif report.state == "pruned":
        search.study.tell(trial, state=TrialState.PRUNED)
    else:
        search.study.tell(trial, report.score)
        drop_checkpoints(search)


def order_for(search: Search, trial: optuna.Trial, spec: TrialSpec, slot: Slot) -> TrialOrder:
    """The plain data that the child needs for this trial."""
    backbone = search.host.backbone(spec.backbone)
    transferred_from_source = search.source is not None and search.context.joint_with == spec.backbone
    return TrialOrder(
        database=search.database,
        study=search.study.study_name,
        trial_id=trial._trial_id,
        directory=search.directory / str(trial.number),
        sources=search.host.sources,
        versions=search.host.versions(),
        spec=spec.to_json(),
        interface=search.prepared.interface(backbone),
        train=search.prepared.files(backbone, "train"),
        validation=search.prepared.files(backbone, "validation"),
        kind=search.prepared.task.kind,
        metric=search.metric,
        source=search.source if transferred_from_source else None,
        stored=search.stored.get(spec.backbone) if spec.weights == "transferred" else None,
        seed=trial_seed(search.seed, spec),
        device=slot.device,
        sitting=search.clock.began,
        divisor=2 ** int(trial.user_attrs.get("crashes", 0)),
        prune=search.budget.prune,
        deadline=search.budget.deadline,
    )


def trial_seed(seed: int, spec: TrialSpec) -> int:
    """From the run's seed and the spec alone: a spec gives the same result whichever slot runs it."""
    return int(hashlib.sha256(f"{seed} {spec.digest()}".encode()).hexdigest()[:8], 16)


def drop_checkpoints(search: Search) -> None:
    """Keep the checkpoints of the best trials and of the best linear probe, which is a baseline of every report."""
    ranked = completed(search.study)
    keep = {trial.number for trial in ranked[: search.budget.keep_checkpoints]}
    keep |= {trial.number for trial in probes(ranked)[:1]}
    for trial in ranked:
        if trial.number not in keep:
            shutil.rmtree(search.directory / str(trial.number), ignore_errors=True)


def probes(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Those of the trials that are linear probes of the last layer."""
    specs = [trial.user_attrs["spec"] for trial in trials]
    return [
        t for t, spec in zip(trials, specs, strict=True) if spec["strategy"] == "linear_probe" and not spec["joined"]
    ]


def checkpoint_of(search: Search, trial: FrozenTrial) -> Path:
    """Where a complete trial's trained state lies."""
    return search.directory / str(trial.number) / CHECKPOINT


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
