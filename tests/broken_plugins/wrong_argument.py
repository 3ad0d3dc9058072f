"""Asks for an argument that the hook does not have."""

from automl_tl.plugin import hookimpl


@hookimpl
def automl_tl_heads(model):
    return []
