"""What the guests of a benchmark are and do: the built-in plugin, or the user's own."""

from __future__ import annotations

import importlib.resources
import shlex
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import ConfigError
from ..limits import Limits
from ..modules.compiled import read_source
from ..modules.leb import encode_unsigned

__all__ = ["OS_PAGE", "WASM_PAGE", "Call", "Workload", "built_in", "guest_bytes", "own"]

OS_PAGE, WASM_PAGE = 4096, 65536
_DATA_PAGES = 16
"""OS pages of data at the start of bench.wasm; `dirty(n)` writes behind them."""
_PAGES = "{pages}"


@dataclass(frozen=True)
class Call:
    """A function of the guest and its arguments; "{pages}" stands for the pages to dirty."""

    function: str
    arguments: tuple[int | float | str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Call:
        """Read "function 1 0x10 2.5 {pages}".

        Raises:
            ConfigError: an argument is no number.
        """
        try:
            words = shlex.split(text)
        except ValueError as error:
            raise ConfigError(f"{text!r} is not understood: {error}") from None
        if not words:
            raise ConfigError("a call names a function, then its arguments: 'dirty {pages}'")
        return cls(words[0], tuple(_argument(text, word) for word in words[1:]))

    def at(self, pages: int) -> Call:
        """Return the call with "{pages}" filled in."""
        return replace(self, arguments=tuple(pages if a == _PAGES else a for a in self.arguments))

    @property
    def takes_pages(self) -> bool:
        """Whether the number of pages to dirty is one of its arguments."""
        return _PAGES in self.arguments

    def __str__(self) -> str:
        return " ".join([self.function, *map(str, self.arguments)])


def _argument(text: str, word: str) -> int | float | str:
    if word == _PAGES:
        return word
    for read in (lambda: int(word, 0), lambda: float(word)):
        try:
            return read()
        except ValueError:
            continue
    raise ConfigError(f"in {text!r}: {word!r} is no number (or {_PAGES})")


@dataclass(frozen=True)
class Workload:
    """One module, and what each of its guests does between spawn and close."""

    plugin: str
    wasm: bytes
    invoke: Call
    setup: tuple[Call, ...] = ()
    pages: int | None = None
    """OS pages that a guest dirties; None: whatever the plugin does."""
    memory_bytes: int | None = None
    """Of the guest's memory; None: what the module declares."""
    limits: Limits | None = None
    """Of sandhost's guests. Peers have none: they run what has ended within these before."""

    @property
    def label(self) -> str:
        """Name the case, in a few words."""
        return str(self.invoke) if self.pages is None else f"{self.pages} dirty pages"


def guest_bytes(name: str) -> bytes:
    """Return one of the guests that sandhost is installed with.

    Raises:
        ConfigError: the installation lacks them.
    """
    guest = importlib.resources.files("sandhost") / "_guests" / f"{name}.wasm"
    try:
        return guest.read_bytes()
    except FileNotFoundError:
        raise ConfigError(
            f"the guest {name}.wasm is missing from this installation; install sandhost again"
        ) from None


def built_in(pages: int, memory_bytes: int | None = None) -> Workload:
    """Return the built-in plugin: 64 KiB of data, and a call that dirties `pages` OS pages.

    Raises:
        ConfigError: the pages do not fit into the memory.
    """
    wasm = guest_bytes("bench")
    if memory_bytes is None:
        memory_bytes = 17 * WASM_PAGE
    else:
        wasm = _with_memory(wasm, memory_bytes)
    room = memory_bytes // OS_PAGE - _DATA_PAGES
    if not 0 <= pages <= room:
        raise ConfigError(
            f"{pages} pages cannot be dirtied in a memory of {memory_bytes // 1024} KiB: "
            f"{room} lie behind its data; give a larger --memory"
        )
    return Workload("bench", wasm, Call("dirty", (pages,)), pages=pages, memory_bytes=memory_bytes)


def _with_memory(wasm: bytes, memory_bytes: int) -> bytes:
    """Return bench.wasm with another size of memory, fixed."""
    if memory_bytes % WASM_PAGE or not _DATA_PAGES * OS_PAGE <= memory_bytes <= 2**32:
        raise ConfigError(
            f"a memory of {memory_bytes} bytes: give a multiple of 64 KiB, from 64 KiB to 4 GiB"
        )
    pages = encode_unsigned(memory_bytes // WASM_PAGE)
    body = b"\x01\x01" + pages + pages
    old = b"\x05\x04\x01\x01\x11\x11"
    if wasm.count(old) != 1:
        raise ConfigError("bench.wasm is not the one that belongs to this version of sandhost")
    return wasm.replace(old, b"\x05" + encode_unsigned(len(body)) + body)


def own(
    path: Path,
    setup: tuple[Call, ...],
    invoke: Call,
    pages: int | None,
    limits: Limits | None = None,
) -> Workload:
    """Return the user's own plugin.

    Raises:
        ModuleError: it cannot be read.
    """
    title, wasm = read_source(path)
    if pages is not None:
        setup, invoke = tuple(call.at(pages) for call in setup), invoke.at(pages)
    return Workload(Path(title).stem, wasm, invoke, setup, pages, limits=limits)
