"""`sandhost client`: what a service of plugins can be asked for.

service       --url, --token-file, --json; what an answer's problem is as an exit status
deploy, invoke, run, plugins, operator     the commands
"""

from __future__ import annotations

import click

from ..group import SandhostGroup

__all__ = ["client"]

_COMMANDS = {
    "deploy": ("sandhost.cli.client.deploy:deploy", "Upload a module as a plugin's next version."),
    "call": ("sandhost.cli.client.invoke:call", "Call a function with numbers."),
    "bytes": ("sandhost.cli.client.invoke:bytes_", "Call a function with bytes: stdin to stdout."),
    "session": ("sandhost.cli.client.invoke:session", "Call a guest that stays, line by line."),
    "run": ("sandhost.cli.client.run:run", "Run a command, with our streams."),
    "plugins": ("sandhost.cli.client.plugins:plugins", "List the plugins."),
    "versions": (
        "sandhost.cli.client.plugins:versions",
        "List a plugin's versions, or remove one.",
    ),
    "alias": ("sandhost.cli.client.plugins:alias", "Set, roll back or remove an alias."),
    "tenants": ("sandhost.cli.client.operator:tenants", "List tenants, or put one with quotas."),
    "tokens": ("sandhost.cli.client.operator:tokens", "List, add or revoke tokens of a tenant."),
    "audit": ("sandhost.cli.client.operator:audit", "Show who changed what."),
    "health": ("sandhost.cli.client.operator:health", "Tell whether the service takes requests."),
}


@click.group(cls=SandhostGroup, commands_at=_COMMANDS)
def client() -> None:
    """Ask a service of plugins that 'sandhost serve' has started.

    Where it is, and who asks, stand in the environment, or in --url and --token-file of each command:

    \b
      export SANDHOST_URL=http://127.0.0.1:8080 SANDHOST_TOKEN=sh_…
      sandhost client deploy add.wasm --memory "16 MiB" --alias live
      sandhost client call add add 2 3 --ref live
      sandhost client run tool -- --verbose < input.txt

    \b
    Exit status:
      0    it worked            124  the time was over, or a limit ended the guest
      2    wrong usage          125  the service refused it, or cannot be reached
      130  interrupted          134  the guest trapped

    'run' ends with the command's own status.
    """  # noqa: D301 - \b is click's mark for lines to keep
