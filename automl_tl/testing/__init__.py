"""The conformance kit: what every plugin must do, as small checks. For tests and `automl-tl plugins check` only.

A plugin author writes one line, and gets one test per item and check:

    test_conforms = conformance_test("my_module")

The checks lie in `strategies`, `heads` and `backbones`. A check is a function of one item that returns when the item
conforms, raises `Nonconformance` when it doesn't, and `CheckSkipped` when it can't be told on this machine.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from automl_tl.errors import unknown_name
from automl_tl.host import Item, Kind, import_file, items_of
from automl_tl.plugin import Backbone, Head
from automl_tl.testing.backbones import BACKBONE_CHECKS, WEIGHTS_CHECKS
from automl_tl.testing.heads import HEAD_CHECKS
from automl_tl.testing.outcome import CheckSkipped, Nonconformance
from automl_tl.testing.strategies import STRATEGY_CHECKS

__all__ = ["Check", "CheckSkipped", "Nonconformance", "conformance_test", "iter_checks"]


@dataclass(frozen=True, slots=True)
class Check:
    """One check of one item."""

    kind: Kind
    item: str
    name: str  # of the check, e.g. "search_space_is_static"
    run: Callable[[], None]

    @property
    def id(self) -> str:
        """The check's name in a test report, e.g. "strategy-surgical-search_space_is_static"."""
        return f"{self.kind}-{self.item}-{self.name}"


def iter_checks(items: Iterable[Item]) -> Iterator[Check]:
    """Yield every check of every item, in the order given."""
    for item in items:
        if isinstance(item, Backbone):
            checks = BACKBONE_CHECKS + (WEIGHTS_CHECKS if item.weights else ())
            yield from (Check("backbone", item.name, check.__name__, partial(check, item)) for check in checks)
        elif isinstance(item, Head):
            yield from (Check("head", item.name, check.__name__, partial(check, item)) for check in HEAD_CHECKS)
        else:
            yield from (Check("strategy", item.name, check.__name__, partial(check, item)) for check in STRATEGY_CHECKS)


def conformance_test(
    module_or_file: str | Path, *, expected_failures: Mapping[str, str] | None = None
) -> Callable[[Check], None]:
    """Return a pytest test of all that a plugin provides; assign it to a name that starts with `test_`.

    `module_or_file` is an importable module's name, or a path that ends in `.py`. `expected_failures` maps the name of
    a check to the reason why the plugin breaks that rule on purpose: such a check must then fail.

    Raises ValueError for an expected failure of a check that is not made, PluginError for an invalid plugin, and
    whatever the plugin raises at import.
    """
    return parametrized_test(load_items(module_or_file), expected_failures=expected_failures)


def parametrized_test(
    items: Iterable[Item], *, expected_failures: Mapping[str, str] | None = None
) -> Callable[[Check], None]:
    """As `conformance_test`, for items at hand."""
    import pytest  # only authors who test need it

    checks = list(iter_checks(items))
    expected = dict(expected_failures or {})
    for name in expected:
        if name not in (names := {check.name for check in checks}):
            raise ValueError(f"expected_failures: {unknown_name('check', name, names)}")

    def parameter(check: Check) -> object:
        reason = expected.get(check.name)
        marks = [pytest.mark.xfail(reason=reason, strict=True)] if reason is not None else []
        return pytest.param(check, id=check.id, marks=marks)

    @pytest.mark.parametrize("check", [parameter(check) for check in checks])
    def test_conforms(check: Check) -> None:
        try:
            check.run()
        except CheckSkipped as skipped:
            pytest.skip(str(skipped))

    return test_conforms


def load_items(module_or_file: str | Path) -> tuple[Item, ...]:
    """Import a plugin by module name or path and return what it provides."""
    if str(module_or_file).endswith(".py"):
        return items_of(import_file(Path(module_or_file)))
    return items_of(importlib.import_module(str(module_or_file)))
