"""A warmed interpreter, of which every run gets a fork: what Python and JavaScript have in common.

    Box ── snapshot ──spawn──► guest ── Language.run(code) ──► Answer
                                 └── close ──► output               └──► Result

A box holds one snapshot of an interpreter that has started, imported and compiled what it was told
to. `run` takes a fork of it for one program; a `Session` keeps its fork, and so its variables,
from one program to the next. What the languages differ in stands behind `Language`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from .._closing import Closing
from ..errors import ConfigError, GuestBusy, GuestClosed, GuestExit, SandhostError
from ..limits import Limits
from ..units import parse_bytes
from ..wasi import Dir, Wasi
from .result import Answer, CodeError, Result, ValueTooLarge

if TYPE_CHECKING:
    from ..guest import Guest
    from ..regions import Reclaim
    from ..snapshot import Snapshot
    from ..tenants import Tenant

__all__ = ["DEFAULT_LIMITS", "Box", "Files", "Language", "Session"]

Files = Mapping[str, Dir | str | os.PathLike[str]]
"""By the guest's path: a directory of the host, read-only unless given as `Dir(path, True)`."""

DEFAULT_LIMITS = Limits(memory="256 MiB", deadline=30.0)
"""Of a run that is given none: code of strangers should not run for ever by default."""

Inputs = Mapping[str, Any]

_NO_FILES: Files = MappingProxyType({})
_NO_INPUTS: Inputs = MappingProxyType({})


class Language(Protocol):
    """What an interpreter guest must be asked in its own way."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def mounts(self) -> tuple[str, ...]:
        """Guest paths that a run may grant."""

    @property
    def dirs(self) -> Files:
        """What every guest is given."""

    @property
    def env(self) -> Mapping[str, str]:
        """What every guest is given."""

    def run(self, guest: Guest, code: str, inputs: str, *, first: bool, last: bool) -> Answer:
        """Run a program.

        Args:
            guest: where.
            code: its source.
            inputs: variables to set before, as one line of JSON; "" for none.
            first: it is the first one in this fork, which shall differ from its siblings.
            last: no other will follow, so what it left open is to be closed.
        """

    def complete(self, error: CodeError, stderr: str) -> tuple[CodeError, str]:
        """Return an error with its traceback, and stderr without it."""

    def finish(self, guest: Guest) -> None:
        """Close what the programs of a session have left open."""


class _Output:
    """What a session's guest writes to one stream, bounded for each run."""

    __slots__ = ("_data", "_limit", "dropped")

    def __init__(self, limit: int) -> None:
        self._data = bytearray()
        self._limit = limit
        self.dropped = 0

    def __call__(self, data: bytes) -> None:
        kept = data[: self._limit - len(self._data)]
        self._data += kept
        self.dropped += len(data) - len(kept)

    def take(self) -> str:
        text = self._data.decode(errors="replace")
        self._data.clear()
        return text

    def take_dropped(self) -> int:
        dropped, self.dropped = self.dropped, 0
        return dropped


def _as_json(inputs: Inputs) -> str:
    for name in inputs:
        if not isinstance(name, str) or not name.isidentifier():
            raise ConfigError(f"an input is set under a name, not under {name!r:.100}")
    try:
        return json.dumps(dict(inputs), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"inputs pass as JSON: {error}") from None


def _result(language: Language, answer: Answer, stdout: str, stderr: str, dropped: int) -> Result:
    error = answer.error
    if error is not None:
        error, stderr = language.complete(error, stderr)
    return Result(answer.value, stdout, stderr, error, answer.exit_status, dropped)


