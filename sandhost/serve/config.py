"""Settings of the service: one flat list, each with one name everywhere.

    http_port = 8080             in the TOML file
    SANDHOST_HTTP_PORT=8080      in the environment, before the file
    --http-port 8080             on the command line, before both

What cannot be meant is refused before anything is opened, all of it at once and a line each.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from ..errors import ConfigError
from ..limits import Limits
from ..tenants import Quotas
from ..units import parse_bytes, parse_seconds
from .records import Bounds
from .tokens import is_token

__all__ = ["Settings", "flag_of", "variable_of"]

_PREFIX = "SANDHOST_"
_NEAR_NAME = 0.6  # of difflib: "htpp_port" for http_port; None for what is only similar in length
_NEAR_VARIABLE = 0.85  # SANDHOST_ is also before other things' variables, which are none of ours
_T = TypeVar("_T")


def _meant(parse: Callable[[Any], _T]) -> Callable[[Any], _T]:
    """Return a validator that says what the parser says."""

    def validate(value: Any) -> _T:
        try:
            return parse(value)
        except ConfigError as error:
            raise ValueError(str(error)) from None

    return validate


def _or_none(parse: Callable[[Any], _T]) -> Callable[[Any], _T | None]:
    """Return a validator that also takes "none", since TOML and the environment have no null."""
    return lambda value: None if value is None or value == "none" else parse(value)


def _number(least: int, most: int) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        text = value if isinstance(value, str) else ""
        if text.isascii() and text.isdigit() and len(text) < 20:
            value = int(text)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError(f"{value!r:.80} is no whole number from {least} to {most}")
        return value

    return parse


def _rate(value: Any) -> float:
    try:
        rate = float(value)
    except (TypeError, ValueError):
        rate = 0.0
    if isinstance(value, bool) or not 1e-6 <= rate <= 1e9:
        raise ValueError(f"{value!r:.80} is no number above 0")
    return rate


def _some_seconds(value: Any) -> float:
    seconds = parse_seconds(value)
    if seconds <= 0:
        raise ValueError(f"{value!r:.80} is no time above 0")
    return seconds


def _switch(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    words = {"true": True, "on": True, "yes": True, "false": False, "off": False, "no": False}
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    raise ValueError(f"{value!r:.80} is neither true nor false")


def _process_limit(value: Any) -> int | str:
    return "cgroup" if value == "cgroup" else parse_bytes(value)


def _text(value: Any) -> str:
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        raise ValueError(f"{value!r:.80} is no text")
    return str(value)


def _secret(value: Any) -> SecretStr:
    secret = value if isinstance(value, SecretStr) else SecretStr(_secret_text(value))
    if len(secret.get_secret_value()) < 16:
        raise ValueError("it has fewer than 16 characters, and could be guessed")
    return secret


def _admin_token(value: Any) -> SecretStr:
    secret = value if isinstance(value, SecretStr) else SecretStr(_secret_text(value))
    if not is_token(secret.get_secret_value()):
        raise ValueError(
            "it is no token: write sh_ and what Python's secrets.token_urlsafe(32) returns"
        )
    return secret


def _secret_text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("it is no text")
    return value


_Text = Annotated[str, BeforeValidator(_text)]
_TextOrNone = Annotated[str | None, BeforeValidator(_or_none(_text))]
_Folder = Annotated[Path, BeforeValidator(_text)]
_Port = Annotated[int, BeforeValidator(_number(0, 65_535))]
_PortOrNone = Annotated[int | None, BeforeValidator(_or_none(_number(0, 65_535)))]
_Count = Annotated[int, BeforeValidator(_number(1, 2**53))]
_Guests = Annotated[int, BeforeValidator(_number(1, 28_000))]
_Size = Annotated[int, BeforeValidator(_meant(parse_bytes))]
_Seconds = Annotated[float, BeforeValidator(_meant(_some_seconds))]
_Switch = Annotated[bool, BeforeValidator(_switch)]
_CountOrNone = Annotated[int | None, BeforeValidator(_or_none(_number(0, 2**53)))]
_SizeOrNone = Annotated[int | None, BeforeValidator(_meant(_or_none(parse_bytes)))]
_SecondsOrNone = Annotated[float | None, BeforeValidator(_meant(_or_none(_some_seconds)))]
_RateOrNone = Annotated[float | None, BeforeValidator(_or_none(_rate))]
_ProcessLimit = Annotated[
    int | Literal["cgroup"] | None, BeforeValidator(_meant(_or_none(_process_limit)))
]
_Secret = Annotated[SecretStr | None, BeforeValidator(_or_none(_secret))]
_AdminToken = Annotated[SecretStr | None, BeforeValidator(_or_none(_admin_token))]


def _setting(default: Any, description: str) -> Any:
    return Field(default, description=description, validate_default=True)


class Settings(BaseSettings):
    """All settings. Immutable; made of what it is given, while `load` looks for them where they stand."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix=_PREFIX, env_ignore_empty=True
    )

    data: _Folder = _setting("sandhost-data", "folder for plugins, tokens and the audit log")

    tenant: _TextOrNone = _setting(
        None, "serve this tenant only: no other can be added, nor is there an operator"
    )
    token_file: _TextOrNone = _setting(
        None, "with --tenant: file that holds its token; without it one is made and printed once"
    )

    http_host: _Text = _setting("127.0.0.1", "address that HTTP listens on")
    http_port: _Port = _setting(8080, "port of HTTP; 0 takes a free one")
    grpc_host: _Text = _setting("127.0.0.1", "address that gRPC listens on")
    grpc_port: _PortOrNone = _setting(8081, 'port of gRPC; 0 takes a free one, "none" is without')

    upload_limit: _Size = _setting("64 MiB", "largest module that is taken")
    body_limit: _Size = _setting("8 MiB", "largest request body that is taken, but for uploads")

    process_limit: _ProcessLimit = _setting(
        None, 'memory that the process may have resident; "cgroup" for the limit of its cgroup'
    )
    handle_memory: _SizeOrNone = _setting(None, "memory that objects behind handles may count for")
    max_guests: _Guests = _setting(16_384, "most guests alive at once, of all tenants")

    tenant_memory_limit: _SizeOrNone = _setting(
        None, "memory of a tenant's guests together, as all tenant_* for tenants without their own"
    )
    tenant_handles: _CountOrNone = _setting(None, "handles that a tenant's guests may hold at once")
    tenant_handle_memory: _SizeOrNone = _setting(
        None, "memory that the objects behind a tenant's handles may count for"
    )
    tenant_guests: _CountOrNone = _setting(None, "guests that a tenant may have alive at once")
    tenant_spawns_per_s: _RateOrNone = _setting(None, "guests that a tenant may start in a second")
    tenant_cpus: _RateOrNone = _setting(None, "processors that a tenant's calls may use")
    tenant_weight: _RateOrNone = _setting(
        None, "a tenant's part of the memory when that is short, beside the others' weights"
    )
    tenant_plugins: _Count = _setting(1000, "plugins that a tenant may have")
    tenant_storage: _Size = _setting("4 GiB", "bytes of modules that a tenant may have stored")
    plugin_versions: _Count = _setting(1000, "versions that a plugin may have")
    tenant_compiles: _Count = _setting(
        100, "modules of a tenant that may wait until they are compiled"
    )
    compile_time: _Seconds = _setting(
        "4 min", "processor time that compiling a module may take; time that warming may take"
    )
    compile_memory: _Size = _setting("2 GiB", "memory that compiling a module may take")

    guest_memory: _SizeOrNone = _setting(
        "256 MiB", "memory of one guest, where its version says nothing of it"
    )
    guest_deadline: _SecondsOrNone = _setting(
        "10 s", "time that one call may take, where its version says nothing of it"
    )

    session_idle: _Seconds = _setting("5 min", "time after which a session that nobody uses ends")
    queue_time: _Seconds = _setting("1 s", "longest time that a request waits to be begun")
    drain_time: _Seconds = _setting("30 s", "time that requests have to end when the service stops")

    background: _Switch = _setting(
        False,
        "run calls that take long, and compilers, only while nothing else in this control group wants their "
        "processor: for a unit or container of its own",
    )

    realtime: _Switch = _setting(
        False,
        "the event loop goes before all programs of the machine without a real-time priority, while it is idle for a "
        "tenth of the time; takes RLIMIT_RTPRIO of 2",
    )

    metrics: _Switch = _setting(True, "answer at /metrics")
    debug: _Switch = _setting(True, "answer at /debug: what the host holds, profiles")
    console: _Switch = _setting(
        True, "answer at /console: a page for people, who sign in with a token"
    )
    observe_token: _Secret = _setting(
        None, "token for /metrics and /debug, 16 characters or more, beside admin tokens"
    )
    admin_token: _AdminToken = _setting(
        None,
        "first admin token; without it one is made and printed once, at the first start. "
        "On a command line others could see it: use the environment or the file",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take values from the call alone; `load` brings the others."""
        return (init_settings,)

    @classmethod
    def load(
        cls,
        file: str | os.PathLike[str] | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> Settings:
        """Return the settings of a TOML file, the environment and the command line, the last first.

        Args:
            arguments: by the settings' names, without those that were not given.

        Raises:
            ConfigError: the file cannot be read, or some values cannot be meant; a line each.
        """
        from_file = {} if file is None else _read(file)
        from_environment = EnvSettingsSource(cls)()
        given = dict(arguments or {})
        problems = [
            *(
                f"{file}: there is {_not_one(name)}"
                for name in from_file
                if name not in cls.model_fields
            ),
            *_misspelt_variables(),
            *(f"there is {_not_one(name)}" for name in given if name not in cls.model_fields),
        ]
        if problems:
            raise ConfigError("\n".join(problems))

        def place(name: str) -> str:
            if name in given:
                return flag_of(name)
            return variable_of(name) if name in from_environment else f"{name} in {file}"

        try:
            return cls(**{**from_file, **from_environment, **given})
        except ValidationError as error:
            lines = [
                ": ".join([*(place(str(name)) for name in fault["loc"][:1]), _reason(fault)])
                for fault in error.errors()
            ]
            raise ConfigError("\n".join(lines)) from None

    def quotas(self, own: Quotas) -> Quotas:
        """Return a tenant's own quotas, completed by those for tenants without."""
        names = Quotas._fields
        common = {name: getattr(self, f"tenant_{name}") for name in names}
        mine = {name: value for name, value in zip(names, own) if value is not None}
        return Quotas(**{**common, **mine})

    def guest_limits(self) -> Limits:
        """Return the limits of a guest whose version says nothing of them."""
        return Limits(memory=self.guest_memory, deadline=self.guest_deadline)

    def bounds(self) -> Bounds:
        """Return how much a tenant may have the service keep."""
        return Bounds(
            plugins=self.tenant_plugins,
            versions=self.plugin_versions,
            storage_bytes=self.tenant_storage,
        )


def flag_of(name: str) -> str:
    """Return how a setting is called on the command line."""
    return f"--{name.replace('_', '-')}"


def variable_of(name: str) -> str:
    """Return how a setting is called in the environment."""
    return _PREFIX + name.upper()


def _read(file: str | os.PathLike[str]) -> dict[str, Any]:
    path = Path(file)
    try:
        path.open("rb").close()  # else a file that is not there would be an empty one
        return TomlConfigSettingsSource(Settings, path)()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # TOMLDecodeError, UnicodeDecodeError
        raise ConfigError(f"{path} is no TOML: {error}") from error


def _not_one(name: str) -> str:
    near = difflib.get_close_matches(name, Settings.model_fields, 1, _NEAR_NAME)
    hint = f"did you mean {near[0]!r}?" if near else "`sandhost serve --help` lists them all"
    return f"no setting {name!r:.80}: {hint}"


def _misspelt_variables() -> list[str]:
    found = []
    for variable in os.environ:
        name = variable.removeprefix(_PREFIX).lower()
        if variable.startswith(_PREFIX) and name not in Settings.model_fields:
            near = difflib.get_close_matches(name, Settings.model_fields, 1, _NEAR_VARIABLE)
            if near:
                found.append(f"{variable} is no setting: did you mean {variable_of(near[0])}?")
    return found


def _reason(fault: Any) -> str:
    """Return a validator's own words; pydantic puts "Value error, " before them."""
    error = fault.get("ctx", {}).get("error")
    return str(error or fault["msg"])
