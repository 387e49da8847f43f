"""`sandhost demo`."""

from __future__ import annotations

import gc
import importlib.util
import json
import time
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from ..bench.kernel import resident_bytes
from ..bench.machine import describe
from ..errors import ConfigError, SandhostError
from ..host import Host
from .cast import Cast
from .contest import Contest, run_contest
from .live import watch
from .load import Load
from .report import Outcome, loading_line, print_outcome

__all__ = ["demo"]

_FAILED = 1
_SHARE_OF_CONTEST = 0.4
_SETTLE_S = 0.2


@click.command()
@click.option(
    "--seconds",
    type=click.FloatRange(1, 3600),
    default=15,
    show_default=True,
    help="How long tenants are served; the peers take 0.4 times as long after that.",
)
@click.option("--json", "json_path", metavar="PATH", help="Write all figures; '-' for stdout.")
@click.option(
    "--picture",
    metavar="PATH",
    type=click.Path(path_type=Path),
    default="sandhost-demo.png",
    show_default=True,
    help="Where the picture goes.",
)
def demo(seconds: float, json_path: str | None, picture: Path) -> None:
    """See guests of four tenants run, hostile ones among them, and their memory come back.

    Exits with 1 if a promise of isolation or reclaim does not hold.
    """
    try:
        outcome = _demo(seconds, json_path, picture)
    except SandhostError as error:
        raise click.ClickException(str(error)) from None
    if outcome.failures():
        raise SystemExit(_FAILED)


def _demo(seconds: float, json_path: str | None, picture: Path) -> Outcome:
    for path in (None if json_path in (None, "-") else Path(str(json_path)), picture):
        if path is not None and not path.absolute().parent.is_dir():
            raise ConfigError(f"cannot write {path}: there is no such folder")
    console = Console(stderr=json_path == "-")
    can_draw = _can_draw(console)
    with Host(reclaim="immediate") as host:
        cast = Cast(host)
        with console.status("loading plugins; compiled once, then kept in the cache"):
            cast.load()
        console.print(loading_line(cast), highlight=False)
        load = Load(cast, seconds)
        before = _settled_bytes()
        load.start()
        try:
            watch(console, load)
        finally:
            load.finish()
        after = _settled_bytes()
        load.sample()
        stats = host.stats()
        layout = cast.layout()
    contest = _contest(console, seconds * _SHARE_OF_CONTEST)
    peak = max(sample.resident for sample in load.samples)
    outcome = Outcome(describe(), cast, load, contest, before, peak, after, stats)
    print_outcome(console, outcome)
    if json_path == "-":
        click.echo(json.dumps(outcome.as_json(), indent=1))
    elif json_path is not None:
        Path(json_path).write_text(json.dumps(outcome.as_json(), indent=1) + "\n")
        console.print(f"figures: {json_path}", highlight=False, soft_wrap=True)
    if can_draw:
        from .picture import draw

        draw(outcome, layout, picture)
        console.print(f"picture: {picture}", highlight=False, soft_wrap=True)
    for failure in outcome.failures():
        console.print(f"[bold red]failed:[/] {failure}", highlight=False)
    return outcome


def _settled_bytes() -> int:
    """Return resident memory once nothing is left to collect and the kernel's counters caught up."""
    gc.collect()
    time.sleep(_SETTLE_S)
    return resident_bytes()


def _contest(console: Console, seconds: float) -> Contest:
    with Progress(
        TextColumn("the same guest, by sandhost and its peers, in turn"),
        BarColumn(bar_width=24),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task("", total=None)
        return run_contest(seconds, lambda: progress.advance(task))


def _can_draw(console: Console) -> bool:
    """Tell whether matplotlib is there, without the time and memory of importing it yet."""
    if importlib.util.find_spec("matplotlib") is not None:
        return True
    console.print(
        "no picture: matplotlib is not installed; pip install 'sandhost[demo]'",
        style="yellow",
        highlight=False,
    )
    return False
