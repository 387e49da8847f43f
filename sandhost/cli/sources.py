"""Where a view comes from: another process, an address, or a load of our own. For `top` and `report`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..errors import ConfigError

if TYPE_CHECKING:
    from ..observe.views import View

__all__ = ["source", "source_options"]

_Command = TypeVar("_Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--pid",
        metavar="PID",
        help="A process that shows its host.  [default: the only one there is]",
    ),
    click.option("--url", metavar="URL", help="An address that a host is served at."),
    click.option(
        "--token",
        metavar="TOKEN",
        envvar="SANDHOST_TOKEN",
        help="What --url asks for; better in $SANDHOST_TOKEN.",
    ),
    click.option("--demo", is_flag=True, help="Start a host with a load of its own, to look at."),
)


def source_options(command: _Command) -> _Command:
    """Give a command the options that `source` takes."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@contextlib.contextmanager
def source(
    pid: str | None, url: str | None, token: str | None, demo: bool, demo_s: float
) -> Iterator[Callable[[], View]]:
    """Have a function that takes views, within a block.

    Args:
        demo_s: seconds that a load of our own runs before the first.
    """
    if sum((pid is not None, url is not None, demo)) > 1:
        raise ConfigError("--pid, --url and --demo are three ways to say what to look at: give one")
    if demo:
        from ..demo.steady import SteadyLoad
        from ..observe.picture import look

        with SteadyLoad() as load:
            time.sleep(demo_s)
            yield lambda: look(load.host)
    elif url is not None:
        from ..observe.asking import ask_url

        yield lambda: ask_url(url, token)
    else:
        from ..observe.asking import ask, find

        path = find(pid)
        yield lambda: ask(path)
