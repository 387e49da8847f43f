"""JavaScript as a guest: QuickJS, built for wasm as a reactor and shipped with the package.

host                                      guest
alloc(n), write the program ────────────►
run(address, n) ────────────────────────► evaluate, JSON.stringify the value
value_length(), value(), read ◄──────────
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, GuestError
from ..limits import Limits
from ..units import format_bytes, parse_bytes
from ..wasi import Wasi
from .box import Box, Files
from .progress import Progress, Say, saying
from .result import Answer, CodeError, check_size

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..guest import Guest
    from ..host import Host
    from ..plugin import Plugin
    from ..snapshot import Snapshot

__all__ = ["javascript"]

_WASM = Path(__file__).parent / "quickjs.wasm"
_WARM_UP = Limits(memory=None)
_REHEARSAL = ("console.log('x', 1, {})", "({a: [1, 'x', null]})", "throw new Error('x')")
_NOTHING_GIVEN: Mapping[str, Any] = MappingProxyType({})
_ERROR = re.compile(r"([A-Za-z_$][\w$]*)(?:: (.*))?", re.DOTALL)
_STACK = re.compile(r"(?:    at .*\n)*\Z")


def javascript(
    host: Host,
    *,
    setup: str = "",
    limits: Limits | None = None,
    output_limit: int | str = "1 MiB",
    value_limit: int | str = "1 MiB",
    snapshot: str | os.PathLike[str] | None = None,
    progress: Progress = False,
) -> Box:
    """Return a box of JavaScript guests, warmed once; every run is a fork of it.

    Programs have the language (ES2020) and `console.log`; no modules, timers, files or network. A
    fork gets random numbers of its own, and shares what `setup` computed.

    The value of a run is that of its last statement, a promise's when it is settled, as JSON has it:
    None for undefined and functions, text for what JSON cannot hold, such as a BigInt.

    Args:
        host: where the guests live.
        setup: a program to run before the snapshot, such as a library; programs see its names.
        limits: of runs that are given none; None: 256 MiB, 30 s.
        output_limit: bytes kept of each stream of a run.
        value_limit: most bytes of JSON for a value.
        snapshot: a file that `box.save` has written, instead of `setup`.
        progress: True shows a spinner on a terminal, else logs; a function gets each step as a line.

    Raises:
        ConfigError: `setup` failed.
    """
    if snapshot is not None and setup:
        raise ConfigError("a saved snapshot has its setup: give either, not both")
    language = _QuickJS(parse_bytes(value_limit))
    with saying(progress) as say:
        say("loading QuickJS (the first time it is compiled for some seconds)")
        plugin = host.load(_WASM, name="QuickJS")
        if snapshot is not None:
            image = host.load_snapshot(snapshot, module=plugin)
        else:
            image = language.warm(plugin, setup, say)
    return Box(image, language, limits, output_limit)


class _QuickJS:
    """How a QuickJS guest is asked; a `box.Language`."""

    name = "JavaScript"
    mounts: tuple[str, ...] = ()
    dirs: Files = _NOTHING_GIVEN
    env: Mapping[str, str] = _NOTHING_GIVEN

    def __init__(self, most: int) -> None:
        self._most = most

    def run(
        self,
        guest: Guest,
        code: str,
        inputs: str,
        *,
        first: bool,
        last: bool,
    ) -> Answer:
        """Run a program; an error's traceback comes on stderr, see `complete`.

        A first one needs nothing: the snapshot's `reseed` has made the fork differ.
        """
        if inputs:  # JSON in quotes: as source, "__proto__" would not name a property
            given = f"Object.assign(globalThis, JSON.parse({json.dumps(inputs)})), undefined"
            answer = self.run(guest, given, "", first=first, last=False)
            if answer.error is not None:
                return answer
        try:
            program = code.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(f"the code is no Unicode text: {error}") from None
        address = guest.call("alloc", len(program))
        if not address:
            raise GuestError(f"the guest has no memory for {format_bytes(len(program))} of code")
        memory = guest.memory
        memory.write(address, program)
        status = guest.call("run", address, len(program))
        if not last:  # a fork that ends need not tidy up
            guest.call("release", address)
        length = guest.call("value_length")
        if not length and not status:
            return _UNDEFINED
        check_size(length, self._most)
        try:
            value = json.loads(memory.read(guest.call("value"), length)) if length else None
        except (ValueError, RecursionError) as error:
            raise GuestError(f"the guest's value cannot be read: {error!s:.200}") from None
        if status:
            return Answer(None, CodeError("", str(value), ""), 1)
        return Answer(value)

    def complete(self, error: CodeError, stderr: str) -> tuple[CodeError, str]:
        """Take the error's text and stack, which QuickJS writes to stderr, from there."""
        at = stderr.rfind(error.message + "\n")
        shown = f"{error.message}\n"
        if at >= 0 and _STACK.match(stderr, at + len(shown)):
            stderr, shown = stderr[:at], stderr[at:]
        named = _ERROR.fullmatch(error.message)
        if named is not None and (named[1].endswith("Error") or "\n    at " in shown):
            return CodeError(named[1], named[2] or "", shown), stderr
        return CodeError("uncaught", error.message, shown), stderr

    def finish(self, guest: Guest) -> None:
        """Do nothing: programs have nothing that they could leave open."""

    def warm(self, plugin: Plugin, setup: str, say: Say) -> Snapshot:
        """Start an interpreter, prepare it, and capture it."""
        with plugin.spawn(limits=_WARM_UP, wasi=Wasi()) as guest:
            guest.call("_initialize")
            for program in _REHEARSAL:
                self.run(guest, program, "", first=False, last=False)
            if setup:
                say("running the setup")
                answer = self.run(guest, setup, "", first=False, last=False)
                if answer.error is not None:
                    raise ConfigError(
                        f"the warm-up failed in the guest:\n{guest.stderr.decode(errors='replace')}"
                    )
            say("capturing the interpreter")
            return guest.snapshot(reseed="reseed")


_UNDEFINED = Answer()
