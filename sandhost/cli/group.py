"""The group of commands: found by name, imported when used; errors as one line; exit statuses."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from ..errors import GuestTrap, LimitExceeded, SandhostError

__all__ = ["FAILED", "INTERRUPTED", "LIMIT", "PIPE_CLOSED", "TRAP", "USAGE", "SandhostGroup", "say"]

USAGE = 2
LIMIT = 124  # as timeout(1)
FAILED = 125  # as docker: the runtime's own failure, not that of what it runs
INTERRUPTED = 130  # 128 + SIGINT
TRAP = 134  # 128 + SIGABRT, as wasmtime's own command line
PIPE_CLOSED = 141  # 128 + SIGPIPE

# Messages speak to Python programs; here the same limits are options.
_LIMIT_ARGUMENT = re.compile(r"Limits\((memory|deadline|fuel)=\.\.\.\)")


class SandhostGroup(click.Group):
    """A group whose commands are named as "module:attribute", so that `--help` imports none."""

    def __init__(
        self, *args: Any, commands_at: Mapping[str, tuple[str, str]] | None = None, **more: Any
    ) -> None:
        super().__init__(*args, **more)
        self._commands_at = dict(commands_at or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands that are installed, in the order in which they were named."""
        return [name for name, (where, _) in self._commands_at.items() if _is_there(where)]

    def get_command(
        self,
        ctx: click.Context,
        cmd_name: str,
    ) -> click.Command | None:
        """Import a command; None when there is none of this name, or it is not installed."""
        if cmd_name not in self._commands_at:
            return None
        where = self._commands_at[cmd_name][0]
        if not _is_there(where):
            return None
        module, _, attribute = where.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        rows = [(name, self._commands_at[name][1]) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command to the last byte of its output; click would make 1 of a closed pipe."""
        try:
            status = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            _drop_output()
            return PIPE_CLOSED
        return status

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command; in standalone mode end the process with its exit status.

        Every error becomes one line on stderr.
        """
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, False, **extra)
        debug = _wants_debug(sys.argv[1:] if args is None else args)
        try:
            status = super().main(args, prog_name, complete_var, False, **extra)
        except click.UsageError as error:
            status = _report_usage(error)
        except click.Abort:
            if debug:
                raise
            status = INTERRUPTED
        except click.ClickException as error:
            say(error.format_message())
            status = error.exit_code
        except Exception as error:
            if debug:
                raise
            status = _report(error)
        sys.exit(status if isinstance(status, int) else 0)


def _is_there(where: str) -> bool:
    """Whether the module of a command exists; imports no more than the folders it lies in."""
    try:
        return importlib.util.find_spec(where.partition(":")[0]) is not None
    except ModuleNotFoundError:
        return False


def _wants_debug(arguments: Sequence[str]) -> bool:
    """Whether --debug stands before the command, where the group's options stand."""
    for argument in arguments:
        if not argument.startswith("-"):
            return False
        if argument == "--debug":
            return True
    return False


def _report_usage(error: click.UsageError) -> int:
    say(error.format_message())
    if error.ctx is not None:
        click.echo(f"Try '{error.ctx.command_path} --help'.", err=True)
    return error.exit_code


def _report(error: Exception) -> int:
    if isinstance(error, SandhostError):
        message = _LIMIT_ARGUMENT.sub(r"--\1", str(error))
        say(message, "trap" if isinstance(error, GuestTrap) else "error")
        if isinstance(error, GuestTrap):
            return TRAP
        return LIMIT if isinstance(error, LimitExceeded) else FAILED
    if isinstance(error, OSError):
        name = f"{error.filename}: " if error.filename is not None else ""
        say(f"{name}{error.strerror or error}")
        return FAILED
    if isinstance(error, ModuleNotFoundError):
        say(f"this needs the package {error.name}, which is not installed")
        return FAILED
    say(f"{type(error).__name__}: {error} (a bug; 'sandhost --debug …' shows where)")
    return FAILED


def say(message: str, label: str = "error") -> None:
    """Write one line on stderr about what went wrong."""
    from .output import visible

    prefix = "sandhost: " + click.style(f"{label}:", fg="red", bold=True)
    click.echo(f"{prefix} {visible(message)}", err=True)


def _drop_output() -> None:
    """Point stdout elsewhere, so that Python's own flush at exit does not meet the closed pipe."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
