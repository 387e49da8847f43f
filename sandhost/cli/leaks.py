"""`sandhost leaks`: what grows in a running process, and who holds it."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .values import as_time

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import RenderableType

    from ..observe.leaks import Growth
    from ..observe.pprof import Profile

__all__ = ["leaks"]

_LOOKS = 4
"""Profiles taken within the time: what grew has to grow from each to the next."""
_MOST_BYTES = 256 << 20
_MOST_HOLDERS = 3


@click.command()
@click.argument("profiles", nargs=-1, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--url", help="Watch a process: what sandhost.observe.serve(host).url() gives.")
@click.option("--pid", type=click.IntRange(min=1), help="Watch a process of yours that serves.")
@click.option(
    "--for",
    "duration",
    default="60s",
    show_default=True,
    callback=as_time,
    help="How long to watch.",
)
@click.option(
    "--least",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="Handles that must be there more.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON record.")
def leaks(
    profiles: tuple[Path, ...],
    url: str | None,
    pid: int | None,
    duration: float,
    least: int,
    as_json: bool,
) -> int:
    """Name what grew, and who holds it.

    \b
    sandhost leaks BEFORE AFTER           two profiles or more, in the order in which they were taken
    sandhost leaks --url URL --for 60s    a process that calls sandhost.observe.serve(host)
    sandhost leaks --pid PID --for 60s    the same, found by its number

    A profile is what Capture.write(...) writes and /debug/pprof/heap answers. A process that is watched collects
    before each look. A cache that is full is not named, one that fills is. The exit status is 1 when something grew.
    """  # noqa: D301 - \b is click's mark for lines to keep
    from ..observe.leaks import grown

    if sum((bool(profiles), url is not None, pid is not None)) != 1 or len(profiles) == 1:
        raise click.UsageError("give two profiles or more, or --url, or --pid")
    taken = [_read(path) for path in profiles] if profiles else _watch(_address(url, pid), duration)
    found = grown(taken, least=least)
    if as_json:
        from .output import print_json

        print_json({"seconds": _seconds(taken), "grown": [_record(each) for each in found]})
    else:
        from .output import show

        for part in _render(found, _seconds(taken)):
            show(part)
    return 1 if found else 0


def _seconds(taken: Sequence[Profile]) -> float:
    return (taken[-1].time_ns - taken[0].time_ns) / 1e9


# ---- where profiles come from ----


def _read(path: Path) -> Profile:
    from ..errors import ConfigError, printable
    from ..observe.pprof import decode

    try:
        return decode(path.read_bytes())
    except ConfigError as error:
        raise ConfigError(f"{printable(str(path))}: {error}") from None


def _address(url: str | None, pid: int | None) -> str:
    """Return the address of the heap's profile, collected first."""
    from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

    if pid is not None:
        from ..observe.places import find

        base, token = find(pid)
        url = f"{base}?{urlencode({'token': token})}"
    parts = urlsplit(url or "")
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise click.UsageError("--url is what sandhost.observe.serve(host).url() gives, http://…")
    query = dict(parse_qsl(parts.query))
    token_only = {"token": query["token"]} if "token" in query else {}
    path = parts.path if parts.path.endswith("/heap") else "/debug/pprof/heap"
    return urlunsplit((parts.scheme, parts.netloc, path, urlencode({**token_only, "gc": "1"}), ""))


def _watch(address: str, duration: float) -> list[Profile]:
    begun = time.monotonic()
    taken = [_fetch(address)]
    for look in range(1, _LOOKS):
        until = begun + duration * look / (_LOOKS - 1)
        _wait(until, begun, duration)
        taken.append(_fetch(address))
    return taken


def _wait(until: float, begun: float, duration: float) -> None:
    shown = sys.stderr.isatty()
    while (left := until - time.monotonic()) > 0:
        if shown:
            done = time.monotonic() - begun
            click.echo(f"\rwatching: {done:.0f} of {duration:g} s ", nl=False, err=True)
        time.sleep(min(left, 1.0))
    if shown:
        click.echo("\r\x1b[K", nl=False, err=True)


def _fetch(address: str) -> Profile:
    import urllib.error
    import urllib.request

    from ..errors import SandhostError
    from ..observe.pprof import decode

    try:
        with urllib.request.urlopen(address, timeout=60) as answer:  # noqa: S310 - its scheme was looked at
            return decode(answer.read(_MOST_BYTES))
    except urllib.error.HTTPError as error:
        why = error.read(300).decode(errors="replace").strip()
        raise SandhostError(f"the process answers {error.code}: {why}") from None
    except urllib.error.URLError as error:
        raise SandhostError(f"the process does not answer: {error.reason}") from None


# ---- what is shown ----


def _record(growth: Growth) -> dict[str, Any]:
    return {**growth._asdict(), "holders": [holder._asdict() for holder in growth.holders]}


def _render(found: Sequence[Growth], seconds: float) -> list[RenderableType]:
    from rich.table import Table
    from rich.text import Text

    from ..units import format_bytes, format_ns
    from .output import visible

    within = format_ns(round(seconds * 1e9))
    if not found:
        return [Text(f"Nothing grew within {within}.", "green")]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("grew", "now", "what", "of", "held by", "for"):
        table.add_column(title, overflow="fold")
    for growth in found:
        table.add_row(
            f"+{growth.more_objects:,}\n+{format_bytes(growth.more_bytes)}",
            f"{growth.objects[-1]:,}\n{format_bytes(growth.bytes[-1])}",
            Text(
                visible(f"{growth.kind} [{growth.label}]" if growth.label else growth.kind), "bold"
            ),
            Text(visible(_whose(growth))),
            _lines(growth, lambda holder: visible(f"{holder.path}  (+{holder.objects:,})")),
            _lines(
                growth,
                lambda h: f"{format_ns(h.median_age_ns)}, up to {format_ns(h.oldest_age_ns)}",
            ),
        )
    count = f"{len(found)} kind{'s' * (len(found) != 1)} of handles"
    return [Text(f"{count} grew within {within}.\n", "bold yellow"), table]


def _whose(growth: Growth) -> str:
    plugin = growth.plugin or "the host"
    return f"{growth.tenant}: {plugin}" if growth.tenant else plugin


def _lines(growth: Growth, line: Callable[[Any], str]) -> RenderableType:
    from rich.text import Text

    lines = [line(holder) for holder in growth.holders[:_MOST_HOLDERS]]
    if len(growth.holders) > _MOST_HOLDERS:
        lines.append(f"and {len(growth.holders) - _MOST_HOLDERS} more")
    return Text("\n".join(lines))
