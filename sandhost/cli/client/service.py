"""What all commands of a client share: where the service is, who asks, how problems end a command."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...protocol.problems import DeadlinePassed, GuestFailed, Problem
from ..group import FAILED, LIMIT, TRAP, say

if TYPE_CHECKING:
    from ...client import AsyncClient, Client

__all__ = ["Service", "asks_service", "one", "rows"]

_COMMAND_STATUSES = range(126)  # above are ours, and a shell's

_OPTIONS = (
    click.option("--url", metavar="URL", help="Where the service is.  [env: SANDHOST_URL]"),
    click.option(
        "--token-file",
        metavar="FILE",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        help="A file with the token.  [env: SANDHOST_TOKEN has the token itself]",
    ),
    click.option(
        "--token", metavar="TOKEN", help="The token, for all users of this machine to see."
    ),
    click.option("--no-retry", is_flag=True, help="Make each request once."),
    click.option("--json", "as_json", is_flag=True, help="Print JSON."),
)


@dataclass(frozen=True)
class Service:
    """How a command reaches the service."""

    url: str | None
    token: str | None
    retries: bool
    as_json: bool

    def client(self) -> Client:
        """Return a client."""
        from ...client import Client

        return Client(self.url, self.token, **self._more())

    def client_async(self) -> AsyncClient:
        """Return a client for tasks."""
        from ...client import AsyncClient

        return AsyncClient(self.url, self.token, **self._more())

    def _more(self) -> dict[str, Any]:
        return {} if self.retries else {"retry": None}

    def __repr__(self) -> str:
        return f"<Service {self.url}>"


def asks_service(command: Callable[..., int | None]) -> Callable[..., int]:
    """Give a command the options that say which service, and let problems end it with a status."""

    @functools.wraps(command)
    def asking(
        *args: Any,
        url: str | None,
        token_file: Path | None,
        token: str | None,
        no_retry: bool,
        as_json: bool,
        **kwargs: Any,
    ) -> int:
        if token is not None:
            if token_file is not None:
                raise click.UsageError("give --token-file or --token")
            say("--token is seen by all users of this machine; --token-file is not", "note")
        if token_file is not None:
            token = token_file.read_text().strip()
        try:
            service = Service(url, token, not no_retry, as_json)
            return command(service, *args, **kwargs) or 0
        except Problem as problem:
            if click.get_current_context().find_root().params.get("debug"):
                raise
            return _report(problem, as_json)

    for option in reversed(_OPTIONS):
        asking = option(asking)
    return asking


def _report(problem: Problem, as_json: bool) -> int:
    if as_json:
        from ..output import print_json

        print_json({"problem": problem.code, "detail": problem.detail, **problem.facts})
    label = "trap" if "trap" in problem.facts else problem.code
    hint_s = problem.retry_after_s
    later = "" if hint_s is None else f" (try again in {hint_s:g} s)"
    say(f"{problem.detail}{later}", label)
    if isinstance(problem, DeadlinePassed):
        return LIMIT
    if isinstance(problem, GuestFailed):
        if "limit" in problem.facts:
            return LIMIT
        status = problem.facts.get("exit")
        if isinstance(status, int) and status in _COMMAND_STATUSES:
            return status
        if "trap" in problem.facts:
            return TRAP
    return FAILED


def one(service: Service, record: dict[str, Any], text: str) -> None:
    """Print what was done: a line, or JSON."""
    from ..output import print_json, visible

    if service.as_json:
        print_json(record)
    else:
        click.echo(visible(text))


def rows(service: Service, name: str, titles: Iterable[str], records: list[dict[str, Any]]) -> None:
    """Print records as a table with these columns, or JSON under this name."""
    from ..output import print_json, show, visible

    if service.as_json:
        print_json({name: records})
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles:
        table.add_column(title)
    for record in records:
        table.add_row(*(Text(visible(_shown(record[title]))) for title in titles))
    show(table)


def _shown(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, dict):
        return ", ".join(f"{name}={held}" for name, held in value.items()) or "–"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "–"
    return str(value)
