"""Every hook is documented: its signature in plugins/README.md, its docstring complete, its example runs."""

import doctest
import inspect
from pathlib import Path

import pytest

from automl_tl import hookspecs
from automl_tl.host import HOOKS

README = Path(__file__).parents[1] / "plugins" / "README.md"
SPECS = {name: getattr(hookspecs, name) for name in HOOKS}


def test_the_host_knows_every_hook():
    assert set(HOOKS) == {name for name in vars(hookspecs) if name.startswith("automl_tl_")}


@pytest.mark.parametrize("name", SPECS)
def test_the_readme_has_the_exact_signature(name):
    signature = str(inspect.signature(SPECS[name])).replace("'", "")  # annotations are kept as strings
    assert f"{name}{signature}" in README.read_text()


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("part", ["Returns:", "Called:", "Raises:", "Example:", ".. versionadded::"])
def test_the_docstring_is_complete(name, part):
    assert part in inspect.getdoc(SPECS[name])


@pytest.mark.parametrize("name", SPECS)
def test_the_example_runs(name):
    [example] = doctest.DocTestFinder(recurse=False).find(SPECS[name], name, globs={})
    assert example.examples
    report = []
    result = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(example, out=report.append)
    assert result.failed == 0, "".join(report)
    assert result.attempted > 0
