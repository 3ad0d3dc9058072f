"""Which plugins a run searches over: the ones that are named, or all that fit the task and can be used here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from automl_tl.config import AUTO, RunConfig
from automl_tl.errors import PluginError
from automl_tl.host import PluginHost, availability
from automl_tl.plugin import Backbone, Modality


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Names to search over, and what was left out and why."""

    backbones: tuple[str, ...]
    heads: tuple[str, ...]
    strategies: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def names(self) -> dict[str, tuple[str, ...]]:
        """What a run keeps, to go on with whatever is installed later."""
        return {"backbones": self.backbones, "heads": self.heads, "strategies": self.strategies}


def as_begun(config: RunConfig, begun: Mapping[str, Sequence[str]] | None) -> RunConfig:
    """The configuration of a run that goes on, with the names that it began with instead of `auto`; None: it begins.

    A study's choices are fixed once it has a trial.
    """
    return config if begun is None else config.model_copy(update={name: tuple(begun[name]) for name in begun})


def resolve_names(config: RunConfig, host: PluginHost) -> None:
    """Raise PluginError for the first unknown name of the configuration, before any work is done."""
    for name in _named(config.backbones):
        host.backbone(name)
    for name in _named(config.heads):
        host.head(name)
    for name in _named(config.strategies):
        host.strategy(name)
    if config.source is not None:
        host.backbone(config.source.backbone)


def select_plugins(config: RunConfig, host: PluginHost, modality: Modality) -> Selection:
    """Choose backbones of the task's modality whose weights are here, and heads and strategies.

    With a source task, `auto` means its backbone: its layers are what there is to transfer.
    """
    backbones, notes = _backbones(config, host, modality)
    return Selection(
        backbones=backbones,
        heads=tuple(host.heads) if config.heads == AUTO else config.heads,
        strategies=tuple(host.strategies) if config.strategies == AUTO else config.strategies,
        notes=notes,
    )


def _backbones(config: RunConfig, host: PluginHost, modality: Modality) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if config.backbones == AUTO and config.source is not None:
        _require(host.backbone(config.source.backbone), modality)
        return (config.source.backbone,), ()
    if config.backbones != AUTO:
        for name in config.backbones:
            _require(host.backbone(name), modality)
        return config.backbones, ()
    fitting = [backbone for backbone in host.backbones.values() if backbone.input.modality == modality]
    pretrained = [backbone for backbone in fitting if backbone.weights is not None]
    usable = tuple(backbone.name for backbone in pretrained if availability(backbone) is None)
    notes = tuple(f"{b.name}: {reason}" for b in pretrained if (reason := availability(b)) is not None)
    if usable:
        return usable, notes
    from_scratch = tuple(backbone.name for backbone in fitting if backbone.weights is None)
    if not from_scratch:
        raise PluginError(
            f"no backbone reads {modality} inputs here. " + (" ".join(notes) or "Install a plugin that provides one.")
        )
    if pretrained or modality != "tabular":
        notes = (*notes, f"no pretrained {modality} backbone is installed: starting from random weights")
    return from_scratch, notes


def _require(backbone: Backbone, modality: Modality) -> None:
    if backbone.input.modality != modality:
        raise PluginError(
            f"backbone {backbone.name!r} reads {backbone.input.modality} inputs, but the task's modality is "
            f"{modality}; name another backbone, or set data.modality"
        )
    if (missing := availability(backbone)) is not None:
        raise PluginError(f"backbone {backbone.name!r}: {missing}")


def _named(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(name for name in names if name != "auto")
