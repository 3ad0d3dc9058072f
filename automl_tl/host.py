"""Finds plugins, checks what they return and indexes it by name. Loads neither torch nor any plugin at import.

Plugins come from three places, all treated alike: entry points of installed distributions (the built-in ones are found
this way too), single files in plugin directories, and objects passed in Python. A plugin that cannot be used is
recorded: never fatal by itself, never silent. Hooks are called here, once; what is left are plain values, and nothing
that a model's training touches goes through pluggy.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Literal, TypeVar

import pluggy

from automl_tl import hookspecs
from automl_tl.errors import PluginError, closest, unknown_name
from automl_tl.plugin import HOOK_API, Backbone, FreezingStrategy, Head, ImageInput, TabularInput, TextInput

ENTRY_POINT_GROUP = "automl_tl"
PASSED = "passed in Python"

Item = Backbone | Head | FreezingStrategy
ItemT = TypeVar("ItemT", Backbone, Head, FreezingStrategy)
Kind = Literal["backbone", "head", "strategy"]

KIND_NAMES: Mapping[Kind, str] = {"backbone": "backbone", "head": "head", "strategy": "freezing strategy"}
HOOKS: Mapping[str, type[Item]] = {
    "automl_tl_backbones": Backbone,
    "automl_tl_heads": Head,
    "automl_tl_freezing_strategies": FreezingStrategy,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginSources:
    """Where plugins come from besides the installed ones: all that a child process needs to build the same host."""

    dirs: tuple[Path, ...] = ()  # each *.py in them is a plugin, but for _* and test_*
    disabled: tuple[str, ...] = ()  # names of plugins to leave out
    objects: tuple[Item, ...] = ()  # passed in Python; must be picklable to reach a child


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginRecord:
    """What became of one plugin."""

    name: str  # of the entry point, or of the file without .py
    source: str  # for people: "automl-tl 0.1.0", the file's path, or "passed in Python"
    distribution: str | None = None
    version: str | None = None  # of the distribution; of a file, the start of its SHA-256
    provides: tuple[tuple[Kind, str], ...] = ()
    error: str | None = None  # why it cannot be used

    def __str__(self) -> str:
        return f"{self.name} ({self.source})" + (f": {self.error}" if self.error else "")


@dataclass(frozen=True, slots=True)
class PluginHost:
    """Everything that the plugins of this process provide, by name."""

    sources: PluginSources
    records: tuple[PluginRecord, ...]
    backbones: Mapping[str, Backbone]
    heads: Mapping[str, Head]
    strategies: Mapping[str, FreezingStrategy]

    def backbone(self, name: str) -> Backbone:
        """Return the backbone of this name; raises PluginError with the known names when there is none."""
        return self._named("backbone", self.backbones, name)

    def head(self, name: str) -> Head:
        """Return the head of this name; raises PluginError with the known names when there is none."""
        return self._named("head", self.heads, name)

    def strategy(self, name: str) -> FreezingStrategy:
        """Return the freezing strategy of this name; raises PluginError with the known names when there is none."""
        return self._named("strategy", self.strategies, name)

    def owner(self, kind: Kind, name: str) -> PluginRecord:
        """Return the plugin that provides an item; raises PluginError when none does."""
        for record in self.records:
            if (kind, name) in record.provides:
                return record
        raise self._unknown(kind, name)

    def broken(self) -> tuple[PluginRecord, ...]:
        """Return the plugins that cannot be used; the caller warns of them, once per run."""
        return tuple(record for record in self.records if record.error)

    def versions(self) -> dict[str, str]:
        """Return what is loaded, plugin name to source and version; a child process must find the same."""
        return {record.name: _identity(record) for record in self.records if not record.error}

    def _named(self, kind: Kind, items: Mapping[str, ItemT], name: str) -> ItemT:
        if name not in items:
            raise self._unknown(kind, name)
        return items[name]

    def _unknown(self, kind: Kind, name: str) -> PluginError:
        lines = [unknown_name(KIND_NAMES[kind], name, (n for r in self.records for k, n in r.provides if k == kind))]
        if self.sources.disabled:
            lines.append(f"Left out by plugins.disabled: {', '.join(self.sources.disabled)}.")
        if broken := self.broken():
            lines += ["Plugins that failed to load:", *(f"  {record}" for record in broken)]
        return PluginError("\n".join(lines))


_INSTALLED_ONLY = PluginSources()


def load_host(sources: PluginSources = _INSTALLED_ONLY) -> PluginHost:
    """Find, load, check and index all plugins.

    Raises PluginError when a directory is missing, `disabled` names no plugin, an object passed in Python is invalid,
    two plugins share a name or provide the same one, or there is no plugin at all. A plugin that fails to load raises
    nothing here: its record says why.
    """
    found = [*_installed(), *_files(sources.dirs)]
    if not found and not sources.objects:
        raise PluginError("no plugins are installed; in a checkout run: pip install -e .")
    _check_plugin_names(found, sources.disabled)
    loaded = [_load(plugin) for plugin in found if plugin.record.name not in sources.disabled]
    if sources.objects:
        loaded.append(_provided(PluginRecord(name="python", source=PASSED), checked(sources.objects)))
    _check_item_names([record for record, _ in loaded])
    items = [item for _, provided in loaded for item in provided]
    return PluginHost(
        sources=sources,
        records=tuple(record for record, _ in loaded),
        backbones=MappingProxyType({item.name: item for item in items if isinstance(item, Backbone)}),
        heads=MappingProxyType({item.name: item for item in items if isinstance(item, Head)}),
        strategies=MappingProxyType({item.name: item for item in items if isinstance(item, FreezingStrategy)}),
    )


def availability(backbone: Backbone) -> str | None:
    """Return None when the backbone can be built here with its transferred weights, else what is missing and a remedy.

    A backbone without transferred weights needs none: the run trains it on its source task, or starts at random.
    """
    missing = missing_requirements(backbone)
    if missing or backbone.weights is None:
        return missing
    try:
        path = backbone.weights.find()
    except Exception as error:  # a plugin's code: it must not take the others down
        return f"looking for its weights failed: {_reason(error)}"
    return None if path else f"weights not installed: {backbone.weights.install}"


def missing_requirements(backbone: Backbone) -> str | None:
    """Return None when the backbone can be built here with random weights, else what is missing and the remedy."""
    missing = [module for module in backbone.requires if not _importable(module)]
    return f"needs {', '.join(missing)}: {backbone.install}" if missing else None


def kind_of(item: Item) -> Kind:
    """Return which of the three kinds of plugin value this is."""
    return "backbone" if isinstance(item, Backbone) else "head" if isinstance(item, Head) else "strategy"


def import_file(path: Path) -> ModuleType:
    """Import one plugin file, under a name that can shadow no other module and without touching `sys.path`."""
    if not path.is_file():
        raise PluginError(f"plugin file {path} does not exist")
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    spec = importlib.util.spec_from_file_location(f"automl_tl_plugin_{digest}_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise PluginError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    return module


def items_of(plugin: object) -> tuple[Item, ...]:
    """Return what a module's hooks give; raises PluginError when the module or an item is not as it should be."""
    api = getattr(plugin, "AUTOML_TL_HOOK_API", HOOK_API)
    if api > HOOK_API:
        raise PluginError(f"is written for hook API {api}, this automl-tl has {HOOK_API}; upgrade automl-tl")
    manager = pluggy.PluginManager("automl_tl")  # one a plugin, so that a broken one leaves no trace in another's
    manager.add_hookspecs(hookspecs)
    try:
        manager.register(plugin)
    except pluggy.PluginValidationError as error:  # its first line names the module that the file became
        raise PluginError(str(error).split("\n", 1)[-1]) from error
    implemented = manager.get_hookcallers(plugin) or []
    if not implemented:
        raise PluginError(f"implements no hook; define {' or '.join(HOOKS)}, marked with @hookimpl")
    items: list[Item] = []
    for caller in implemented:
        for implementation in caller.get_hookimpls():
            if caller.name in HOOKS:
                items += _returned(caller.name, implementation.function())
            elif not implementation.optionalhook:
                raise PluginError(unknown_name("hook", caller.name, HOOKS))
    return checked(items)


