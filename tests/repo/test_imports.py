"""What an import may cost: help, configuration and plugin listings answer without the heavy libraries."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.repo

HEAVY = ("torch", "optuna", "sklearn", "pandas", "scipy")
LIGHT_MODULES = ("automl_tl", "automl_tl.config", "automl_tl.plugin", "automl_tl.host", "automl_tl.cli")


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_loads_nothing_heavy(module):
    assert loaded_after(f"import {module}") == set()


def test_loading_every_plugin_loads_nothing_heavy():
    assert loaded_after("from automl_tl.host import load_host; assert load_host().records") == set()


def test_data_loads_no_torch():
    assert not loaded_after("import automl_tl.data") & {"torch", "optuna"}


def test_lazy_names_are_there():
    import automl_tl

    assert all(getattr(automl_tl, name) is not None for name in automl_tl.__all__)
    assert set(automl_tl.__all__) <= set(dir(automl_tl))


def loaded_after(statement):
    """Which heavy libraries a fresh interpreter has loaded after the statement."""
    script = f"import sys; {statement}; print(*sorted(set(sys.modules) & {set(HEAVY)!r}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())
