"""One instant of a host: every handle, who holds it, and every guest.

    with sandhost.Host() as host:
        ...
        now = sandhost.observe.capture(host)
        now.write("now.pb.gz")  # go tool pprof now.pb.gz

C takes it while everybody goes on (native/heap_capture.h says why it is one instant), a million handles in a
fraction of a second, and puts cells that are alike into groups. Python reads the groups, and single cells when asked.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from .._ffi import failure, ffi, lib
from ..errors import ConfigError, InvalidHandle, printable
from ..govern.census import GuestRow, guest_row
from ..heap_figures import HeapFigures, figures_from
from .pprof import Profile, Sample, ValueType, encode

if TYPE_CHECKING:
    from ..host import Host

__all__ = ["AgeBucket", "Capture", "CapturedHandle", "Group", "Site", "capture"]

ROOTS = {
    lib.SH_ROOT_PIN: "pinned",
    lib.SH_ROOT_OWNED: "not released",
    lib.SH_ROOT_IN_CALL: "in a call",
    lib.SH_ROOT_MEMORY: "in guest memory",
    lib.SH_ROOT_NONE: "garbage",
}
"""What keeps a handle, as people read it. Garbage is what the next collection takes."""
_MOST_SHOWN = 120
"""Characters of a name that is somebody else's."""
_HEAP_TYPES = (
    ValueType("alloc_objects", "count"),
    ValueType("alloc_space", "bytes"),
    ValueType("inuse_objects", "count"),
    ValueType("inuse_space", "bytes"),
)


class Site(NamedTuple):
    """Exact counters of a tenant's and plugin's handles of one kind and label, also of guests that are gone."""

    tenant: str | None
    plugin: str | None
    """None: the application's own. "others": what there was no room to tell apart."""
    node: int
    """NUMA node of the guests."""
    kind: str
    label: str
    allocs: int
    frees: int
    alloc_bytes: int
    free_bytes: int

    @property
    def title(self) -> str:
        """Kind and label."""
        return f"{self.kind} [{self.label}]" if self.label else self.kind


class Group(NamedTuple):
    """Handles that are alike: of one site, held along one path, about as old."""

    site: Site
    path: tuple[str, ...]
    """What leads to them: a root ("pinned", "not released", "in a call", "in guest memory", "garbage"), then
    containers and objects, the one that holds them last; equal ones in a row are one."""
    age_ns: tuple[int, int]
    """From, and below."""
    cells: int
    bytes: int
    oldest: int
    """One of them, for `Capture.handle`."""


class AgeBucket(NamedTuple):
    """Handles that are at least `from_ns` and less than `below_ns` old."""

    from_ns: int
    below_ns: int
    cells: int
    bytes: int


class CapturedHandle(NamedTuple):
    """A handle as it was."""

    handle: int
    kind: str
    label: str
    size: int
    guest: int
    """Id of its owner, 0: the host."""
    tenant: str | None
    plugin: str | None
    owners: int
    pins: int
    in_call: bool
    age_ns: int
    """To within 8.4 ms."""


