"""Trials without a study: they answer what a plugin suggests, by chance or from an end of each range, and record it."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from typing import Literal, cast

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from automl_tl.plugin import Choice

Pick = Literal["low", "high", "random"]


class Draw:
    """One trial: satisfies `automl_tl.plugin.Suggest`, and refuses the ranges that Optuna refuses."""

    def __init__(self, pick: Pick = "random", seed: int = 0) -> None:
        self.parameters: dict[str, Choice] = {}
        self.space: dict[str, BaseDistribution] = {}
        self._pick = pick
        self._random = random.Random(seed)

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """Return a number within the range."""
        return cast(float, self._answer(name, FloatDistribution(low, high, step=step, log=log)))

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """Return a whole number within the range."""
        return cast(int, self._answer(name, IntDistribution(low, high, step=step, log=log)))

    def suggest_categorical(self, name: str, choices: Sequence[Choice]) -> Choice:
        """Return one of the choices."""
        return self._answer(name, CategoricalDistribution(choices))

    def _answer(self, name: str, distribution: BaseDistribution) -> Choice:
        if self.space.setdefault(name, distribution) != distribution:
            raise ValueError(f"{name!r} is suggested as {self.space[name]} and, in the same trial, as {distribution}")
        if name not in self.parameters:
            self.parameters[name] = self._value(distribution)
        return self.parameters[name]

    def _value(self, distribution: BaseDistribution) -> Choice:
        if isinstance(distribution, CategoricalDistribution):
            choices = distribution.choices
            return {"low": choices[0], "high": choices[-1], "random": self._random.choice(choices)}[self._pick]
        if not isinstance(distribution, IntDistribution | FloatDistribution):
            raise TypeError(f"no values can be drawn from {distribution}")
        low, high = distribution.low, distribution.high
        if self._pick != "random":
            return low if self._pick == "low" else high
        if isinstance(distribution, IntDistribution):
            return self._random.randrange(distribution.low, distribution.high + 1, distribution.step)
        if distribution.step is not None:
            return low + distribution.step * self._random.randint(0, round((high - low) / distribution.step))
        if distribution.log:
            return math.exp(self._random.uniform(math.log(low), math.log(high)))
        return self._random.uniform(low, high)


def draws(count: int) -> Iterator[Draw]:
    """Yield a trial at the low end of every range, one at the high end, then random ones: always the same ones."""
    yield Draw("low")
    yield Draw("high")
    yield from (Draw("random", seed) for seed in range(2, count))
