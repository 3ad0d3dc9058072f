"""Forgets to return what it made."""

from automl_tl.plugin import Head, hookimpl


@hookimpl
def automl_tl_heads():
    Head(name="lost", description="never returned", build=print)
