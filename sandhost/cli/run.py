"""`sandhost run`: a WASI command with our streams, or one function of a plugin."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from .group import FAILED, INTERRUPTED, LIMIT, TRAP
from .values import as_size, as_time, jsonable, parse_dirs, parse_env, parse_value, value_text
from .verbatim import VerbatimCommand

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..guest import Guest
    from ..modules.describe import ModuleInfo
    from ..modules.types import FuncType
    from ..wasi import Dir, Wasi

__all__ = ["run"]

_MAX_MEMORIES = 128  # a module may have 100, and some need one more for wasmtime's own heap


@click.command(
    cls=VerbatimCommand,
    context_settings={"ignore_unknown_options": True},
    options_metavar="[OPTIONS]",
)
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.argument("arguments", metavar="[ARGS]...", nargs=-1, type=click.UNPROCESSED)
@click.option("--invoke", metavar="F", help="Call this function with ARGS instead of _start.")
@click.option(
    "--dir",
    "dirs",
    metavar="HOST[:GUEST[:rw]]",
    multiple=True,
    help="Let the guest use a directory, read-only unless :rw follows.",
)
@click.option(
    "--env",
    metavar="NAME[=VALUE]",
    multiple=True,
    help="Set a variable of the guest's environment; without =VALUE, as it is here.",
)
@click.option(
    "--memory",
    callback=as_size,
    metavar="SIZE",
    help='Most memory, as "64 MiB".  [default: 256 MiB]',
)
@click.option(
    "--deadline", callback=as_time, metavar="TIME", help='Longest a call may take, as "2 s".'
)
@click.option("--fuel", type=click.IntRange(1), metavar="N", help="Most instructions.")
@click.option(
    "--stdin-from",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The guest's standard input, instead of ours.",
)
@click.option(
    "--reclaim",
    type=click.Choice(["immediate", "warm", "lazy"]),
    default="immediate",
    show_default=True,
    help="What happens to the guest's memory at its end.",
)
@click.option("--json", "as_json", is_flag=True, help="Keep the output; print one JSON record.")
def run(
    file: Path,
    arguments: tuple[str, ...],
    invoke: str | None,
    dirs: tuple[str, ...],
    env: tuple[str, ...],
    memory: int | None,
    deadline: float | None,
    fuel: int | None,
    stdin_from: Path | None,
    reclaim: str,
    as_json: bool,
) -> int:
    """Run a WASI command, or call one function of a plugin.

    FILE is a module, binary or text. Without --invoke its _start runs with ARGS, our streams, and
    nothing else: no directory, no variable that is not named here. Standard input is read to its
    end first, unless it is a terminal.

    With --invoke F, ARGS are read by the types of F: integers in decimal or 0x…, floats with nan
    and inf, a v128 as 32 hexadecimal digits. Results are printed one a line. A reactor's
    _initialize runs first.

    Options for the guest stand after '--': sandhost run tool.wasm -- --verbose

    \b
    Exit status:
      the guest's own (0 to 125), or
      2    wrong usage, such as arguments that do not fit the function
      124  a limit ended it: deadline, fuel, memory, stack
      125  sandhost could not run it: no such file, no valid module, …
      130  interrupted
      134  it trapped
      141  nobody reads its output any more
    """  # noqa: D301 - \b is click's mark for lines to keep
    from ..errors import ConfigError
    from ..limits import Limits
    from ..modules.compiled import read_source
    from ..modules.describe import describe

    grants = parse_dirs(dirs)
    environment = parse_env(env)
    _check_texts(arguments, environment)
    try:
        limits = Limits(
            fuel=fuel, deadline=deadline, memory="256 MiB" if memory is None else memory
        )
    except ConfigError as error:
        raise click.UsageError(str(error)) from None
    _, wasm = read_source(file)
    info = describe(wasm)
    task = _plan(info, file, invoke, arguments)
    wasi = None
    if info.has_wasi:
        stdin = _read_stdin(info, stdin_from)
        argv = (file.name,) if invoke is not None else (file.name, *arguments)
        wasi = _wasi(argv, environment, stdin, grants, streamed=not as_json)
    elif dirs or env or stdin_from is not None:
        click.echo(
            f"sandhost: note: {file.name} does not use WASI, so it sees no "
            "directory, variable or standard input",
            err=True,
        )
    return _run(_Job(file, wasm, info, task, limits, wasi, reclaim, as_json))


# ---- before anything runs ----


@dataclass(frozen=True)
class _Task:
    """Which function is called, with what."""

    function: str
    type: FuncType
    values: tuple[Any, ...]


@dataclass(frozen=True)
class _Job:
    file: Path
    wasm: bytes
    info: ModuleInfo
    task: _Task
    limits: Any
    wasi: Wasi | None
    reclaim: str
    as_json: bool


def _check_texts(arguments: tuple[str, ...], environment: dict[str, str]) -> None:
    for text in (*arguments, *environment, *environment.values()):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise click.UsageError(
                f"{os.fsencode(text)!r} is not UTF-8, as WASI wants it"
            ) from None


def _plan(info: ModuleInfo, file: Path, invoke: str | None, arguments: tuple[str, ...]) -> _Task:
    """Find the function and read its arguments, before a module is compiled for a minute."""
    if invoke is None:
        start = info.function("_start")
        if start is None:
            raise click.UsageError(
                f"{file.name} is no command: it has no _start; choose a function with --invoke "
                f"({_exported(info)})"
            )
        return _Task("_start", start, ())
    signature = info.function(invoke)
    if signature is None:
        raise click.UsageError(_no_function(info, file, invoke))
    shown = f"{invoke}{signature}"
    references = [t for t in (*signature.params, *signature.results) if t not in _TYPED]
    if references:
        raise click.UsageError(
            f"{shown} takes or returns a reference ({references[0]}), which cannot be typed here"
        )
    if len(arguments) != len(signature.params):
        given = "1 was given" if len(arguments) == 1 else f"{len(arguments)} were given"
        count = len(signature.params)
        raise click.UsageError(f"{shown} takes {count} argument{'s' * (count != 1)}, {given}")
    values = []
    for number, (text, kind) in enumerate(zip(arguments, signature.params), 1):
        try:
            values.append(parse_value(text, kind))
        except ValueError as error:
            raise click.UsageError(f"{shown}, argument {number}: {error}") from None
    return _Task(invoke, signature, tuple(values))


_TYPED = frozenset({"i32", "i64", "f32", "f64", "v128"})


def _exported(info: ModuleInfo) -> str:
    from ..errors import printable

    names = [f"{printable(e.name)}{e.type}" for e in info.exports if e.kind == "func"]
    if not names:
        return "it exports no function"
    return "it exports " + ", ".join(names[:6]) + (", …" if len(names) > 6 else "")


def _no_function(info: ModuleInfo, file: Path, wanted: str) -> str:
    import difflib

    names = [export.name for export in info.exports if export.kind == "func"]
    close = difflib.get_close_matches(wanted, names, 1)
    hint = f"did you mean {close[0]!r}?" if close else _exported(info)
    return f"{file.name} exports no function {wanted!r}; {hint}"


def _read_stdin(info: ModuleInfo, stdin_from: Path | None) -> bytes:
    """Return what the guest will read: a file, or ours to its end unless a person types there."""
    if stdin_from is not None:
        return stdin_from.read_bytes()
    reads = any(wanted.name == "fd_read" for wanted in info.imports)
    if not reads or sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        return b""
    return sys.stdin.buffer.read()


def _wasi(
    argv: tuple[str, ...],
    environment: dict[str, str],
    stdin: bytes,
    dirs: dict[str, Dir],
    *,
    streamed: bool,
) -> Wasi:
    from ..errors import ConfigError
    from ..wasi import Wasi

    stdout = stderr = None
    if streamed:
        stdout, stderr = _passing_on(sys.stdout), _passing_on(sys.stderr)
    try:
        return Wasi(argv, environment, stdin, stdout, stderr, dirs)
    except ConfigError as error:
        raise click.UsageError(str(error)) from None


def _passing_on(text: TextIO) -> Callable[[bytes], object]:
    """Return a function that writes a guest's bytes to one of our streams, at once."""
    stream = text.buffer

    def write(data: bytes) -> None:
        stream.write(data)
        stream.flush()

    return write


