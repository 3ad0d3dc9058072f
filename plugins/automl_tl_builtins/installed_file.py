"""Finding a data file inside an installed package, without importing that package (some import half the world)."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path


def installed_file(package: str, relative: str) -> Path | None:
    """Return the file `relative` to the top-level `package`, None when either is missing."""
    spec = find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        return None
    candidates = (Path(location) / relative for location in spec.submodule_search_locations)
    return next((path for path in candidates if path.is_file()), None)