class Box(Closing):
    """A warmed interpreter. Close it, or use it in a `with` block. Threads may share it.

    Made by `sandhost.interpreters.python` and `javascript`.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        language: Language,
        limits: Limits | None,
        output_limit: int | str,
    ) -> None:
        self.snapshot = snapshot
        """What runs are forked from."""
        self.limits = DEFAULT_LIMITS if limits is None else limits
        """Of runs and sessions that are given none."""
        self._language = language
        self._output_limit = parse_bytes(output_limit)
        self._plain = self._wasi(b"", _NO_FILES)
        self._closed = False

    def __repr__(self) -> str:
        return f"<sandhost {self._language.name} box{', closed' if self._closed else ''}>"

    def run(
        self,
        code: str,
        inputs: Inputs = _NO_INPUTS,
        *,
        limits: Limits | None = None,
        tenant: str | Tenant | None = None,
        stdin: bytes = b"",
        files: Files = _NO_FILES,
    ) -> Result:
        """Run a program in a fresh fork, which is gone when this returns.

        Exceptions of the program are in the result. What the sandbox does to it is raised.

        Args:
            code: its source.
            inputs: variables that it finds set, by name. They pass as JSON, so a tuple is a list.
            limits: None: those of the box.
            tenant: whose limits count as well.
            stdin: what it reads from standard input.
            files: directories of the host by the path that the program sees; without, it has none.

        Raises:
            DeadlineExceeded, OutOfMemory, GuestTrap, …: see `Guest.call`.
            ValueTooLarge: its value is above the box's limit.
            ConfigError: a grant for a path that was not among the box's `mounts`, or inputs that JSON
                cannot hold.
        """
        given = _as_json(inputs) if inputs else ""
        wasi = self._wasi(stdin, files) if stdin or files else self._plain
        guest = self._spawn(limits, tenant, wasi)
        try:
            answer = self._language.run(guest, code, given, first=True, last=bool(files))
        except GuestExit as exit_:
            answer = Answer(exit_status=exit_.status)
        finally:
            guest.close()
        return _result(
            self._language,
            answer,
            guest.stdout.decode(errors="replace"),
            guest.stderr.decode(errors="replace"),
            guest.output_dropped,
        )

    def session(
        self,
        *,
        limits: Limits | None = None,
        tenant: str | Tenant | None = None,
        stdin: bytes = b"",
        files: Files = _NO_FILES,
    ) -> Session:
        """Start a fork that keeps its variables from run to run; arguments as of `run`."""
        outputs = _Output(self._output_limit), _Output(self._output_limit)
        guest = self._spawn(limits, tenant, self._wasi(stdin, files, *outputs))
        return Session(guest, self._language, outputs, bool(files))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the warmed interpreter to a file, for the `snapshot=` of a later box.

        It holds memory of the guest as it is. Load it only if nobody else could write it.
        """
        self._check_open()
        self.snapshot.save(path)

    def close(self) -> None:
        """Let go of the snapshot; forks that live go on. Idempotent."""
        if not self._closed:
            self._closed = True
            self.snapshot.close()

    def _check_open(self) -> None:
        if self._closed:
            raise GuestClosed(f"the {self._language.name} box is closed")

    def _spawn(self, limits: Limits | None, tenant: str | Tenant | None, wasi: Wasi) -> Guest:
        self._check_open()
        return self.snapshot.spawn(
            limits=self.limits if limits is None else limits, tenant=tenant, wasi=wasi
        )

    def _wasi(
        self,
        stdin: bytes,
        files: Files,
        stdout: Callable[[bytes], object] | None = None,
        stderr: Callable[[bytes], object] | None = None,
    ) -> Wasi:
        language = self._language
        for path in files:
            if path not in language.mounts:
                known = ", ".join(language.mounts) or "none"
                raise ConfigError(
                    f"{path!r} is not among the mounts of this {language.name} box ({known}); "
                    "they are named when it is made"
                )
        return Wasi(
            env=language.env,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            dirs={**language.dirs, **files},
            output_limit=self._output_limit,
        )


class Session(Closing):
    """A fork that keeps its variables. Made by `box.session()`; close it, or use it in `with`.

    It belongs to one thread at a time, as its guest does.
    """

    def __init__(
        self, guest: Guest, language: Language, outputs: tuple[_Output, _Output], has_files: bool
    ) -> None:
        self.guest = guest
        """The fork: for its `stats()`, or to `cancel()` a run from another thread, until that has
        ended: a run is several calls of the guest, and one of them may just be returning."""
        self._language = language
        self._outputs = outputs
        self._has_files = has_files
        self._first = True

    def run(self, code: str, inputs: Inputs = _NO_INPUTS) -> Result:
        """Run a program where the last one left off; see `Box.run`.

        What the sandbox raises ends the session, since the interpreter was stopped in mid-step. So
        does `os._exit`. `ValueTooLarge` does not.

        Raises:
            GuestClosed: the session has ended.
        """
        given = _as_json(inputs) if inputs else ""
        try:
            answer = self._language.run(self.guest, code, given, first=self._first, last=False)
            self._first = False
        except GuestExit as exit_:
            self.guest.close()
            answer = Answer(exit_status=exit_.status)
        except (ConfigError, GuestBusy, GuestClosed):
            raise  # nothing has run
        except ValueTooLarge:
            for output in self._outputs:
                output.take()
                output.take_dropped()
            raise
        except BaseException:
            self._end()
            raise
        stdout, stderr = self._outputs
        dropped = stdout.take_dropped() + stderr.take_dropped()
        return _result(self._language, answer, stdout.take(), stderr.take(), dropped)

    @property
    def closed(self) -> bool:
        """Whether it has ended."""
        return self.guest.closed

    def close(self) -> Reclaim:
        """End it, and give its memory back. Idempotent."""
        if self._has_files and not self.guest.closed:
            try:
                self._language.finish(self.guest)
            except SandhostError:
                pass  # it would not; what it left open is lost
        return self.guest.close()

    def _end(self) -> None:
        try:
            self.guest.close()
        except SandhostError:
            pass  # another thread is in it, or views are alive: the first error says more
