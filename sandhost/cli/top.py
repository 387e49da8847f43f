"""`sandhost top`: watch a host, live."""

from __future__ import annotations

import contextlib
import os
import re
import select
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import click

from .sources import source, source_options

if TYPE_CHECKING:
    from ..observe.views import View

__all__ = ["top"]

_DEMO_S = 3.0
_REMEMBERED = 200
_PIPE_COLUMNS = 100
_LONG_KEYS = re.compile(r"\x1b(?:\[[0-9;?]*[@-~]|O.|.)?")  # arrows and the like: none of ours
_SORTS = {"memory": "m", "guests": "g", "handles": "h"}
_KEYS = "q quit   m memory  g guests  h handles: what is first   p pause"
_PAUSED = "paused: p goes on   q quit"


@click.command()
@source_options
@click.option(
    "--sort",
    type=click.Choice(list(_SORTS)),
    default="memory",
    show_default=True,
    help="What tenants and plugins are sorted by.",
)
@click.option(
    "--interval",
    metavar="SECONDS",
    type=click.FloatRange(0.1, 60),
    default=1.0,
    show_default=True,
    help="Time between two looks.",
)
@click.option("--once", is_flag=True, help="Print one frame; a pipe gets no more than that.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON record of all of it.")
def top(
    pid: str | None,
    url: str | None,
    token: str | None,
    demo: bool,
    sort: str,
    interval: float,
    once: bool,
    as_json: bool,
) -> None:
    """Watch a host: memory, tenants, plugins, slots, pressure, collector.

    A program shows its host to its own user with sandhost.observe.sharing.share(host). Looking stops
    no guest. Memory is what guests have committed; resident is the kernel's count of their pages.
    """
    live = sys.stdout.isatty() and sys.stdin.isatty() and not once and not as_json
    with source(pid, url, token, demo, 0.0 if live else _DEMO_S) as take:
        if as_json:
            _print_json(take())
        elif live:
            _watch(take, _SORTS[sort], interval)
        else:
            _print_once(take, _SORTS[sort], interval)


def _print_json(view: View) -> None:
    import json

    from ..observe.records import to_json
    from .output import print_json

    print_json(json.loads(to_json(view)))


def _print_once(take: Callable[[], View], sort: str, interval: float) -> None:
    from rich.text import Text

    from .output import show
    from .screen import frame

    before = take()
    time.sleep(interval)  # what happens in a second takes two looks
    columns, lines = _PIPE_COLUMNS, 60
    if sys.stdout.isatty():
        columns, lines = os.get_terminal_size(sys.stdout.fileno())
    show(Text("\n").join(frame(take(), before, columns=columns, lines=lines, sort=sort)))


def _watch(take: Callable[[], View], sort: str, interval: float) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from .screen import frame

    console = Console(highlight=False)
    trend: deque[int] = deque(maxlen=_REMEMBERED)
    view, before, paused, due_s = take(), None, False, 0.0
    with _keys() as read_keys, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            now_s = time.monotonic()
            if now_s >= due_s and not paused:
                before, view = view, take()
                trend.append(view.figures.process_rss_bytes or 0)
                due_s = now_s + interval
            columns, lines = console.size
            texts = frame(
                view,
                before,
                columns=columns,
                lines=lines,
                sort=sort,
                trend=tuple(trend),
                help_line=_PAUSED if paused else _KEYS,
            )
            live.update(Text("\n").join(texts), refresh=True)
            for key in read_keys(interval if paused else max(due_s - time.monotonic(), 0.0)):
                if key == "q":
                    return
                if key in _SORTS.values():
                    sort = key
                elif key in "p ":
                    paused, due_s = not paused, 0.0


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """Have a function that waits for keys for some seconds; "" if none came."""
    import termios
    import tty

    stdin = sys.stdin.fileno()
    before = termios.tcgetattr(stdin)

    def read(seconds: float) -> str:
        try:
            ready, _, _ = select.select([stdin], [], [], seconds)
            if not ready:
                return ""
            typed = (
                os.read(stdin, 64).decode(errors="replace") or "q"
            )  # the end of input ends us too
            return _LONG_KEYS.sub("", typed).lower()
        except KeyboardInterrupt:
            return "q"

    try:
        tty.setcbreak(stdin)
        yield read
    finally:
        termios.tcsetattr(stdin, termios.TCSADRAIN, before)
