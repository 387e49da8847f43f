"""How commands print: rich on a terminal, plain lines into a pipe, JSON when asked."""

from __future__ import annotations

import io
import json
import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

__all__ = ["error_console", "print_json", "show", "visible"]

_PIPE_COLUMNS = 200  # wide enough that lines are not broken where nobody sees columns


def visible(text: str) -> str:
    """Return a message with everything that could steer a terminal written as an escape.

    Line breaks stay. For a single name from a module, `errors.printable` also takes those.
    """
    if text.isprintable():
        return text
    return "".join(
        character
        if character == "\n" or character.isprintable()
        else character.encode("unicode_escape", "surrogatepass").decode()
        for character in text
    )


def error_console() -> Console:
    """Return a console on stderr."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def show(renderable: RenderableType) -> None:
    """Print on stdout: with colours and to its width on a terminal, else as plain wide lines."""
    from rich.console import Console

    if sys.stdout.isatty():
        Console(highlight=False).print(renderable)
        return
    text = io.StringIO()
    Console(file=text, width=_PIPE_COLUMNS, highlight=False, no_color=True).print(renderable)
    click.echo("\n".join(line.rstrip() for line in text.getvalue().splitlines()))


def print_json(record: Any) -> None:
    """Print one JSON document on stdout; text is escaped to ASCII, so nothing steers a terminal."""
    click.echo(json.dumps(record, indent=2, allow_nan=False))