def checked(items: Sequence[Item]) -> tuple[Item, ...]:
    """Return the items as they are; raises PluginError for the first that is invalid or comes twice."""
    seen: set[tuple[Kind, str]] = set()
    for item in items:
        if not isinstance(item, Item):
            raise PluginError(f"expected a Backbone, Head or FreezingStrategy, got {item!r}")
        key = kind_of(item), item.name
        what = f"{KIND_NAMES[key[0]]} {item.name!r}"
        if fault := _fault(item):
            raise PluginError(f"{what}: {fault}")
        if key in seen:
            raise PluginError(f"{what} is provided twice")
        seen.add(key)
    return tuple(items)


@dataclass(frozen=True, slots=True)
class _Found:
    """A plugin that has not been loaded yet."""

    record: PluginRecord
    load: Callable[[], object]


def _installed() -> list[_Found]:
    """Entry points, sorted by distribution and name.

    Not found by pluggy's loader, which stops at the first broken plugin and
    silently leaves out a second one of the same name.
    """
    found = []
    for point in entry_points(group=ENTRY_POINT_GROUP):
        name, version = (point.dist.name, point.dist.version) if point.dist else ("unknown distribution", "")
        record = PluginRecord(name=point.name, source=f"{name} {version}", distribution=name, version=version)
        found.append(_Found(record, point.load))
    return sorted(found, key=lambda plugin: (plugin.record.distribution or "", plugin.record.name))


