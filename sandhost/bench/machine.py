"""Where a benchmark ran: what its figures depend on, as far as the system tells."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

__all__ = ["Machine", "describe", "what_differs"]

Machine = dict[str, str | int | float | None]

_COMPARED = ("cpu", "cores", "kernel", "python", "wasmtime", "transparent_hugepages", "governor")


def describe() -> Machine:
    """Return what there is to say about CPU, kernel, memory, Python and packages."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "virtual": "hypervisor" in _cpuinfo("flags", "Features").split(),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "kernel": platform.release(),
        "page_bytes": os.sysconf("SC_PAGE_SIZE"),
        "transparent_hugepages": _chosen("/sys/kernel/mm/transparent_hugepage/enabled"),
        "overcommit": _read("/proc/sys/vm/overcommit_memory"),
        "max_map_count": _read("/proc/sys/vm/max_map_count"),
        "load": round(os.getloadavg()[0], 2),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        **{name: _version(name) for name in ("sandhost", "wasmtime", "cffi", "extism")},
    }


def what_differs(old: Machine, new: Machine) -> list[str]:
    """Say in which respects that matter two machines are not the same."""
    return [
        f"{key}: {old.get(key)} before, {new.get(key)} now"
        for key in _COMPARED
        if old.get(key) != new.get(key)
    ]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    return _cpuinfo("model name", "Model") or platform.processor() or platform.machine()


def _cpuinfo(*keys: str) -> str:
    for line in (_read("/proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in keys:
            return value.strip()
    return ""


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return None


def _chosen(path: str) -> str | None:
    """Return the word in brackets: "always [madvise] never" is "madvise"."""
    text = _read(path)
    return text.partition("[")[2].partition("]")[0] if text and "[" in text else text
