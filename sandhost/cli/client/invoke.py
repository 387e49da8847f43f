"""`sandhost client call`, `bytes` and `session`: functions of plugins."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from ..values import as_time, guess_value
from ..verbatim import VerbatimCommand
from .service import Service, asks_service

__all__ = ["bytes_", "call", "session"]

ref_option = click.option(
    "--ref", metavar="VERSION", help="A number or an alias.  [default: the newest that is ready]"
)
deadline_option = click.option(
    "--deadline", callback=as_time, metavar="TIME", help='Longest it may take, as "2 s".'
)
_once_option = click.option(
    "--once",
    is_flag=True,
    help="Ask again when the connection is lost, with a key against doing it twice.",
)


@click.command(cls=VerbatimCommand, context_settings={"ignore_unknown_options": True})
@click.argument("plugin", metavar="PLUGIN")
@click.argument("function", metavar="FUNCTION")
@click.argument("arguments", metavar="[ARGS]...", nargs=-1, type=click.UNPROCESSED)
@ref_option
@deadline_option
@_once_option
@asks_service
def call(
    service: Service,
    plugin: str,
    function: str,
    arguments: tuple[str, ...],
    ref: str | None,
    deadline: float | None,
    once: bool,
) -> None:
    """Call a function in a fresh guest, and print its results, one a line.

    ARGS are integers in decimal or 0x…, floats with nan and inf, and vectors as 32 hexadecimal digits.

    \b
      sandhost client call sum add 2 -3 --ref live
    """  # noqa: D301 - \b is click's mark for lines to keep
    values = [guess_value(text) for text in arguments]
    with service.client() as client:
        _print(
            service,
            client.call(plugin, function, *values, ref=ref, deadline_s=deadline, once=once),
        )


def _print(service: Service, result: Any) -> None:
    results = result if isinstance(result, tuple) else () if result is None else (result,)
    if service.as_json:
        import json

        from ...protocol.values import in_json

        click.echo(json.dumps({"results": [in_json(value) for value in results]}))
        return
    for value in results:
        click.echo(value.hex() if isinstance(value, bytes) else repr(value))


@click.command("bytes")
@click.argument("plugin", metavar="PLUGIN")
@click.argument("function", metavar="FUNCTION")
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="Send this file instead of standard input.",
)
@ref_option
@deadline_option
@_once_option
@asks_service
def bytes_(
    service: Service,
    plugin: str,
    function: str,
    source: Path | None,
    ref: str | None,
    deadline: float | None,
    once: bool,
) -> None:
    """Call a function that takes bytes and returns bytes: from standard input to standard output.

    With --json, what it returned is in base64.

    \b
      sandhost client bytes shrink compress < page.html > page.bin
    """  # noqa: D301 - \b is click's mark for lines to keep
    data = sys.stdin.buffer if source is None else source
    with service.client() as client:
        if service.as_json:
            import base64

            from ..output import print_json

            got = client.call_bytes(plugin, function, data, ref=ref, deadline_s=deadline, once=once)
            print_json({"bytes": base64.b64encode(got).decode()})
            return
        with client.stream_bytes(
            plugin, function, data, ref=ref, deadline_s=deadline, once=once
        ) as pieces:
            for piece in pieces:
                sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()


@click.command()
@click.argument("plugin", metavar="PLUGIN")
@ref_option
@asks_service
def session(service: Service, plugin: str, ref: str | None) -> None:
    """Keep a guest, and call it line by line: FUNCTION ARGS…, until the end of the input.

    On a terminal a call that fails is told, and the next line is read; else it ends the session.

    \b
      printf 'push 1\\npush 2\\nsum\\n' | sandhost client session stack
    """  # noqa: D301 - \b is click's mark for lines to keep
    from ...client import GuestFailed, Invalid

    typed = sys.stdin.isatty()
    with service.client() as client, client.session(plugin, ref=ref) as guest:
        while True:
            if typed:
                click.echo(f"{plugin}> ", nl=False, err=True)
            line = sys.stdin.readline()
            if not line:
                break
            try:
                words = shlex.split(line, comments=True)
                if words:
                    _print(service, guest.call(words[0], *map(guess_value, words[1:])))
                    sys.stdout.flush()
            except (ValueError, click.BadParameter, GuestFailed, Invalid) as error:
                from ..group import say

                if not typed and isinstance(error, ValueError):
                    raise click.UsageError(str(error)) from None
                if not typed:
                    raise
                say(getattr(error, "message", str(error)))
