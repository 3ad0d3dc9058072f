"""Every parameter that a space may ask for, found by asking it: for previews, and to catch misspelt `space:` keys."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from automl_tl.errors import ConfigError, closest
from automl_tl.plugin import Choice
from automl_tl.search.space import Space, SpaceContext, suggest_spec

SOMETIMES = {
    *("norm", "backbone", "strategy", "head", "joint_source_weight", "class_weight", "l2_sp", "pooling"),
    *("fit", "joined_taps", "patience", "batch_size", "warm_up", "clip_norm", "averaging", "tokens"),
}
"""Parameters of the default space that are no question where there is one choice, or before a backbone is scored."""


@dataclass(slots=True)
class RecordingTrial:
    """A `Suggest` that takes what it was told, else one end of every domain, and writes down what it was asked."""

    told: Mapping[str, Choice] = field(default_factory=dict)
    upper: bool = False  # the upper end, or the last choice; else the lower, or the first
    asked: dict[str, str] = field(default_factory=dict)  # parameter -> its domain, for people
    options: dict[str, tuple[Choice, ...]] = field(default_factory=dict)

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """One end of the range."""
        self.asked[name] = f"{low:g} … {high:g}" + (", log" if log else "")
        return high if self.upper else low

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """One end of the range."""
        self.asked[name] = f"{low} … {high}" + (", log" if log else "")
        return high if self.upper else low

    def suggest_categorical(self, name: str, choices: Sequence[Choice]) -> Choice:
        """The choice it was told, or the first or last."""
        self.asked[name] = ", ".join(map(str, choices))
        self.options[name] = tuple(choices)
        return self.told[name] if self.told.get(name) in choices else choices[-1 if self.upper else 0]


def parameters_of(space: Space, context: SpaceContext) -> dict[str, str]:
    """Names and domains of all parameters, in the order in which they are asked for."""
    first = RecordingTrial()
    suggest_spec(space, first, context)
    found = dict(first.asked)
    for told in _visits(first.options):
        trial = RecordingTrial(told)
        suggest_spec(space, trial, context)
        found |= trial.asked
    return found


def _visits(options: Mapping[str, tuple[Choice, ...]]) -> Iterator[dict[str, Choice]]:
    """Every backbone with every strategy and head, and each other choice once."""
    together = ("backbone", "strategy", "head")
    for values in itertools.product(*(options.get(name, (None,)) for name in together)):
        yield dict(zip(together, values, strict=True))
    for name, choices in options.items():
        if name not in together:
            yield from ({name: choice} for choice in choices)


def check_overrides(space: Space, context: SpaceContext) -> None:
    """Raise ConfigError for keys of `space:` that no parameter answers to, and for values that none can have."""
    if not context.overrides:
        return
    unnarrowed = dict(vars(context), overrides={})
    known = {alias for name in parameters_of(space, SpaceContext(**unnarrowed)) for alias in _aliases(name)}
    known |= SOMETIMES
    unknown = [key for key in context.overrides if key not in known]
    if unknown:
        lines = [f"space.{key}: no such parameter.{closest(key, known)}" for key in unknown]
        raise ConfigError("\n".join([*lines, f"Known: {', '.join(sorted(known))}"]))
    parameters_of(space, context)


def _aliases(name: str) -> Iterator[str]:
    """How a user may write a parameter's name."""
    yield name
    owner, dot, own = name.rpartition(".")
    if "@" in owner:
        yield f"{owner.partition('@')[0]}.{own}"
    elif dot and owner in ("adam", "sgd"):
        yield own
