"""`automl-tl cache`: what the feature store keeps, and room made in it. Parses, calls, prints."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from automl_tl.errors import unknown_name
from automl_tl.features.store import EntryFacts, FeatureStore, default_budget, feature_root

DAY_S = 86400.0

cache_app = typer.Typer(help="Features kept from run to run: list, clear.", no_args_is_help=True)

Directory = Annotated[
    Path | None, typer.Option("--dir", metavar="PATH", help="A store elsewhere than in the user's cache directory.")
]


@cache_app.command("list")
def list_cache(
    directory: Directory = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """List what is kept, how large it is, and how long it takes to compute."""
    store = _store(directory)
    entries = sorted(store.facts(), key=_order)
    total = sum(entry.n_bytes for entry in entries)
    console = Console()
    if as_json:
        facts = {"directory": str(store.root), "budget": store.budget, "total": total}
        console.print_json(json.dumps(facts | {"entries": [_json(entry) for entry in entries]}))
        return
    if entries:
        console.print(_table(entries))
    console.print(
        f"{_size(total)} of {_size(store.budget)}, the default budget, in {store.root}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


@cache_app.command("clear")
def clear_cache(
    backbone: Annotated[str | None, typer.Option(metavar="NAME", help="Only what this backbone computed.")] = None,
    older_than: Annotated[
        float | None, typer.Option(metavar="DAYS", min=0, help="Only what was last used so long ago.")
    ] = None,
    directory: Directory = None,
) -> None:
    """Delete what is kept; a run that needs it computes it again."""
    store = _store(directory)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    names = {entry.key.backbone for entry in store.facts() if entry.key and entry.key.backbone}
    if backbone is not None and backbone not in names:
        console.print(f"Nothing to clear: {unknown_name('backbone in the store', backbone, names)}")
        return
    before = time.time() - (older_than or 0) * DAY_S

    def chosen(entry: EntryFacts) -> bool:
        of_backbone = backbone is None or (entry.key is not None and entry.key.backbone == backbone)
        return of_backbone and (older_than is None or entry.last_used < before)

    cleared = store.clear(chosen)
    console.print(f"Freed {_size(cleared.n_bytes)}, {_entries(len(cleared.entries))}, in {store.root}")
    for entry in cleared.being_built:
        console.print(f"Left, because a run is building it: {_owner(entry)}, {_what(entry)}")


def _store(directory: Path | None) -> FeatureStore:
    root = directory or feature_root()
    return FeatureStore(root=root, budget=default_budget(root))


def _order(entry: EntryFacts) -> tuple[str, str, int, str]:
    key = entry.key
    return (key.backbone, key.kind, key.cut, entry.name) if key else ("", "", 0, entry.name)


def _table(entries: list[EntryFacts]) -> Table:
    right = [Column(name, justify="right", no_wrap=True) for name in ("ROWS", "SIZE", "TOOK", "USED")]
    left = [Column(name, no_wrap=True) for name in ("BACKBONE", "WHAT", "OF")]
    table = Table(*left, *right, box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    for entry in entries:
        table.add_row(
            escape(_owner(entry)),
            _short(entry),
            escape(_of(entry)),
            f"{entry.rows:,}",
            _size(entry.n_bytes),
            f"{entry.seconds:.1f} s",
            _ago(time.time() - entry.last_used),
        )
    return table


def _short(entry: EntryFacts) -> str:
    if entry.key is None:
        return "unreadable"
    return f"cut {entry.key.cut}" if entry.key.kind == "activations" else entry.key.kind


def _of(entry: EntryFacts) -> str:
    """How the samples were prepared, without digests, and how a view changed them."""
    if entry.key is None:
        return ""
    kind, _, detail = entry.key.inputs.partition("-")
    prepared = f"{kind} {detail}" if detail.isdecimal() else kind
    return prepared if entry.key.view == "clean" else f"{prepared}, {entry.key.view}"


def _ago(seconds: float) -> str:
    for size, unit in ((DAY_S, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return "now"


def _json(entry: EntryFacts) -> dict[str, Any]:
    facts = {name: value for name, value in asdict(entry).items() if name != "key"}
    return facts | {"what": _what(entry), **(asdict(entry.key) if entry.key else {})}


def _owner(entry: EntryFacts) -> str:
    return (entry.key.backbone if entry.key else "") or "-"


def _what(entry: EntryFacts) -> str:
    return entry.key.what if entry.key else "not readable by this version"


def _entries(n: int) -> str:
    return "1 entry" if n == 1 else f"{n} entries"


def _size(n_bytes: int) -> str:
    """Bytes for people: 512 B, 1.5 KiB, 3.2 GiB."""
    size = float(n_bytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
