"""What a guest of WASI preview 1 is given: nothing, unless it stands here."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from ._ffi import ffi
from .errors import ConfigError
from .units import parse_bytes

__all__ = ["Dir", "Wasi", "WasiGrant"]

StreamCallback = Callable[[bytes], object]


class Dir(NamedTuple):
    """A directory of the host that a guest may use."""

    path: str | os.PathLike[str]
    writable: bool = False


class _Fields(NamedTuple):
    argv: Sequence[str]
    env: Mapping[str, str]
    stdin: bytes
    stdout: StreamCallback | None
    stderr: StreamCallback | None
    dirs: Mapping[str, Dir | str | os.PathLike[str]]
    output_limit: int | str


_NOTHING: Mapping[str, Any] = MappingProxyType({})


class Wasi(_Fields):
    """Arguments, environment, streams and directories of one guest. Immutable.

    Args:
        argv: the first one is the program's own name.
        env: environment variables.
        stdin: what the guest reads from standard input.
        stdout: called with bytes, in the thread that runs the guest, within milliseconds after the
            guest wrote them and before its next host call; it can use any guest but that one. What
            it raises ends the guest's call. None: they are kept for `guest.stdout`.
        stderr: the same for standard error.
        dirs: path in the guest to a directory of the host; a plain path is read-only.
        output_limit: bytes (or "1 MiB") kept of each stream; more is dropped and counted.

    Raises:
        ConfigError: a value cannot be meant, or a directory does not exist.
    """

    __slots__ = ()

    def __new__(
        cls,
        argv: Sequence[str] = (),
        env: Mapping[str, str] = _NOTHING,
        stdin: bytes = b"",
        stdout: StreamCallback | None = None,
        stderr: StreamCallback | None = None,
        dirs: Mapping[str, Dir | str | os.PathLike[str]] = _NOTHING,
        output_limit: int | str = "1 MiB",
    ) -> Wasi:
        """Check the values."""
        for text in (*argv, *env, *env.values(), *dirs):
            if not isinstance(text, str) or "\0" in text or not _is_unicode(text):
                raise ConfigError(f"WASI arguments and names are Unicode without NUL, not {text!r}")
        for granted in dirs.values():
            path = granted.path if isinstance(granted, Dir) else granted
            if not os.path.isdir(path):
                raise ConfigError(f"cannot grant {os.fspath(path)!r}: no such directory")
        parse_bytes(output_limit)
        return super().__new__(cls, argv, env, stdin, stdout, stderr, dirs, output_limit)


def _is_unicode(text: str) -> bool:
    """Return whether it has no lone surrogates, as undecodable arguments of a process have."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class WasiGrant:
    """A `Wasi` in the form that C takes. Made once, used for any number of spawns."""

    __slots__ = ("_alive", "native", "source")

    def __init__(self, source: Wasi) -> None:
        self.source = source
        self._alive: list[Any] = []  # what `native` points to
        native = self.native = ffi.new("sh_wasi *")
        native.argv, native.argc = self._strings(source.argv), len(source.argv)
        native.env_names = self._strings(source.env)
        native.env_values = self._strings(source.env.values())
        native.env_count = len(source.env)
        native.input, native.input_length = (
            self._keep(ffi.from_buffer(source.stdin)),
            len(source.stdin),
        )
        dirs = [d if isinstance(d, Dir) else Dir(d) for d in source.dirs.values()]
        native.host_dirs = self._strings(os.path.realpath(d.path) for d in dirs)
        native.guest_dirs = self._strings(source.dirs)
        native.writable = self._keep(ffi.new("uint8_t[]", [d.writable for d in dirs]))
        native.dir_count = len(dirs)
        native.output_limit = parse_bytes(source.output_limit)
        native.stream = (source.stdout is not None) | (source.stderr is not None) << 1

    def _keep(self, value: Any) -> Any:
        self._alive.append(value)
        return value

    def _strings(self, texts: Any) -> Any:
        each = [self._keep(ffi.new("char[]", text.encode())) for text in texts]
        return self._keep(ffi.new("char *[]", each))