# ---- the run ----


def _run(job: _Job) -> int:
    from ..host import Host
    from .loading import loading

    with Host(max_guests=_MAX_MEMORIES, reclaim=job.reclaim) as host:
        fuel = job.limits.fuel is not None
        plugin = loading(host, job.wasm, fuel=fuel, name=str(job.file))
        record: dict[str, Any] = {"file": str(job.file), "function": job.task.function}
        try:
            with plugin.spawn(limits=job.limits, wasi=job.wasi) as guest:
                status = _call(guest, job, record)
        except Exception as error:
            if not job.as_json:
                raise
            status = _record_error(error, record)
    if job.as_json:
        from .output import print_json

        print_json({**record, "status": status})
    return status


def _call(guest: Guest, job: _Job, record: dict[str, Any]) -> int:
    """Call what was asked for; return the exit status, and fill in the record."""
    from ..errors import GuestExit

    task, status = job.task, 0
    started = time.perf_counter_ns()
    try:
        _initialize(guest, job)
        result = guest.call(task.function, *task.values)
        kinds = task.type.results
        results = list(zip([result] if len(kinds) == 1 else result or (), kinds))
        record["results"] = [{"type": k, "value": jsonable(v, k)} for v, k in results]
        if not job.as_json:
            for value, kind in results:
                click.echo(value_text(value, kind))
    except GuestExit as exit_:
        status = exit_.status
    except (Exception, KeyboardInterrupt) as error:
        if not job.as_json or isinstance(error, BrokenPipeError):
            raise
        status = _record_error(error, record)
    finally:
        record["call_ns"] = time.perf_counter_ns() - started
        if job.as_json:
            _record_figures(guest, record)
    return status


