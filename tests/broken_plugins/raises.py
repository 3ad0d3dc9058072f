"""Raises when it is asked for its heads."""

from automl_tl.plugin import hookimpl


@hookimpl
def automl_tl_heads():
    raise RuntimeError("no driver\nfor this device")
