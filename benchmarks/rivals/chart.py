"""A line chart with a logarithmic time axis, as SVG: text that a repository can keep and a browser shows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 860, 460
LEFT, RIGHT, TOP, BOTTOM = 60, 230, 40, 50
COLORS = ("#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#7f7f7f", "#bcbd22")
TICKS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 3600)

Curve = Sequence[tuple[float, float]]  # (seconds, value), rising in time; a value holds until the next one


@dataclass(frozen=True, kw_only=True)
class Axes:
    """From values to pixels."""

    seconds: tuple[float, float]
    values: tuple[float, float]

    def x(self, seconds: float) -> float:
        low, high = map(math.log, self.seconds)
        return LEFT + (math.log(max(seconds, self.seconds[0])) - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high = self.values
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)


def step_chart(curves: Mapping[str, Curve], *, title: str, value_name: str, seconds: tuple[float, float]) -> str:
    """SVG of the curves between the two moments; the first one is drawn thicker."""
    shown = [value for curve in curves.values() for _, value in curve if value > 0]
    low = math.floor(20 * min(shown, default=0.0)) / 20
    high = math.ceil(20 * max(shown, default=1.0)) / 20
    axes = Axes(seconds=seconds, values=(low, max(high, low + 0.05)))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="24" font-size="14">{escape(title)}</text>',
        *_grid(axes),
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 12}" text-anchor="middle">seconds since the start</text>',
        f'<text transform="translate(16 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">{escape(value_name)}</text>',
    ]
    for number, (name, curve) in reversed(list(enumerate(curves.items()))):
        color, width = COLORS[number % len(COLORS)], 3 if number == 0 else 1.6
        path = _path(curve, axes)
        parts.append(f'<path d="{path}" fill="none" stroke="{color}" stroke-width="{width}"/>')
        height = TOP + 12 + 20 * number
        edge = WIDTH - RIGHT + 15
        parts.append(f'<path d="M{edge} {height - 4}h24" stroke="{color}" stroke-width="{width}"/>')
        parts.append(f'<text x="{edge + 32}" y="{height}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _grid(axes: Axes) -> list[str]:
    low, high = axes.values
    lines = []
    step = 0.05 if high - low <= 0.5 else 0.1
    for index in range(round((high - low) / step) + 1):
        value = low + index * step
        y = axes.y(value)
        lines.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        lines.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.2f}</text>')
    for seconds in TICKS:
        if axes.seconds[0] <= seconds <= axes.seconds[1]:
            x = axes.x(seconds)
            lines.append(f'<path d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#eee"/>')
            lines.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{seconds}</text>')
    return lines


def _path(curve: Curve, axes: Axes) -> str:
    """Steps from the first moment with a value to the end of the axis."""
    visible = [(at, value) for at, value in curve if value >= axes.values[0]]
    if not visible:
        return ""
    moves = [f"M{axes.x(visible[0][0]):.1f} {axes.y(visible[0][1]):.1f}"]
    moves += [f"H{axes.x(at):.1f}V{axes.y(value):.1f}" for at, value in visible[1:]]
    return "".join([*moves, f"H{axes.x(axes.seconds[1]):.1f}"])
