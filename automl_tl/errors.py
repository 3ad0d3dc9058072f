"""The exception tree. Every error raised on purpose derives from `AutomlTlError`; anything else is a bug.

Messages follow one template: what, whose, expected, got, remedy. `closest` and `unknown_name` write the last part.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AutomlTlError(Exception):
    """Base of every error this package raises on purpose; the command line turns it into exit code 2."""


class ConfigError(AutomlTlError):
    """The run's configuration has mistakes; the message lists all of them."""


class PluginError(AutomlTlError):
    """A plugin could not be loaded, is invalid, or was asked for by an unknown name."""


class DataError(AutomlTlError):
    """The data of a task cannot be used as it is."""


class TrialError(AutomlTlError):
    """No trial of a search ended with a score."""


class RunError(AutomlTlError):
    """A run directory cannot be created, resumed or read."""


def closest(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the known name nearest to `name`, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def reason_for(error: Exception) -> str:
    """What went wrong, for a record that has no traceback: our own sentence, or the kind of error and what it says."""
    return str(error) if isinstance(error, AutomlTlError) else f"{type(error).__name__}: {error}"


def unknown_name(what: str, name: str, known: Iterable[str]) -> str:
    """Return the sentence for a name that is not among the known ones: what is installed, and the nearest."""
    names = sorted(known)
    return f"no {what} named {name!r}. Known: {', '.join(names) or 'none'}.{closest(name, names)}"