def _files(dirs: Sequence[Path]) -> Iterator[_Found]:
    for directory in {path.resolve(): path for path in dirs}.values():
        if not directory.is_dir():
            raise PluginError(f"plugin directory {directory} does not exist; correct plugins.dirs or --plugins-dir")
        for path in sorted(directory.glob("*.py")):
            if not path.name.startswith(("_", "test_")):
                digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
                record = PluginRecord(name=path.stem, source=str(path), version=f"sha256:{digest}")
                yield _Found(record, partial(import_file, path))


def _load(plugin: _Found) -> tuple[PluginRecord, tuple[Item, ...]]:
    try:
        return _provided(plugin.record, items_of(plugin.load()))
    except (Exception, SystemExit) as error:  # a plugin may raise anything
        return replace(plugin.record, error=_reason(error)), ()


def _provided(record: PluginRecord, items: tuple[Item, ...]) -> tuple[PluginRecord, tuple[Item, ...]]:
    return replace(record, provides=tuple((kind_of(item), item.name) for item in items)), items


def _identity(record: PluginRecord) -> str:
    return record.source if record.distribution or not record.version else f"{record.source} {record.version}"


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())  # pluggy and SyntaxError write several lines
    return text if isinstance(error, PluginError) else f"{type(error).__name__}: {text}"


def _returned(hook: str, result: object) -> list[Item]:
    wanted = f"{hook}() must return an iterable of {HOOKS[hook].__name__}"
    if not isinstance(result, Iterable):
        raise PluginError(f"{wanted}, got {result!r}")
    items = list(result)
    for item in items:
        if not isinstance(item, HOOKS[hook]):
            raise PluginError(f"{wanted}, got {item!r} in it")
    return items


def _fault(item: Item) -> str | None:
    """What is wrong with an item, as far as can be told without building anything."""
    if not isinstance(item.name, str) or not item.name.isidentifier():
        return "the name must be a Python identifier"
    if not callable(item.plan if isinstance(item, FreezingStrategy) else item.build):
        return f"{'plan' if isinstance(item, FreezingStrategy) else 'build'} must be a function"
    if not isinstance(item, Backbone):
        return None
    groups = item.layer_groups
    if not isinstance(groups, tuple) or not groups or not all(isinstance(group, str) for group in groups):
        return f"layer_groups must be a non-empty tuple of names, got {groups!r}"
    if len(set(groups)) < len(groups):
        return f"layer_groups must be unique, got {groups!r}"
    if not isinstance(item.input, ImageInput | TextInput | TabularInput):
        return f"input must be an ImageInput, TextInput or TabularInput, got {item.input!r}"
    return None


def _check_plugin_names(found: Sequence[_Found], disabled: Sequence[str]) -> None:
    records: dict[str, PluginRecord] = {}
    for plugin in found:
        name = plugin.record.name
        first = records.setdefault(name, plugin.record)
        if first is not plugin.record and name not in disabled:
            raise PluginError(
                f"two plugins are named {name!r}: in {first.source} and in {plugin.record.source}; "
                "rename or uninstall one of them"
            )
    for name in disabled:
        if name not in records:
            raise PluginError(f"plugins.disabled names {name!r}, which is no plugin.{closest(name, records)}")


def _check_item_names(records: Sequence[PluginRecord]) -> None:
    owners: dict[tuple[Kind, str], PluginRecord] = {}
    for record in records:
        for key in record.provides:
            first = owners.setdefault(key, record)
            if first is not record:
                kind, name = key
                raise PluginError(
                    f"two plugins provide the {KIND_NAMES[kind]} {name!r}: {first} and {record}; "
                    "leave one of them out with plugins.disabled"
                )


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # a parent package is missing
        return False
