"""The command line: one file a command, imported when the command is used.

    group      which commands there are, how errors look, what exit statuses mean
    output     rich consoles, plain text for pipes, JSON
    loading    a spinner while a module compiles
    values     sizes, times, grants and wasm values as people type them
    verbatim   commands that pass arguments on to a guest
    run, snapshot, inspect, leaks,      the commands; bench and demo lie in folders of their own
      doctor, top, report, serve
    client                              those of a client of the service, a file for each few
    sources, screen                     where views of a host come from, and how `top` draws them

click is imported here, rich only by what prints with it; `import sandhost` needs neither.
"""

from __future__ import annotations

import io
import sys

import click

from .group import SandhostGroup

__all__ = ["cli", "main"]

_COMMANDS = {
    "run": ("sandhost.cli.run:run", "Run a WASI command, or call a function of a plugin."),
    "snapshot": (
        "sandhost.cli.snapshot:snapshot",
        "Write a plugin that has prepared itself to a file.",
    ),
    "inspect": ("sandhost.cli.inspect:inspect", "Show what a module is and what it would need."),
    "serve": ("sandhost.cli.serve:serve", "Serve plugins of many tenants over HTTP and gRPC."),
    "client": ("sandhost.cli.client:client", "Ask a service: deploy plugins, call them, run them."),
    "top": ("sandhost.cli.top:top", "Watch a host: memory, tenants, plugins, pressure."),
    "report": ("sandhost.cli.report:report", "Write what a host looks like to a page of HTML."),
    "leaks": ("sandhost.cli.leaks:leaks", "Name what grows in a process, and who holds it."),
    "bench": ("sandhost.bench.command:bench", "Measure spawn, call, unload and reclaim."),
    "demo": ("sandhost.demo.command:demo", "Watch thousands of guests come and go."),
    "doctor": ("sandhost.cli.doctor:doctor", "Check this machine and explain what it finds."),
}


def _show_version(context: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from .version import version_lines

        click.echo(version_lines())
        context.exit()


@click.group(cls=SandhostGroup, commands_at=_COMMANDS, invoke_without_command=True)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the versions of sandhost, wasmtime, Python and the kernel.",
)
@click.option("--debug", is_flag=True, help="Show Python's traceback when something goes wrong.")
@click.pass_context
def cli(context: click.Context, debug: bool) -> None:  # noqa: ARG001 - read before click runs
    """Run untrusted WebAssembly plugins, each in a memory region of its own.

    \b
    Exit status:
      0    it worked            124  a limit ended the guest: deadline, fuel, memory
      1    a check failed       125  sandhost could not do it
      2    wrong usage          130  interrupted

    'sandhost run' adds the guest's own status, and 134 for a trap.
    """  # noqa: D301 - \b is click's mark for lines to keep
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def main() -> None:
    """Run the command line of this process, and end it with the command's exit status."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # no locale is a reason to fail
    cli(prog_name="sandhost")
