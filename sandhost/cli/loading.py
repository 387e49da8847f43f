"""Load a module, with a spinner when it compiles for long, and without deafness to Ctrl-C."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import TYPE_CHECKING

from ..units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..host import Host
    from ..plugin import Plugin

__all__ = ["loading"]

_PATIENCE_S = 0.5
_POLL_S = 0.05


class _Work(threading.Thread):
    """Runs one function; keeps what it returned or raised.

    A daemon: a compilation cannot be stopped, and Ctrl-C should end the process without it.
    """

    def __init__(self, function: Callable[[], Plugin]) -> None:
        super().__init__(name="sandhost-compile", daemon=True)
        self._function = function
        self.result: Plugin | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result = self._function()
        except BaseException as error:  # noqa: BLE001 - it goes on in the waiting thread
            self.error = error


def loading(
    host: Host,
    source: str | os.PathLike[str] | bytes,
    *,
    fuel: bool = False,
    name: str | None = None,
) -> Plugin:
    """Do what `host.load` does; on a terminal show that and how long a module compiles.

    Raises:
        ModuleError: as `host.load`.
    """
    work = _Work(lambda: host.load(source, fuel=fuel, name=name))
    started = time.monotonic()
    work.start()
    # Not join(): Ctrl-C reaches a thread that waits in slices at once, on every Python.
    while work.is_alive() and time.monotonic() - started < _PATIENCE_S:
        work.join(_POLL_S if time.monotonic() - started > _POLL_S else 0.002)
    if work.is_alive():
        _wait_visibly(work, source, name)
    if work.error is not None:
        raise work.error
    assert work.result is not None
    return work.result


def _wait_visibly(work: _Work, source: str | os.PathLike[str] | bytes, name: str | None) -> None:
    if not sys.stderr.isatty():
        while work.is_alive():
            work.join(_POLL_S)
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from ..errors import printable
    from .output import error_console

    shown, size = _describe(source, name)
    columns = (
        SpinnerColumn(style="cyan"),
        TextColumn("compiling [bold]{task.description}[/] [dim]{task.fields[size]}[/]"),
        TimeElapsedColumn(),
        TextColumn("[dim]kept for the next time[/]"),
    )
    from rich.markup import escape

    with Progress(*columns, console=error_console(), transient=True) as progress:
        task = progress.add_task(escape(printable(shown)), total=None, size=size)
        while work.is_alive():
            work.join(_POLL_S)
        progress.stop_task(task)


def _describe(source: str | os.PathLike[str] | bytes, name: str | None) -> tuple[str, str]:
    if isinstance(source, bytes):
        return name or "module", format_bytes(len(source))
    path = os.fspath(source)
    return name or path, format_bytes(os.path.getsize(path)) if os.path.exists(path) else ""
