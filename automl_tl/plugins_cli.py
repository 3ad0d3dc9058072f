"""`automl-tl plugins`: what is installed, what one of them is, and whether it keeps the rules. Parses, calls, prints.

`list` answers without torch; `show` and `check` build things, and import what that takes when they run.
"""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from automl_tl.errors import PluginError, unknown_name
from automl_tl.host import (
    KIND_NAMES,
    Item,
    PluginHost,
    PluginRecord,
    PluginSources,
    availability,
    import_file,
    items_of,
    kind_of,
    load_host,
    missing_requirements,
)
from automl_tl.plugin import HOOK_API, Backbone, ImageInput, TextInput

if TYPE_CHECKING:
    from automl_tl.testing import Check

EXAMPLE_DEPTH = 6  # layer groups of the backbone for which a strategy's parameters are shown
EXAMPLE_COLUMNS = 16  # of the table for which a tabular backbone is shown

plugins_app = typer.Typer(help="Backbones, heads and freezing strategies: list, show, check.", no_args_is_help=True)


class KindOption(StrEnum):
    """What `--kind` takes."""

    backbone = "backbone"
    head = "head"
    strategy = "strategy"


PluginsDirs = Annotated[
    list[Path] | None,
    typer.Option("--plugins-dir", metavar="DIR", help="A folder of plugin files; may be given several times."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


@plugins_app.command("list")
def list_plugins(
    kind: Annotated[KindOption | None, typer.Option(help="Only items of this kind.")] = None,
    plugins_dir: PluginsDirs = None,
    as_json: AsJson = False,
) -> None:
    """List what every plugin provides, and every plugin that cannot be used with the reason."""
    host = _host(plugins_dir)
    plugins = [_plugin_facts(host, record, kind) for record in host.records]
    plugins = [plugin for plugin in plugins if plugin["provides"] or plugin["error"] or not kind]
    if as_json:
        _print_json({"hook_api": HOOK_API, "plugins": plugins})
        return
    table = Table("NAME", "KIND", "SOURCE", Column("STATUS", overflow="fold"), box=box.SIMPLE)
    for plugin in plugins:
        for item in plugin["provides"]:
            table.add_row(item["name"], KIND_NAMES[item["kind"]], escape(plugin["source"]), escape(item["status"]))
    console = Console()
    console.print(table)
    if broken := host.broken():
        console.print("Plugins that failed to load:")
        for record in broken:
            console.print(f"  {escape(str(record))}", highlight=False, soft_wrap=True)


@plugins_app.command("show")
def show_plugin(
    name: Annotated[str, typer.Argument(help="The name of a backbone, head or freezing strategy.")],
    plugins_dir: PluginsDirs = None,
    as_json: AsJson = False,
) -> None:
    """Show a backbone's layer groups and weights, or what a head or freezing strategy lets the search choose."""
    host = _host(plugins_dir)
    found = [item for item in _items(host) if item.name == name]
    if not found:
        raise PluginError(unknown_name("backbone, head or freezing strategy", name, {i.name for i in _items(host)}))
    described = [_describe(host, item) for item in found]
    if as_json:
        _print_json(described)
        return
    console = Console()
    for facts in described:
        _print_facts(console, facts)


@plugins_app.command("check")
def check_plugin(
    plugin: Annotated[str, typer.Argument(metavar="NAME|FILE", help="A plugin, what it provides, or a .py file.")],
    plugins_dir: PluginsDirs = None,
) -> None:
    """Check that a plugin keeps the rules; exit code 1 when it does not."""
    from automl_tl.testing import iter_checks

    items = items_of(import_file(Path(plugin))) if plugin.endswith(".py") else _provided(_host(plugins_dir), plugin)
    table = Table("ITEM", "RULE", Column("RESULT", overflow="fold"), box=box.SIMPLE)
    failures = 0
    for check in iter_checks(items):
        result = _outcome(check)
        failures += result.startswith("broken")
        table.add_row(f"{KIND_NAMES[check.kind]} {check.item}", check.name, escape(result))
    console = Console()
    console.print(table)
    if failures:
        console.print(f"{escape(plugin)} breaks {failures} of {table.row_count} rules")
        raise typer.Exit(1)
    console.print(f"{escape(plugin)} breaks none of {table.row_count} rules")


def _host(plugins_dir: list[Path] | None) -> PluginHost:
    return load_host(PluginSources(dirs=tuple(plugins_dir or ())))


def _items(host: PluginHost) -> list[Item]:
    return [*host.backbones.values(), *host.heads.values(), *host.strategies.values()]


def _provided(host: PluginHost, name: str) -> list[Item]:
    """The items of the plugin of this name, else those that have the name themselves."""
    for record in host.records:
        if record.name == name and record.error:
            raise PluginError(f"plugin {record}")
    items = [item for item in _items(host) if host.owner(kind_of(item), item.name).name == name]
    items = items or [item for item in _items(host) if item.name == name]
    if not items:
        raise PluginError(unknown_name("plugin", name, {r.name for r in host.records} | {i.name for i in _items(host)}))
    return items


def _plugin_facts(host: PluginHost, record: PluginRecord, kind: KindOption | None) -> dict[str, Any]:
    items = [item for item in _items(host) if (kind_of(item), item.name) in record.provides]
    return {
        "name": record.name,
        "source": record.source,
        "distribution": record.distribution,
        "version": record.version,
        "error": record.error,
        "provides": [_summary(item) for item in items if kind in (None, kind_of(item))],
    }


def _summary(item: Item) -> dict[str, Any]:
    missing = availability(item) if isinstance(item, Backbone) else None
    return {"kind": kind_of(item), "name": item.name, "description": item.description, "status": missing or "ok"}


def _describe(host: PluginHost, item: Item) -> dict[str, Any]:
    facts = _summary(item) | {"source": host.owner(kind_of(item), item.name).source}
    if isinstance(item, Backbone):
        return facts | {"input": _input(item), "layer_groups": _layer_groups(item), "weights": _weights(item)}
    from automl_tl.testing.parameters import search_parameters

    return facts | {"parameters": search_parameters(item, depth=EXAMPLE_DEPTH)}


def _input(backbone: Backbone) -> dict[str, Any]:
    wanted = backbone.input
    if isinstance(wanted, ImageInput):
        return {"modality": "image", "size": wanted.size, "smallest": wanted.smallest}
    if isinstance(wanted, TextInput):
        return {"modality": "text", "tokenizer": wanted.identity}
    return {"modality": "tabular"}


def _layer_groups(backbone: Backbone) -> list[dict[str, Any]]:
    if missing_requirements(backbone):
        return [{"name": name, "parameters": None, "flop_share": None} for name in backbone.layer_groups]
    from automl_tl.model.groups import describe_groups

    groups = describe_groups(backbone, _example_shape(backbone))
    return [{"name": g.name, "parameters": g.parameters, "flop_share": g.flop_share} for g in groups]


def _example_shape(backbone: Backbone) -> tuple[int, ...]:
    if isinstance(backbone.input, ImageInput):
        return (3, backbone.input.size, backbone.input.size)
    return () if isinstance(backbone.input, TextInput) else (EXAMPLE_COLUMNS,)


def _weights(backbone: Backbone) -> dict[str, Any] | None:
    weights = backbone.weights
    if weights is None:
        return None
    path = None if availability(backbone) else weights.find()
    return {
        "origin": weights.origin,
        "license": weights.license,
        "sha256": weights.sha256,
        "path": str(path) if path else None,
        "install": weights.install,
    }


def _outcome(check: Check) -> str:
    from automl_tl.testing import CheckSkipped, Nonconformance

    try:
        check.run()
    except CheckSkipped as skipped:
        return f"skipped: {skipped}"
    except Nonconformance as broken:
        return f"broken: {broken}"
    except Exception as error:  # the plugin's own code failed
        return f"broken: {type(error).__name__}: {error}"
    return "ok"


def _print_json(value: object) -> None:
    Console().print_json(json.dumps(value))


def _print_facts(console: Console, facts: dict[str, Any]) -> None:
    console.print(f"[bold]{facts['name']}[/bold]: {KIND_NAMES[facts['kind']]}, from {escape(facts['source'])}")
    console.print(escape(facts["description"]), soft_wrap=True)
    console.print(f"Status: {escape(facts['status'])}", soft_wrap=True)
    if facts["kind"] != "backbone":
        _print_parameters(console, facts)
        return
    console.print(f"Input: {escape(_pairs(facts['input']))}", soft_wrap=True)
    table = Table("LAYER GROUP", "PARAMETERS", "SHARE OF FLOPS", box=box.SIMPLE)
    for group in facts["layer_groups"]:
        known = group["parameters"] is not None
        numbers = (f"{group['parameters']:,}", f"{group['flop_share']:.1%}") if known else ("?", "?")
        table.add_row(escape(group["name"]), *numbers)
    console.print(table)
    for name, value in (facts["weights"] or {"weights": "none; random, or trained on the run's source task"}).items():
        console.print(f"{name}: {escape(str(value))}", highlight=False, soft_wrap=True)


def _print_parameters(console: Console, facts: dict[str, Any]) -> None:
    if not facts["parameters"]:
        console.print("Nothing to choose.")
        return
    if facts["kind"] == "strategy":
        console.print(f"For a backbone of {EXAMPLE_DEPTH} layer groups:")
    table = Table("PARAMETER", "VALUES", box=box.SIMPLE)
    for name, domain in facts["parameters"].items():
        values = domain.get("choices")
        text = ", ".join(map(str, values)) if values else f"{domain['low']} to {domain['high']}"
        table.add_row(escape(name), escape(text + (", log scale" if domain.get("log") else "")))
    console.print(table)


def _pairs(facts: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" if name != "modality" else str(value) for name, value in facts.items())
