"""Is written for a later version of the hooks."""

from automl_tl.plugin import hookimpl

AUTOML_TL_HOOK_API = 99


@hookimpl
def automl_tl_head_families():
    return []
