"""`sandhost bench`: options in, tables, JSON and a picture out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ..errors import ConfigError, SandhostError
from ..limits import Limits
from ..regions import POLICIES
from ..units import parse_bytes
from .compare import compare
from .latency import Histogram
from .peers import PEERS, available
from .report import print_comparison, print_results
from .results import load_results
from .sweep import Settings, run
from .workload import Call, Workload, built_in, own

__all__ = ["bench"]

_T = TypeVar("_T")
_DIRTY, _THREADS = "0,16,256", "1,2"
_MOST_THREADS = 256
_DEADLINE = "10 s"
"""Arbitrary: a call that takes longer is not what this measures, more likely it never ends."""


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--invoke", metavar="CALL", help="What each guest of FILE does: 'NAME ARG …'.")
@click.option("--setup", multiple=True, metavar="CALL", help="Called first, not timed. Repeatable.")
@click.option(
    "--deadline",
    metavar="TIME",
    help=f"Longest a call of FILE may take, or 'none' [default: {_DEADLINE}].",
)
@click.option("--policy", default=",".join(POLICIES), show_default=True, help="Reclaim policies.")
@click.option(
    "--dirty",
    metavar="PAGES",
    help=f"OS pages that a guest dirties [default: {_DIRTY}]. With FILE: put {{pages}} into CALL.",
)
@click.option("--memory", metavar="SIZES", help="Memory of the built-in plugin: '1088 KiB,16 MiB'.")
@click.option("--threads", default=_THREADS, show_default=True, help="Threads that run cycles.")
@click.option(
    "--peers", default="all", show_default=True, help=f"all, none, or of {', '.join(PEERS)}."
)
@click.option("--repetitions", type=click.IntRange(1, 1000), help="Of every block [default: 7].")
@click.option("--block", type=click.FloatRange(0.001, 600), help="Seconds of one [default: 0.25].")
@click.option("--quick", is_flag=True, help="Less of everything: seconds instead of minutes.")
@click.option("--json", "json_path", metavar="PATH", help="Write all figures; '-' for stdout.")
@click.option(
    "--picture", metavar="PATH", type=click.Path(path_type=Path), help="Draw percentiles."
)
@click.option(
    "--against", metavar="OLD.json", type=click.Path(path_type=Path), help="What changed since."
)
@click.option("--full", is_flag=True, help="Print every percentile of every operation.")
def bench(file: Path | None, **options: Any) -> None:
    """Measure spawn, call, unload and reclaim.

    Sweeps policy × dirtied pages × memory × threads over the built-in plugin, or over FILE, in
    turn with wasmtime-py and Extism; holds every reclaim it checks against the kernel's counts.
    """
    try:
        _bench(file, **options)
    except SandhostError as error:
        text = str(error).replace("Limits(deadline=...)", "--deadline")
        raise click.ClickException(text) from None


def _bench(
    file: Path | None,
    *,
    json_path: str | None,
    picture: Path | None,
    against: Path | None,
    full: bool,
    **options: Any,
) -> None:
    settings = _settings(options)
    workloads = _workloads(file, options)
    old = load_results(against) if against else None
    draw = _drawing(picture)
    _check_writable(None if json_path == "-" else json_path, picture)
    Histogram()  # missing: say so before minutes pass
    console = Console(stderr=json_path == "-")
    with Progress(
        TextColumn("[progress.description]{task.description}"),
        BarColumn(bar_width=24),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task("measuring", total=settings.steps(len(workloads)))
        results = run(
            workloads, settings, lambda what: progress.update(task, advance=1, description=what)
        )
    print_results(console, results, full=full)
    data = results.as_json()
    if old is not None:
        print_comparison(console, compare(old, data), str(against))
    if json_path == "-":
        click.echo(json.dumps(data, indent=1))
    elif json_path is not None:
        Path(json_path).write_text(json.dumps(data, indent=1) + "\n")
        console.print(f"figures: {json_path}", highlight=False, soft_wrap=True)
    if draw is not None and picture is not None:
        draw(results, picture)
        console.print(f"picture: {picture}", highlight=False, soft_wrap=True)
    if results.mismatches:
        raise ConfigError(
            f"{results.mismatches} reported reclaims differ from the kernel's counts; see above"
        )


def _settings(options: dict[str, Any]) -> Settings:
    policies = tuple(_list("--policy", options["policy"], str))
    for policy in policies:
        if policy not in POLICIES:
            raise ConfigError(f"--policy {policy}: choose of {', '.join(POLICIES)}")
    threads = tuple(_list("--threads", options["threads"], int))
    if not all(1 <= count <= _MOST_THREADS for count in threads):
        raise ConfigError(f"--threads {options['threads']}: give 1 to {_MOST_THREADS}")
    quick = options["quick"]
    return Settings(
        policies=policies,
        threads=threads,
        peers=_peers(options["peers"]),
        repetitions=options["repetitions"] or (5 if quick else 7),
        block_s=options["block"] or (0.03 if quick else 0.25),
        checked_guests=20 if quick else 200,
        batch_guests=20 if quick else 100,
    )


def _peers(text: str) -> tuple[str, ...]:
    if text == "none":
        return ()
    if text == "all":
        return tuple(peer for peer in PEERS if peer != "extism" or available(peer))
    peers = tuple(_list("--peers", text, str))
    for peer in peers:
        if peer not in PEERS:
            raise ConfigError(f"--peers {peer}: choose all, none, or of {', '.join(PEERS)}")
        if not available(peer):
            raise ConfigError(f"{peer} is not installed: pip install {peer.partition('-')[0]}")
    return peers


def _workloads(file: Path | None, options: dict[str, Any]) -> list[Workload]:
    dirty, memory, invoke = options["dirty"], options["memory"], options["invoke"]
    if file is None:
        if invoke or options["setup"] or options["deadline"]:
            raise ConfigError("--invoke, --setup and --deadline are for a FILE of your own")
        sizes = _list("--memory", memory, parse_bytes) if memory else [None]
        return [built_in(pages, size) for size in sizes for pages in _pages(dirty or _DIRTY)]
    if memory:
        raise ConfigError("--memory is for the built-in plugin; FILE declares its own")
    call = Call.parse(invoke or "_start")
    setup = tuple(Call.parse(text) for text in options["setup"])
    takes_pages = any(c.takes_pages for c in (call, *setup))
    if takes_pages != bool(dirty):
        raise ConfigError("give --dirty together with {pages} in --invoke or --setup, or neither")
    deadline = options["deadline"] or _DEADLINE
    limits = None if deadline == "none" else Limits(deadline=deadline)
    counts = _pages(dirty) if dirty else [None]
    return [own(file, setup, call, pages, limits) for pages in counts]


def _pages(text: str) -> list[int]:
    pages = _list("--dirty", text, int)
    if min(pages) < 0:
        raise ConfigError(f"--dirty {text}: give numbers of pages, such as {_DIRTY}")
    return pages


def _list(option: str, text: str, read: Callable[[str], _T]) -> list[_T]:
    """Read a list with commas, each once."""
    try:
        values = [read(part.strip()) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{option} {text}: give a list such as 1,2") from None
    return list(dict.fromkeys(values))


def _drawing(picture: Path | None) -> Callable[..., None] | None:
    if picture is None:
        return None
    try:
        from .picture import draw
    except ImportError:
        raise ConfigError("--picture needs matplotlib: pip install 'sandhost[bench]'") from None
    return draw


def _check_writable(*paths: str | Path | None) -> None:
    for path in paths:
        if path is not None and not Path(path).absolute().parent.is_dir():
            raise ConfigError(f"cannot write {path}: there is no such folder")
