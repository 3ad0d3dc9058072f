"""Nothing is wrong with this one: its neighbors do not keep it from working."""

from automl_tl.plugin import Head, hookimpl


@hookimpl
def automl_tl_heads():
    return [Head(name="sound", description="nothing wrong", build=print)]
