"""`sandhost client deploy`: a module becomes a plugin's next version."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..values import parse_env
from .service import Service, asks_service, one

if TYPE_CHECKING:
    from ...client import Progress

__all__ = ["deploy"]


@click.command(options_metavar="[OPTIONS]")
@click.argument(
    "file", metavar="FILE", type=click.Path(path_type=Path, exists=True, dir_okay=False)
)
@click.option("--name", metavar="PLUGIN", help="The plugin.  [default: FILE without its ending]")
@click.option("--memory", metavar="SIZE", help='Most memory of a guest, as "64 MiB".')
@click.option("--deadline", metavar="TIME", help='Longest a call may take, as "2 s".')
@click.option("--fuel", type=click.IntRange(1), metavar="N", help="Most instructions of a call.")
@click.option("--warm", metavar="F", help="Let guests start from what a call of F leaves.")
@click.option("--arg", "argv", metavar="WORD", multiple=True, help="An argument of the command.")
@click.option("--env", metavar="NAME[=VALUE]", multiple=True, help="A variable of the command.")
@click.option("--alias", metavar="NAME", help="Let this alias mean it, once it is ready.")
@click.option("--no-wait", is_flag=True, help="Do not wait until it is ready.")
@asks_service
def deploy(
    service: Service,
    file: Path,
    name: str | None,
    memory: str | None,
    deadline: str | None,
    fuel: int | None,
    warm: str | None,
    argv: tuple[str, ...],
    env: tuple[str, ...],
    alias: str | None,
    no_wait: bool,
) -> None:
    """Upload a module as a plugin's next version, and wait until it is ready.

    What is not given is the service's own limit. The token needs the scopes "deploy" and, to wait, "invoke".

    \b
      sandhost client deploy build/wordcount.wasm --memory "16 MiB" --deadline "250 ms" --alias live
    """  # noqa: D301 - \b is click's mark for lines to keep
    if alias is not None and no_wait:
        raise click.UsageError("--alias needs a version that is ready: leave --no-wait away")
    environment = parse_env(env)
    with service.client() as client, _showing(file.name) as progress:
        version = client.upload(
            name or file.stem,
            file,
            memory=memory,
            deadline=deadline,
            fuel=fuel,
            warm=warm,
            argv=argv,
            env=environment,
            wait=not no_wait,
            progress=progress,
        )
        if alias is not None:
            client.set_alias(version.plugin, alias, version.number)
    record = {
        "plugin": version.plugin,
        "version": version.number,
        "state": version.state,
        "digest": version.digest,
        "bytes": version.size,
        "functions": dict(version.functions),
        "alias": alias,
    }
    named = "" if alias is None else f", and is {alias!r} now"
    one(service, record, f"{version.plugin}: version {version.number} is {version.state}{named}")


@contextlib.contextmanager
def _showing(what: str) -> Iterator[Callable[[Progress], None] | None]:
    """Have what shows progress on a terminal; None where nobody sees it."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    from ..output import error_console, visible

    columns = TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn()
    with Progress(*columns, console=error_console(), transient=True) as bars:
        bar = bars.add_task(visible(what))

        def tell(far: object) -> None:
            from ...client import Progress as Far

            assert isinstance(far, Far)
            compiling = far.state == "compiling"
            bars.update(
                bar,
                description=visible(f"{far.state} {what}"),
                completed=far.sent_bytes,
                total=None if compiling else far.total_bytes,
            )

        yield tell
