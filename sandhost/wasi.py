"""What a guest of WASI preview 1 is given: nothing, unless it stands here."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from ._ffi import failure, ffi, lib
from .errors import ConfigError
from .units import parse_bytes

__all__ = ["Dir", "Wasi", "WasiGrant"]

StreamCallback = Callable[[bytes], object]


class SendStream(Protocol):
    """Where output can go: `sandhost.aio.Pipe`, or any byte stream of anyio's."""

    async def send(self, item: bytes) -> None:
        """Take the bytes, as soon as there is room."""


class ReceiveStream(Protocol):
    """Where input can come from: `sandhost.aio.Pipe`, or any byte stream of anyio's."""

    async def receive(self, max_bytes: int = ...) -> bytes:
        """Return some bytes as soon as there are any; raise `anyio.EndOfStream` at the end."""


class Stream(NamedTuple):
    """What C calls for one stream."""

    call: Callable[..., Any]
    waits: bool
    """It is a coroutine function."""


class Dir(NamedTuple):
    """A directory of the host that a guest may use."""

    path: str | os.PathLike[str]
    writable: bool = False


class _Fields(NamedTuple):
    argv: Sequence[str]
    env: Mapping[str, str]
    stdin: bytes | ReceiveStream
    stdout: StreamCallback | SendStream | None
    stderr: StreamCallback | SendStream | None
    dirs: Mapping[str, Dir | str | os.PathLike[str] | None]
    output_limit: int | str


_NOTHING: Mapping[str, Any] = MappingProxyType({})


class Wasi(_Fields):
    """Arguments, environment, streams and directories of one guest. Immutable.

    Args:
        argv: the first one is the program's own name.
        env: environment variables.
        stdin: what the guest reads from standard input; or a stream, for guests that are called by
            `call_async` and then wait until something comes.
        stdout: called with bytes (at most 64 KiB), in the thread that calls the guest, before the
            guest's write returns; it can use any guest but that one. What it raises ends the
            guest's call. A coroutine function or a stream makes a guest that was called by
            `call_async` wait until the bytes are taken. None: they are kept for `guest.stdout`.
        stderr: the same for standard error.
        dirs: path in the guest to a directory of the host; a plain path is read-only. None grants
            the name with nothing behind it: a guest that is to be snapshot learns its directories
            at its start, and a fork of it may be granted what belongs there. Directories are opened
            when a plugin first spawns with this `Wasi`, and stay the same ones after a rename.
        output_limit: bytes (or "1 MiB") kept of each stream; more is dropped and counted.

    Raises:
        ConfigError: a value cannot be meant, or a directory does not exist.
    """

    __slots__ = ()

    def __new__(
        cls,
        argv: Sequence[str] = (),
        env: Mapping[str, str] = _NOTHING,
        stdin: bytes | ReceiveStream = b"",
        stdout: StreamCallback | SendStream | None = None,
        stderr: StreamCallback | SendStream | None = None,
        dirs: Mapping[str, Dir | str | os.PathLike[str] | None] = _NOTHING,
        output_limit: int | str = "1 MiB",
    ) -> Wasi:
        """Check the values."""
        for text in (*argv, *env, *env.values(), *dirs):
            if not isinstance(text, str) or "\0" in text or not _is_unicode(text):
                raise ConfigError(f"WASI arguments and names are Unicode without NUL, not {text!r}")
        for granted in dirs.values():
            if granted is None:
                continue
            path = granted.path if isinstance(granted, Dir) else granted
            if not os.path.isdir(path):
                raise ConfigError(f"cannot grant {os.fspath(path)!r}: no such directory")
        for end in (stdout, stderr):
            if end is not None and not callable(end) and not hasattr(end, "send"):
                raise ConfigError(f"output goes to a function or a stream, not to {end!r:.200}")
        if not isinstance(stdin, (bytes, bytearray, memoryview)) and not hasattr(stdin, "receive"):
            raise ConfigError(f"standard input is bytes or a stream, not {stdin!r:.200}")
        parse_bytes(output_limit)
        return super().__new__(cls, argv, env, stdin, stdout, stderr, dirs, output_limit)


def _is_unicode(text: str) -> bool:
    """Return whether it has no lone surrogates, as undecodable arguments of a process have."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _output(end: StreamCallback | SendStream | None) -> Stream | None:
    if end is None:
        return None
    call = end if callable(end) else end.send
    return Stream(call, inspect.iscoroutinefunction(call))


def _input(end: bytes | ReceiveStream) -> Stream | None:
    if isinstance(end, (bytes, bytearray, memoryview)):
        return None

    async def receive(most: int) -> bytes:
        import anyio

        try:
            return await end.receive(most)
        except anyio.EndOfStream:
            return b""  # what a guest takes for the end

    return Stream(receive, waits=True)


class WasiGrant:
    """A `Wasi` as C holds it. Made once, used for any number of spawns."""

    __slots__ = ("native", "source", "streams")

    def __init__(self, source: Wasi) -> None:
        """Copy the values into C and open the directories.

        Raises:
            ConfigError: a directory cannot be opened, or this system has no `openat2`.
        """
        self.source = source
        streams = (_input(source.stdin), _output(source.stdout), _output(source.stderr))
        self.streams = streams if any(streams) else None
        alive: list[Any] = []  # what `options` points to

        def strings(texts: Iterable[str | None]) -> Any:
            each = [
                ffi.NULL if t is None else ffi.new("char[]", t.encode(errors="surrogateescape"))
                for t in texts
            ]
            alive.append((each, ffi.new("char *[]", each)))
            return alive[-1][1]

        dirs = [d if isinstance(d, Dir) or d is None else Dir(d) for d in source.dirs.values()]
        options = ffi.new("sh_wasi_options *")
        options.argv, options.argc = strings(source.argv), len(source.argv)
        options.env_names = strings(source.env)
        options.env_values = strings(source.env.values())
        options.env_count = len(source.env)
        given = b"" if streams[0] else source.stdin
        data = ffi.from_buffer(given)
        options.input, options.input_length = data, len(data)
        options.host_dirs = strings(d and os.path.realpath(d.path) for d in dirs)
        options.guest_dirs = strings(source.dirs)
        writable = ffi.new("uint8_t[]", [d is not None and d.writable for d in dirs])
        options.writable, options.dir_count = writable, len(dirs)
        options.output_limit = parse_bytes(source.output_limit)
        called = [stream is not None for stream in streams]
        options.stream = called[1] | called[2] << 1 | called[0] << 2
        native = lib.sh_wasi_new(options)
        if not native:
            raise failure()
        self.native = ffi.gc(native, lib.sh_wasi_release)
