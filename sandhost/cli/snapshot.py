"""`sandhost snapshot`: start a plugin, let it prepare itself, and write it to a file."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .values import as_size, as_time, parse_dirs, parse_env

if TYPE_CHECKING:
    from ..guest import Guest
    from ..limits import Limits
    from ..modules.describe import ModuleInfo
    from ..wasi import Wasi
    from .run import _Task

__all__ = ["snapshot"]


@click.command(options_metavar="[OPTIONS]")
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--init", metavar="F", help="Call this function first; without, _initialize alone.")
@click.option("--arg", "arguments", metavar="VALUE", multiple=True, help="An argument of F.")
@click.option(
    "-o",
    "--output",
    metavar="OUT",
    type=click.Path(path_type=Path),
    required=True,
    help="Where to write the snapshot.",
)
@click.option("--reseed", metavar="G", help="Let each fork call G, with random bits, as it starts.")
@click.option(
    "--dir",
    "dirs",
    metavar="HOST[:GUEST[:rw]]",
    multiple=True,
    help="Let the plugin use a directory, read-only unless :rw follows.",
)
@click.option("--env", metavar="NAME[=VALUE]", multiple=True, help="Set a variable for the plugin.")
@click.option(
    "--memory",
    callback=as_size,
    metavar="SIZE",
    help='Most memory, as "64 MiB".  [default: no limit]',
)
@click.option(
    "--deadline", callback=as_time, metavar="TIME", help='Longest F may take, as "2 min".'
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON record.")
def snapshot(
    file: Path,
    init: str | None,
    arguments: tuple[str, ...],
    output: Path,
    reseed: str | None,
    dirs: tuple[str, ...],
    env: tuple[str, ...],
    memory: int | None,
    deadline: float | None,
    as_json: bool,
) -> int:
    """Start a plugin, let it prepare itself, and write what it has become to OUT.

    FILE is a module, binary or text. Its _initialize runs, if it has one, then F with the values of
    --arg, which are read by its types. A program forks OUT after host.load(FILE), with
    host.load_snapshot(OUT). What the plugin prints goes to standard error.

    The snapshot holds the plugin's memory as it is, secrets and random state included. Whoever can
    write to OUT decides what the forks are.

    \b
    Exit status:
      2    wrong usage, such as arguments that do not fit F
      124  a limit ended it: deadline, memory, stack
      125  sandhost could not do it: no valid module, open files, …
      134  it trapped
    """  # noqa: D301 - \b is click's mark for lines to keep
    from ..errors import ConfigError
    from ..limits import Limits
    from ..modules.compiled import read_source
    from ..modules.describe import describe

    grants, environment = parse_dirs(dirs), parse_env(env)
    _, wasm = read_source(file)
    info = describe(wasm)
    task = _task(info, file, init, arguments)
    if reseed is not None and info.function(reseed) is None:
        from .run import _no_function

        raise click.UsageError(_no_function(info, file, reseed))
    _check_output(output)
    wasi = None
    try:
        limits = Limits(memory=memory, deadline=deadline)
        if info.has_wasi:
            from ..wasi import Wasi

            wasi = Wasi((file.name,), environment, dirs=grants)
    except ConfigError as error:
        raise click.UsageError(str(error)) from None
    record = _make(file, wasm, task, reseed, limits, wasi, output)
    if as_json:
        from .output import print_json

        print_json(record)
    else:
        from ..units import format_bytes, format_ns

        warm, size = format_ns(record["warm_ns"]), format_bytes(record["bytes"])
        click.echo(f"{output}: {size} on disk, warmed in {warm}")
    return 0


def _task(
    info: ModuleInfo, file: Path, init: str | None, arguments: tuple[str, ...]
) -> _Task | None:
    """Find the function and read its arguments, before a module is compiled for a minute."""
    from .run import _plan

    if init is not None:
        return _plan(info, file, init, arguments)
    if arguments:
        raise click.UsageError("--arg gives arguments to a function; name it with --init")
    if info.function("_initialize") is None:
        raise click.UsageError(
            f"{file.name} has no _initialize, so there is nothing to prepare; choose a function "
            "with --init"
        )
    return None


def _check_output(output: Path) -> None:
    if not output.parent.is_dir():
        raise click.UsageError(f"there is no directory {output.parent} to write {output.name} to")
    if output.is_dir():
        raise click.UsageError(f"{output} is a directory; name a file with -o")


def _make(
    file: Path,
    wasm: bytes,
    task: _Task | None,
    reseed: str | None,
    limits: Limits,
    wasi: Wasi | None,
    output: Path,
) -> dict[str, Any]:
    from ..host import Host
    from ..interpreters.progress import saying
    from .loading import loading

    with Host(max_guests=128) as host:
        plugin = loading(host, wasm, name=str(file))
        with plugin.spawn(limits=limits, wasi=wasi) as guest:
            with saying(sys.stderr.isatty()) as say:
                try:
                    warm_ns = _warm(guest, task, say)
                finally:
                    _pass_on(guest)
                say(f"writing {output}")
                started = time.perf_counter_ns()
                with guest.snapshot(reseed=reseed) as made:
                    made.save(output)
                save_ns = time.perf_counter_ns() - started
            memory_bytes = guest.stats().memory_bytes
    return {
        "file": str(file),
        "output": str(output),
        "function": task.function if task else "_initialize",
        "bytes": output.stat().st_size,
        "memory_bytes": memory_bytes,
        "warm_ns": warm_ns,
        "save_ns": save_ns,
    }


def _warm(guest: Guest, task: _Task | None, say: Any) -> int:
    started = time.perf_counter_ns()
    initialize = guest.plugin.info.function("_initialize")
    if initialize is not None and (task is None or task.function != "_initialize"):
        say("running _initialize")
        guest.call("_initialize")
    if task is not None:
        say(f"running {task.function}")
        guest.call(task.function, *task.values)
    return time.perf_counter_ns() - started


def _pass_on(guest: Guest) -> None:
    """Show what the plugin printed: on stderr, as stdout may be a JSON record."""
    sys.stderr.flush()
    for data in (guest.stdout, guest.stderr):
        sys.stderr.buffer.write(data)
    sys.stderr.buffer.flush()
