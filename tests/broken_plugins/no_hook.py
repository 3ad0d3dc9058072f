"""Forgets to mark its hook."""


def automl_tl_heads():
    return []
