"""Suggesting what was suggested before: how plans and heads are rebuilt from plain data, without a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from automl_tl.errors import PluginError
from automl_tl.plugin import Choice


class Replay:
    """A `Suggest` that returns recorded values; asking for anything else is the plugin's mistake."""

    def __init__(self, values: Mapping[str, Choice]) -> None:
        self._values = values

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """The recorded number."""
        return float(self._recorded(name))  # type: ignore[arg-type]

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """The recorded whole number."""
        return int(self._recorded(name))  # type: ignore[arg-type]

    def suggest_categorical(self, name: str, choices: Sequence[Choice]) -> Choice:
        """The recorded choice."""
        return self._recorded(name)

    def _recorded(self, name: str) -> Choice:
        if name not in self._values:
            raise PluginError(
                f"parameter {name!r} was not suggested when the trial was planned (known: "
                f"{', '.join(self._values) or 'none'}); a head must suggest the same names each time it is built"
            )
        return self._values[name]
