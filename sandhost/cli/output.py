"""How commands print: rich on a terminal, plain lines into a pipe, JSON when asked."""

from __future__ import annotations

import io
import json
import sys
import unicodedata
from typing import TYPE_CHECKING, Any

import click

from ..errors import GuestTrap

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

__all__ = ["describe_error", "error_console", "one_line", "print_json", "printable", "show"]

_PIPE_COLUMNS = 200  # wide enough that lines are not broken where nobody sees columns
_SHOWN_INNER, _SHOWN_OUTER = 24, 8


def printable(text: str) -> str:
    """Return text with everything that could steer a terminal written as an escape.

    Names in a module are its author's: they may hold colour codes, line breaks, or marks that turn
    the direction of writing. Line breaks and spaces stay.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character == "\n" or character.isprintable() else _escape(character)
        for character in text
    )


def one_line(text: str, longest: int = 80) -> str:
    """Return a name from a module as one line of bounded length."""
    shown = printable(text[: longest + 1].replace("\n", "\\n"))
    return shown if len(text) <= longest else f"{shown[: longest - 1]}… ({len(text)} characters)"


def _escape(character: str) -> str:
    if unicodedata.category(character) == "Zs":
        return " "
    return character.encode("unicode_escape", "surrogatepass").decode()


def describe_error(error: Exception) -> str:
    """Return what went wrong; a trap with one line a frame, whatever its names hold."""
    if not isinstance(error, GuestTrap) or not error.frames:
        return str(error)
    lines = []
    for number, frame in enumerate(error.frames):
        function = one_line(frame.function) if frame.function else f"function {frame.index}"
        module = f" in {one_line(frame.module)}" if frame.module else ""
        lines.append(f"    {number}: {function}{module} at {frame.offset:#x}")
    hidden = len(lines) - _SHOWN_INNER - _SHOWN_OUTER
    if hidden > 0:
        lines[_SHOWN_INNER:-_SHOWN_OUTER] = [f"    … {hidden} more frames"]
    return "\n".join([str(error.args[0]), "  wasm backtrace:", *lines])


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
