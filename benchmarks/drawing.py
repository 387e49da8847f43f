"""What the pictures share: the page with its headline, bars that lie, words behind them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sandhost.bench.picture import STYLE, tidy

GOOD, INK = "#17b978", "#202124"


@contextmanager
def page(path: Path, size: tuple[float, float], headline: str, small: str) -> Iterator[Figure]:
    """Give a figure to draw in, and write it; the small print stands below the headline."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        figure.suptitle(f"{headline}\n{small}", x=0.012, ha="left", fontsize=10.5)
        figure.savefig(path, dpi=150)


def one_run(data: dict[str, Any]) -> str:
    """Say what kind of run it was."""
    return "a quick run" if data["quick"] else "one run"


def on_what(machine: dict[str, Any], *packages: str) -> str:
    """Say where and with which versions it was measured."""
    return (
        f"{machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}, {machine['python']}, "
        + ", ".join(f"{name} {machine[name]}" for name in packages)
    )


def words_behind(axes: Any, x: float, y: float, words: str) -> None:
    """Write to the right of where a bar ends."""
    axes.annotate(words, (x, y), xytext=(6, 0), textcoords="offset points", va="center", fontsize=8)


def names_downwards(axes: Any, names: Sequence[str], size: float) -> None:
    """Name bars that lie, the first at the top."""
    axes.set_yticks(range(len(names)), names, fontsize=size)
    axes.invert_yaxis()


def tidy_lying(axes: Any) -> None:
    """Take away what carries no information where bars lie."""
    tidy(axes)
    axes.grid(visible=False, axis="y")
