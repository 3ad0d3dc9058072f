"""One pass of a backbone over all samples, shared by the slots: blocks of rows go to whichever child is free.

The host holds the lock of what is built, its children write the shards. A block whose child died is passed once more;
rows that are stored already are not passed at all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from automl_tl.engine.slot import ChildDied
from automl_tl.engine.slots import Slot
from automl_tl.engine.spread import Crew, spread
from automl_tl.errors import AutomlTlError, TrialError
from automl_tl.features.eviction import facts_of
from automl_tl.features.frozen import autocast, change_of
from automl_tl.features.network import CLEAN, TYPES, Network
from automl_tl.features.passes import BATCH, SHARD_ROWS, OutOfRange, Pass, compute
from automl_tl.features.shards import StoreFull
from automl_tl.features.store import Entry
from automl_tl.features.task import OpenedSplit, SplitFiles
from automl_tl.host import PluginHost, PluginSources
from automl_tl.plugin import Backbone
from automl_tl.search.inputs import Stored, network_of
from automl_tl.search.plugins import host_in_child
from automl_tl.training.fastest import SHORT_BATCH, fastest_pass, precision_memory, typical_rows
from automl_tl.training.precision import has_bfloat16

Progress = Callable[[str, int, int], None]
"""(what is going on, rows done, rows in all)"""

ROWS_PASSED = "rows_passed"  # attribute of the study: samples that went through backbones before the trials
SAY_SECONDS = 0.5
BLOCKS = 4  # a slot, at most
MOST_BYTES = 512 << 20  # of whole outputs that a pass keeps before anybody has asked for them


@dataclass(frozen=True, slots=True, kw_only=True)
class PassOrder:
    """What crosses into the child that passes one block of rows."""

    sources: PluginSources
    sitting: float
    backbone: str
    stored: Stored
    files: SplitFiles
    indices: np.ndarray
    dtype: str
    view: str
    cuts: tuple[int, ...]  # whose whole outputs are stored beside the pooled ones
    done: Path  # where the child says how many rows are through


@dataclass(frozen=True, slots=True, kw_only=True)
class TimingOrder:
    """What crosses into the child that finds out how a network passes samples fastest."""

    sources: PluginSources
    sitting: float
    backbone: str
    stored: Stored
    files: SplitFiles


@dataclass(frozen=True, kw_only=True)
class Passed:
    """A network that every sample has passed."""

    network: Network  # with what a row takes, as far as it was measured
    rows: int  # that went through now; the others were stored
    notes: tuple[str, ...]  # what was found damaged


def pass_backbone(
    host: PluginHost,
    backbone: Backbone,
    stored: Stored,
    files: Sequence[SplitFiles],
    crew: Crew,
    progress: Progress,
    *,
    sitting: float,
    cuts: Sequence[int] = (),
) -> Passed:
    """Store the pooled outputs of every layer group for these splits; a no-op for samples whose are stored.

    `cuts` are those whose whole outputs will be wanted next: the same pass stores them where there is room.

    Raises
    ------
    StoreFull, TrialError
        When there is no room for them, or the backbone raised or killed child after child.
    """
    stored = _in_fastest_precision(host, backbone, stored, files[0], crew, sitting)
    for dtype in _types(stored.network, backbone, files):
        for beside in [cuts, ()] if cuts else [()]:
            try:
                return _pass(host, backbone, stored, files, dtype, beside, crew, progress, sitting)
            except OutOfRange:
                continue  # it may have been a whole output, which nobody has asked for yet
            except StoreFull:
                if not beside:
                    raise
    raise TrialError(f"backbone {backbone.name!r}: its outputs are not finite; expected numbers that float32 can hold")


def _types(network: Network, backbone: Backbone, files: Sequence[SplitFiles]) -> list[str]:
    """The types to try, first the one in which all is stored: another one was found to be too narrow then."""
    digests = np.concatenate([each.open(backbone).digests for each in files])
    return sorted(TYPES, key=lambda dtype: len(network.pooled(dtype).missing(digests)) > 0)


def _in_fastest_precision(
    host: PluginHost, backbone: Backbone, stored: Stored, files: SplitFiles, crew: Crew, sitting: float
) -> Stored:
    """The network in the precision in which it passes samples fastest here; a child tries, once a machine."""
    order = TimingOrder(sources=host.sources, sitting=sitting, backbone=backbone.name, stored=stored, files=files)
    slot = crew.slots[0]
    with _blaming(backbone):
        bfloat16 = crew.children.run(slot, prefers_bfloat16, order, slot.torch_device)
    return replace(stored, network=replace(stored.network, compute="bfloat16" if bfloat16 else "float32"))


def _pass(
    host: PluginHost,
    backbone: Backbone,
    stored: Stored,
    files: Sequence[SplitFiles],
    dtype: str,
    cuts: Sequence[int],
    crew: Crew,
    progress: Progress,
    sitting: float,
) -> Passed:
    network = stored.network
    entry, opened = network.pooled(dtype), [each.open(backbone) for each in files]
    notes = network.check(np.concatenate([split.digests for split in opened]))
    with ExitStack() as stack:
        stack.enter_context(entry.building(on_wait=lambda: progress(f"another run passes {backbone.name}", 0, 1)))
        blocks: list[tuple[SplitFiles, np.ndarray]] = []
        for each, split in zip(files, opened, strict=True):
            missing = entry.missing(split.digests)
            if split.rows.lengths is not None:
                missing = missing[np.argsort(split.rows.lengths[missing], kind="stable")]
            # Texts of all lengths in every block, so that no slot gets the long ones only. Others in more blocks than
            # slots, so that none waits long for the last one; texts, in few, are beside others of their length.
            finest = len(crew.slots) if split.rows.lengths is not None else BLOCKS * len(crew.slots)
            n_blocks = max(-(-len(missing) // SHARD_ROWS), min(finest, -(-len(missing) // BATCH)))
            blocks += [(each, missing[number::n_blocks]) for number in range(n_blocks)]
        n_missing = sum(len(indices) for _, indices in blocks)
        size = n_missing * network.width() * np.dtype(dtype).itemsize
        if n_missing and not network.store.make_room(
            size, seconds=float("inf"), keep=network.keep | {entry.key.digest()}
        ):
            raise TrialError(
                f"the pooled outputs of {backbone.name} take {size / 2**30:.2f} GiB, more than the cache may hold; "
                "raise cache.budget_gib"
            )
        if blocks:
            beside = _room_for(cuts, network, dtype, opened, size, stack)
            _share_out(host, backbone, stored, blocks, dtype, beside, crew, progress, sitting)
    return Passed(network=replace(network, seconds_per_row=_seconds_per_row(entry)), rows=n_missing, notes=notes)


def _room_for(
    cuts: Sequence[int], network: Network, dtype: str, splits: Sequence[OpenedSplit], taken: int, locks: ExitStack
) -> tuple[int, ...]:
    """Those of the cuts whose whole outputs can be stored in the pass of the pooled ones, which take `taken` bytes.

    They must lack the same samples, nobody else may be at them, and they may take `MOST_BYTES` and push nothing out:
    nobody has asked for them yet.
    """
    pooled, found, most = network.pooled(dtype), list[int](), taken + MOST_BYTES
    for cut in cuts:
        whole, size, alike = network.activations(cut, dtype), 0, True
        with ExitStack() as lock:
            if not lock.enter_context(whole.building(deadline=time.time())):
                continue
            for split in splits:
                rows, lengths = pooled.missing(split.digests), split.rows.lengths
                alike = alike and np.array_equal(rows, whole.missing(split.digests))
                tokens = 0.0 if lengths is None or not len(rows) else float(lengths[rows].mean())
                size += round(len(rows) * network.values_at(cut, tokens)) * np.dtype(dtype).itemsize
            keep = network.keep | {pooled.key.digest(), whole.key.digest()}
            if alike and taken + size <= most and network.store.make_room(taken + size, seconds=0.0, keep=keep):
                found.append(cut)
                taken += size
                locks.push(lock.pop_all())
    return tuple(found)


def _share_out(
    host: PluginHost,
    backbone: Backbone,
    stored: Stored,
    blocks: list[tuple[SplitFiles, np.ndarray]],
    dtype: str,
    cuts: tuple[int, ...],
    crew: Crew,
    progress: Progress,
    sitting: float,
) -> None:
    """Pass the blocks in the children, and say how far they are."""
    total = sum(len(indices) for _, indices in blocks)
    scratch = stored.network.pooled(dtype).directory
    orders = [
        PassOrder(
            sources=host.sources,
            sitting=sitting,
            backbone=backbone.name,
            stored=stored,
            files=files,
            indices=indices,
            dtype=dtype,
            view=CLEAN,
            cuts=cuts,
            done=scratch / f"done-{number}",
        )
        for number, (files, indices) in enumerate(blocks)
    ]

    def call(slot: Slot, order: PassOrder) -> int:
        return crew.children.run(slot, run_pass, order, slot.torch_device)

    try:
        with _blaming(backbone):
            spread(
                crew,
                call,
                orders,
                tick=lambda _: progress(f"passing {backbone.name}", sum(_read_number(o.done) for o in orders), total),
            )
    finally:
        for order in orders:
            order.done.unlink(missing_ok=True)


@contextmanager
def _blaming(backbone: Backbone) -> Iterator[None]:
    """Say of which backbone it was that its own code raised, or killed its child."""
    try:
        yield
    except ChildDied as death:
        raise TrialError(f"backbone {backbone.name!r} cannot pass the samples: {death}; use fewer slots") from None
    except AutomlTlError:
        raise
    except Exception as error:
        raise TrialError(
            f"backbone {backbone.name!r} cannot pass the samples: {type(error).__name__}: {error}"
        ) from error


def prefers_bfloat16(order: TimingOrder, device: str) -> bool:
    """In a child: whether two short batches pass the network clearly faster in bfloat16."""
    if not has_bfloat16(device):
        return False
    backbone = host_in_child(order.sources, order.sitting).backbone(order.backbone)
    rows = order.files.open(backbone).rows
    batch = rows.batch(typical_rows(rows, SHORT_BATCH if device == "cpu" else BATCH), device)
    groups = network_of(backbone, order.stored, device)
    return fastest_pass(groups, batch, device, precision_memory(), backbone.name) == "bfloat16"


def run_pass(order: PassOrder, device: str) -> int:
    """In a child: pass one block of rows; return how many went through."""
    backbone = host_in_child(order.sources, order.sitting).backbone(order.backbone)
    network, split = order.stored.network, order.files.open(backbone)
    the_pass = Pass(
        groups=network_of(backbone, order.stored, device),
        rows=split.rows,
        digests=split.digests,
        pooled=network.pooled(order.dtype, order.view),
        cuts={cut: network.activations(cut, order.dtype, order.view) for cut in order.cuts},
        device=device,
        change=change_of(order.view),
        precision=autocast(network, device),
    )
    told = time.monotonic()

    def tick(done: int) -> None:
        nonlocal told
        if time.monotonic() - told > SAY_SECONDS or done == len(order.indices):
            told = time.monotonic()
            order.done.write_text(str(done))

    # Of a block whose child died, some shards are there already.
    left = np.intersect1d(order.indices, network.pooled(order.dtype, order.view).missing(split.digests))
    return compute(the_pass, left, tick=lambda done: tick(len(order.indices) - len(left) + done))


def _seconds_per_row(entry: Entry) -> float:
    """What a row takes in one slot, whoever computed it and when."""
    facts = facts_of(entry.directory)
    return facts.seconds / max(1, facts.rows)


def _read_number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0
