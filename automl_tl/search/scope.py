"""Parameter names and the user's `space:`. Every suggestion of the space and of plugins passes through a `ScopedTrial`.

Names are scoped by their owner, because the same name with other choices is an error in Optuna: a strategy's
parameter is `last_k@mobilenet_v2.k` (layer groups differ from backbone to backbone), a head's `mlp.hidden`. The user
may write the full name, the owner's `last_k.k`, or, for parameters of the space itself, the bare name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from automl_tl.config import Domain, Range
from automl_tl.errors import ConfigError
from automl_tl.plugin import Choice, Suggest


@dataclass(slots=True)
class ScopedTrial:
    """A `Suggest` that puts an owner's scope before each name and lets `overrides` fix, narrow or widen it."""

    trial: Suggest
    overrides: Mapping[str, Domain] = field(default_factory=dict)
    scope: str = ""  # of the names in the study, "last_k@mobilenet_v2."
    alias: str = ""  # how the user may write the scope, "last_k."
    values: dict[str, Choice] = field(default_factory=dict)  # what was suggested, by the owner's own names

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """A number of the range, or what `space:` says instead."""
        full, override, given = self._resolve(name)
        if not given:
            override = Range(low=low, high=high, log=log)
        value = self._number(full, override, step)
        self.values[name] = value
        return value

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """A whole number of the range, or what `space:` says instead."""
        full, override, given = self._resolve(name)
        if isinstance(override, Range) or not given:
            chosen = override if isinstance(override, Range) else Range(low=low, high=high, log=log)
            if chosen.low == chosen.high:
                value = int(chosen.low)
            else:
                value = self.trial.suggest_int(full, int(chosen.low), int(chosen.high), step=step, log=chosen.log)
        else:
            value = int(self._number(full, override, None))
        self.values[name] = value
        return value

    def suggest_categorical(self, name: str, choices: Sequence[Choice]) -> Choice:
        """One of the choices, or what `space:` says instead; a single choice is no question."""
        full, override, given = self._resolve(name)
        if isinstance(override, Range):
            value: Choice = self._number(full, override, None)
        else:
            options = override if isinstance(override, tuple) else (override,) if given else tuple(choices)
            value = options[0] if len(options) == 1 else self.trial.suggest_categorical(full, options)
        self.values[name] = value
        return value

    def suggest_number(self, name: str, choices: Sequence[float]) -> float:
        """One of these numbers, or what `space:` says instead."""
        return self._as_number(self.scope + name, self.suggest_categorical(name, tuple(choices)))

    def _number(self, full: str, domain: Domain, step: float | None) -> float:
        """A float from any kind of domain."""
        if isinstance(domain, Range):
            if domain.low == domain.high:
                return domain.low
            return self.trial.suggest_float(full, domain.low, domain.high, step=step, log=domain.log)
        if isinstance(domain, tuple):
            return self._as_number(
                full, domain[0] if len(domain) == 1 else self.trial.suggest_categorical(full, domain)
            )
        return self._as_number(full, domain)

    @staticmethod
    def _as_number(full: str, value: Choice) -> float:
        if isinstance(value, str) or value is None:
            raise ConfigError(f"space: {full} is a number, got {value!r}")
        return float(value)

    def _resolve(self, name: str) -> tuple[str, Domain, bool]:
        full = self.scope + name
        for key in (full, self.alias + name):
            if key in self.overrides:
                return full, self.overrides[key], True
        return full, None, False
