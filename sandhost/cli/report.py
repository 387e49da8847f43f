"""`sandhost report`: write what a host looks like to a page of HTML."""

from __future__ import annotations

from pathlib import Path

import click

from .sources import source, source_options

__all__ = ["report"]

_DEMO_S = 15.0


@click.command()
@source_options
@click.option(
    "--output",
    "-o",
    metavar="PATH",
    default="sandhost-report.html",
    show_default=True,
    help="Where the page goes; '-' for stdout.",
)
def report(pid: str | None, url: str | None, token: str | None, demo: bool, output: str) -> None:
    """Write what a host looks like now to one page of HTML.

    The page has everything in it: nothing is fetched when it is opened, and nothing in it runs.
    --demo runs its load for 15 seconds first.
    """
    from ..observe.report import render
    from .output import error_console

    folder = Path(output).absolute().parent
    if output != "-" and not folder.is_dir():
        raise click.ClickException(f"cannot write {output}: there is no folder {folder}")
    with source(pid, url, token, demo, _DEMO_S) as take:
        page = render(take())
    if output == "-":
        click.echo(page, nl=False)
        return
    # A name of half a character is escaped in the page; nothing else could fail to encode.
    Path(output).write_text(page, encoding="utf-8", errors="backslashreplace")
    error_console().print(f"report: {output}", markup=False, soft_wrap=True)
