"""Imports a module that is not installed."""

import no_such_library  # noqa: F401  (that is the point)