def _initialize(guest: Guest, job: _Job) -> None:
    initialize = job.info.function("_initialize")
    if initialize is not None and job.task.function not in ("_start", "_initialize"):
        guest.call("_initialize")


def _record_error(error: BaseException, record: dict[str, Any]) -> int:
    from ..errors import GuestTrap, LimitExceeded, SandhostError

    described: dict[str, Any] = {"type": type(error).__name__, "message": str(error)}
    if isinstance(error, GuestTrap):
        described["message"] = error.args[0]
        described["code"] = error.code
        described["frames"] = [
            {
                "function": f.function,
                "index": f.function_index,
                "offset": f.offset,
                "module": f.module,
            }
            for f in error.frames
        ]
    record["error"] = described
    if isinstance(error, GuestTrap):
        return TRAP
    if isinstance(error, LimitExceeded):
        return LIMIT
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if not isinstance(error, SandhostError):
        raise error
    return FAILED


def _record_figures(guest: Guest, record: dict[str, Any]) -> None:
    """Close the guest, and note what it did, wrote and gave back."""
    stats = guest.stats()
    reclaim = guest.close()
    if guest.plugin.info.has_wasi:
        record["stdout"] = guest.stdout.decode(errors="replace")
        record["stderr"] = guest.stderr.decode(errors="replace")
        record["output_dropped_bytes"] = guest.output_dropped
    record["memory_bytes"] = stats.memory_bytes
    record["memory_peak_bytes"] = stats.memory_peak_bytes
    record["fuel_used"] = stats.fuel_used
    record["reclaim"] = reclaim._asdict()
