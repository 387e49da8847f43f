"""`sandhost serve`: plugins of many tenants behind HTTP and gRPC."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import click

from ..errors import ConfigError
from ..serve.config import Settings, flag_of

__all__ = ["serve"]

_Command = Callable[..., Any]


def _options_of_settings(command: _Command) -> _Command:
    """Give the command an option for each setting; their texts are checked by the settings."""
    for name, field in reversed(Settings.model_fields.items()):
        default = field.default
        if default is True or default is False:
            default = "on" if default else "off"
        shown = "" if default is None else f"  [default: {default}]"
        command = click.option(
            flag_of(name),
            name,
            metavar=name.rpartition("_")[2].upper(),
            help=f"{field.description}{shown}",
        )(command)
    return command


@click.command()
@click.option("--config", metavar="FILE", help="A TOML file of settings, named as the options are.")
@click.option("--http", metavar="HOST:PORT", help="Short for --http-host and --http-port.")
@click.option(
    "--grpc",
    metavar="HOST:PORT",
    help='Short for --grpc-host and --grpc-port. "none": without gRPC.',
)
@click.option("--openapi", is_flag=True, help="Print HTTP's OpenAPI document, and serve nothing.")
@_options_of_settings
def serve(
    openapi: bool, config: str | None, http: str | None, grpc: str | None, **settings: str | None
) -> int:
    """Serve plugins of many tenants over HTTP and gRPC, until SIGTERM or Ctrl-C.

    Each setting can stand in the file, in the environment (--http-port is SANDHOST_HTTP_PORT), or here; the
    last counts.
    """
    if openapi:
        from ..serve.openapi import document

        click.echo(json.dumps(document(), indent=2))
        return 0
    given = {name: value for name, value in settings.items() if value is not None}
    if http is not None:
        given["http_host"], given["http_port"] = _address("--http", http)
    if grpc == "none":
        given["grpc_port"] = grpc
    elif grpc is not None:
        given["grpc_host"], given["grpc_port"] = _address("--grpc", grpc)
    wanted = Settings.load(config, given)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    # Its INFO is a dozen lines about itself at each start.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from ..serve.app import serve as live

    return live(wanted, click.echo)


def _address(flag: str, text: str) -> tuple[str, str]:
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port:
        raise ConfigError(f"{flag}: {text!r:.80} is no address: write HOST:PORT")
    return host, port
