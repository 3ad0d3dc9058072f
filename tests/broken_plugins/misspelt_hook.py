"""Implements a hook that does not exist."""

from automl_tl.plugin import hookimpl


@hookimpl
def automl_tl_head():
    return []
