"""Telling somebody what takes so long: a spinner on a terminal, else lines in the log."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from .._log import get_logger

__all__ = ["Progress", "Say", "saying"]

Say = Callable[[str], object]
Progress = bool | Say
"""False: nobody is told. True: see above. A function: it is called with one line a step."""


@contextlib.contextmanager
def saying(progress: Progress) -> Iterator[Say]:
    """Yield the function to call with each step, before the step."""
    if callable(progress):
        yield progress
    elif not progress or sys.stderr is None or not sys.stderr.isatty():
        yield _log if progress else _nobody
    else:
        from rich.console import Console
        from rich.progress import Progress as Bar
        from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (
            SpinnerColumn(style="cyan"),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
        )
        with Bar(*columns, console=Console(stderr=True, highlight=False), transient=True) as bar:
            task = bar.add_task("", total=None)
            yield lambda step: bar.reset(task, description=step, total=None)


def _nobody(_step: str) -> None:
    pass


def _log(step: str) -> None:
    get_logger("sandhost.interpreters").info(step)
