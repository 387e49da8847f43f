"""A graph that Graphviz laid out, read from its "plain" format and drawn with matplotlib.

Source: https://graphviz.org/docs/outputs/plain/. Lines are
    graph scale width height
    node name x y width height label style shape color fillcolor
    edge tail head n x1 y1 … xn yn [label xl yl] style color
"""

from __future__ import annotations

import shlex
from typing import Any

from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path

__all__ = ["draw_plain"]

_INK, _FILL, _HOSTILE = "#3c4043", "#e6f4ea", "#fce8e6"
_HOSTILE_NAMES = {"mallory", "spin", "hoard", "peek"}


def draw_plain(axes: Any, plain: str) -> None:
    """Draw a layout, filling the axes."""
    for line in plain.splitlines():
        kind, *fields = shlex.split(line)
        if kind == "graph":
            _, width, height = map(float, fields[:3])
            axes.set_xlim(-0.1, width + 0.1)
            axes.set_ylim(-0.1, height + 0.1)
        elif kind == "node":
            _draw_node(axes, fields)
        elif kind == "edge":
            _draw_edge(axes, fields)
    axes.set_axis_off()


def _draw_node(axes: Any, fields: list[str]) -> None:
    name = fields[0]
    x, y, width, height = map(float, fields[1:5])
    fill = _HOSTILE if name in _HOSTILE_NAMES else _FILL
    axes.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - height / 2),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=0.08",
            facecolor=fill,
            edgecolor=_INK,
            linewidth=0.8,
            zorder=2,
        )
    )
    axes.annotate(
        name,
        (x, y),
        ha="center",
        va="center",
        fontsize=7,
        color=_INK,
        zorder=3,
        annotation_clip=True,
    )


def _draw_edge(axes: Any, fields: list[str]) -> None:
    count = int(fields[2])
    numbers = [float(field) for field in fields[3 : 3 + 2 * count]]
    points = list(zip(numbers[::2], numbers[1::2], strict=True))
    codes = [Path.MOVETO] + [Path.CURVE4] * (count - 1)
    axes.add_patch(
        FancyArrowPatch(
            path=Path(points, codes), arrowstyle="-|>", mutation_scale=6, color="#9aa0a6", lw=0.9
        )
    )
