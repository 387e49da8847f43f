"""The memory cgroup of this process: its limit, and the files that tell of it.

https://docs.kernel.org/admin-guide/cgroup-v2.html#memory, and .../cgroup-v1/memory.html
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import NamedTuple

__all__ = ["MemoryGroup", "find_group", "stall_file"]

_NO_LIMIT = 2**60  # version 1 writes a huge number for "none"
_NAMES = {
    1: ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    2: ("sys/fs/cgroup", "memory.max", "memory.current"),
}


class MemoryGroup(NamedTuple):
    """The tightest of the groups that this process is in."""

    version: int
    folder: Path
    limit_bytes: int | None
    used_bytes: int
    """With the files that the kernel keeps in memory for the group."""

    @property
    def usage_file(self) -> Path:
        """What `used_bytes` was read from."""
        return self.folder / _NAMES[self.version][2]

    def idle_file_bytes(self) -> int:
        """Return the part of `used_bytes` that the kernel drops before it refuses anything."""
        name = "total_inactive_file " if self.version == 1 else "inactive_file "
        for line in (_text(self.folder / "memory.stat") or "").splitlines():
            if line.startswith(name) and line[len(name) :].isdigit():
                return int(line[len(name) :])
        return 0

    def hits(self) -> int:
        """Return how often the group has met its limit: memory.events, or memory.failcnt."""
        if self.version == 1:
            return _number(self.folder / "memory.failcnt") or 0
        events = (_text(self.folder / "memory.events") or "").split()
        counts = dict(zip(events[::2], events[1::2]))
        return sum(int(counts[name]) for name in ("high", "max") if counts.get(name, "").isdigit())


def find_group(root: Path = Path("/")) -> MemoryGroup | None:
    """Return the group with the tightest limit between this process's own and the root of all.

    Args:
        root: where /proc and /sys lie.
    """
    for line in (_text(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        version = 1 if "memory" in controllers.split(",") else 2 if not controllers else None
        group = None if version is None else _tightest(root, version, path)
        if group is not None:
            return group
    return None


def stall_file(root: Path = Path("/"), group: MemoryGroup | None = None) -> Path | None:
    """Return the file of pressure stall information: the group's own, else the machine's.

    https://docs.kernel.org/accounting/psi.html
    """
    own = group.folder / "memory.pressure" if group is not None and group.version == 2 else None
    for file in (own, root / "proc/pressure/memory"):
        if file is not None and _text(file):
            return file
    return None


def _tightest(root: Path, version: int, path: str) -> MemoryGroup | None:
    mount, limit_name, used_name = _NAMES[version]
    found: MemoryGroup | None = None
    place = PurePosixPath("/", path.strip())
    for folder in (place, *place.parents):
        where = root / mount / folder.relative_to("/")
        used = _number(where / used_name)
        if used is None:  # in a container, the path may be one of the machine outside
            continue
        limit = _number(where / limit_name)  # "max" is no number
        if limit is not None and limit >= _NO_LIMIT:
            limit = None
        tighter = limit is not None and (
            found is None or found.limit_bytes is None or limit < found.limit_bytes
        )
        if found is None or tighter:
            found = MemoryGroup(version, where, limit, used)
    return found


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text is not None and text.isdigit() else None