class Capture:
    """What `capture()` returns. It keeps nothing alive of what it shows."""

    def __init__(self, host: Host) -> None:
        native = lib.sh_capture_take(host.native)
        if not native:
            raise failure()
        self.time_ns = time.time_ns()
        """When it was taken, since 1970."""
        self._native = ffi.gc(native, lib.sh_capture_free)
        self._view = view = ffi.new("sh_capture_view *")
        lib.sh_capture_view_of(self._native, view)
        self.cycle: int = view.cycle
        """Number of the collection that was under way, or of the last one."""
        self.figures: HeapFigures = figures_from(view.figures)
        """The heap's counters of the same instant."""
        plugins, tenants = host.names()
        self.guests: list[GuestRow] = [
            guest_row(row, plugins, tenants) for row in view.guests[0 : view.guest_count]
        ]
        """Every guest there was. What it does, and has committed, may be newer by the time the list took."""
        heap = host.handles_and_gc[0] if host.handles_and_gc is not None else None
        self._kinds = heap.kind_names() if heap is not None else {}
        labels = heap.label_name if heap is not None else str
        sources = view.sources
        self._sites = tuple(
            self._site(site, sources[site.source], tenants, labels)
            for site in view.sites[0 : view.site_count]
        )
        self._paths: list[tuple[str, ...]] = [(ROOTS[root],) for root in range(lib.SH_ROOTS)]
        for path in view.paths[lib.SH_ROOTS : view.path_count] if view.path_count else ():
            self._paths.append((*self._paths[path.outer], self._sites[path.site].title))

    def _site(self, site: Any, source: Any, tenants: dict[int, str], labels: Any) -> Site:
        plugin = _name(ffi.string(source.plugin).decode(errors="replace"))
        if source.others:
            plugin = "others"
        kind = "others" if site.kind == 0 else _name(self._kinds.get(site.kind, f"{site.kind}"))
        return Site(
            _name(tenants.get(source.tenant, f"{source.tenant}")) if source.tenant else None,
            None if source.host else plugin,
            source.node,
            kind,
            _name(labels(site.label)) if site.label else "",
            site.allocs,
            site.frees,
            site.alloc_bytes,
            site.free_bytes,
        )

    def __repr__(self) -> str:
        return (
            f"<sandhost.observe.Capture of {len(self)} handles and {len(self.guests)} guests, "
            f"cycle {self.cycle}>"
        )

    # ---- handles ----

    def __len__(self) -> int:
        """Return how many handles there were."""
        return int(self._view.cell_count)

    @property
    def sites(self) -> tuple[Site, ...]:
        """All counters, of what there is and of what is gone."""
        return tuple(site for site in self._sites if site.allocs)

    def groups(self) -> Iterator[Group]:
        """Iterate over all handles, those that are alike together."""
        view = self._view
        for group in view.groups[0 : view.group_count]:
            yield Group(
                self._sites[group.site],
                self._paths[group.path],
                self._age_of(group.age),
                group.cells,
                group.bytes,
                group.oldest,
            )

    def _age_of(self, power: int) -> tuple[int, int]:
        tick = int(self._view.tick_ns)
        return ((1 << power) - 1) * tick, ((1 << power + 1) - 1) * tick

    def handle(self, cell: int) -> CapturedHandle:
        """Return one handle, by its place: 0 to `len(capture)` - 1."""
        if not 0 <= cell < len(self):
            raise ConfigError(f"the capture has {len(self)} handles; there is no {cell}")
        native = self._view.cells[cell]
        site = self._sites[native.site]
        return CapturedHandle(
            native.handle,
            _name(self._kinds.get(native.handle >> 56, site.kind)),
            site.label,
            native.size,
            native.guest,
            site.tenant,
            site.plugin,
            native.owners,
            native.pins,
            bool(native.flags & lib.SH_CELL_IN_CALL),
            max(0, self._view.now - native.born) * self._view.tick_ns,
        )

    def find(self, handle: int) -> int:
        """Return the place of a handle.

        Raises:
            InvalidHandle: there was none.
        """
        for cell in range(len(self)):
            if self._view.cells[cell].handle == handle:
                return cell
        raise InvalidHandle(f"handle {handle:#x} is none of the capture's")

    def holder(self, cell: int) -> tuple[str, int | None]:
        """Return the root that a handle is reached from, and the handle before it on the shortest way, or None."""
        root = ffi.new("uint32_t *")
        self.handle(cell)  # there is one
        by = lib.sh_capture_holder(self._native, cell, root)
        return ROOTS[root[0]], None if by == lib.SH_NO_CELL else by

    def targets(self, cell: int) -> list[int]:
        """Return the places of what a handle referred to."""
        self.handle(cell)
        count = lib.sh_capture_edges(self._native, cell, ffi.NULL, 0)
        cells = ffi.new("uint32_t[]", count)
        lib.sh_capture_edges(self._native, cell, cells, count)
        return list(ffi.unpack(cells, count)) if count else []

    # ---- how long ----

    def ages(self, **wanted: str | None) -> list[AgeBucket]:
        """Return a histogram of ages, youngest first, of those `wanted`: by tenant, plugin, kind or label."""
        sums: dict[tuple[int, int], list[int]] = {}
        for group in self.groups():
            if all(getattr(group.site, key) == value for key, value in wanted.items()):
                total = sums.setdefault(group.age_ns, [0, 0])
                total[0] += group.cells
                total[1] += group.bytes
        return [AgeBucket(*ages, *total) for ages, total in sorted(sums.items())]

    # ---- files ----

    def profile(self, *, ages: bool = True) -> Profile:
        """Return it as a profile: allocated ever and in use, in handles and bytes.

        The stack of what is in use is tenant, plugin, and the path by which it is held; of what was allocated, tenant
        and plugin. The last frame is always the kind. Tags: tenant, plugin, node, kind, label, held, age.

        Args:
            ages: False leaves out the tag that makes two profiles of the same handles differ.
        """
        samples = [
            Sample((*_whose(s), s.title), (s.allocs, s.alloc_bytes, 0, 0), _tags(s))
            for s in self.sites
        ]
        for group in self.groups():
            site = group.site
            more: tuple[tuple[str, str | int], ...] = (("held", " > ".join(group.path)),)
            if ages:
                more = (*more, ("age", group.age_ns[0]))
            stack = (*_whose(site), *group.path, site.title)
            values = (0, 0, group.cells, group.bytes)
            samples.append(Sample(stack, values, (*_tags(site), *more)))
        comment = f"sandhost: {len(self)} handles, {len(self.guests)} guests, cycle {self.cycle}"
        return Profile(_HEAP_TYPES, tuple(samples), self.time_ns, 0, "inuse_space", (comment,))

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write it for `go tool pprof` and `sandhost leaks`; where the name ends in .json, for speedscope.

        Raises:
            OSError: it cannot be written.
        """
        from .speedscope import speedscope

        if os.fspath(path).endswith(".json"):
            data = speedscope(self.profile(ages=False), "inuse_space")
        else:
            data = encode(self.profile())
        with open(path, "wb") as file:
            file.write(data)


def _name(text: str) -> str:
    return printable(text, _MOST_SHOWN)


def _whose(site: Site) -> tuple[str, ...]:
    tenant = () if site.tenant is None else (f"tenant {site.tenant}",)
    return (*tenant, "host" if site.plugin is None else f"plugin {site.plugin}")


def _tags(site: Site) -> tuple[tuple[str, str | int], ...]:
    tags = {
        "tenant": site.tenant,
        "plugin": site.plugin,
        "node": str(site.node),
        "kind": site.kind,
        "label": site.label,
    }
    return tuple((key, value) for key, value in tags.items() if value)


def capture(host: Host, *, gc: bool = False) -> Capture:
    """Take all handles and guests of this instant; guests go on meanwhile.

    Args:
        gc: collect first, so that nothing is left of what nobody holds.

    Raises:
        NativeError: there is no memory for it.
        SandhostError: this process was forked from the one that has the handles.
    """
    if gc and host.handles_and_gc is not None:
        host.gc.collect()
    return Capture(host)
