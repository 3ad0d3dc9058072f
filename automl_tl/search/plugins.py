"""The plugins as a child process has them: rebuilt from the same sources, and refused when they are other ones."""

from __future__ import annotations

import functools

from automl_tl.errors import PluginError
from automl_tl.host import PluginHost, PluginSources, load_host


@functools.lru_cache(maxsize=1)
def host_in_child(sources: PluginSources, sitting: float) -> PluginHost:
    """The host's plugins; loaded once a sitting, because files may change between two."""
    return load_host(sources)


def check_versions(host: PluginHost, expected: dict[str, str]) -> None:
    """Raise PluginError naming the plugins that are not those the run began with."""
    got = host.versions()
    if got != expected:
        changed = sorted(name for name in {*got, *expected} if got.get(name) != expected.get(name))
        raise PluginError(
            f"the plugins changed while the run was going on: {', '.join(changed)}; expected the versions that the run "
            "began with; stop it and resume it to go on with what is there now"
        )
