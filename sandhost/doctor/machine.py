"""Where checks look: files below a root, and probes that ask the running kernel."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import resource
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["REAL_PROBES", "Machine", "Probes"]

_PAGEMAP_SCAN = 3 << 30 | 96 << 16 | ord("f") << 8 | 16  # _IOWR('f', 16, struct pm_scan_arg)
_PRESENT = 1 << 3
_PROCESS_MADVISE = 440  # the same number on every architecture
_PIDFD_SELF = -10000
_MADV_DONTNEED, _MADV_FREE = 4, 8
_PROT_NONE, _PRIVATE_ANONYMOUS_NORESERVE = 0, 0x02 | 0x20 | 0x4000
_SEALS = 0x2 | 0x4 | 0x8  # F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_WRITE
_ADD_SEALS = 1033
_MFD_ALLOW_SEALING = 2
_KEPT = -1


@dataclass(frozen=True, slots=True)
class Probes:
    """Questions to the kernel. Each answers 0 for "works", else an errno.

    -1 stands for a call that succeeds and has no effect.
    """

    pagemap_scan: Callable[[], int]
    process_madvise: Callable[[], int]
    give_back: Callable[[], int]
    give_back_lazily: Callable[[], int]
    seal_memfd: Callable[[], int]
    reserve: Callable[[int], int]
    """Takes the bytes of address space to reserve and release."""
    limit: Callable[[int], int | None]
    """Takes a number such as `resource.RLIMIT_AS`; answers the soft limit, None for none."""
    cpus: Callable[[], int]
    """The CPUs that this process may use."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine to examine. Tests give a root with files of their own, and probes that lie."""

    root: Path = Path("/")
    probes: Probes | None = None

    @property
    def ask(self) -> Probes:
        """The probes in use."""
        return self.probes or REAL_PROBES

    def text(self, path: str) -> str | None:
        """Return the text of a file such as "proc/meminfo", stripped; None when there is none."""
        try:
            return (self.root / path).read_text(errors="replace").strip()
        except OSError:
            return None

    def number(self, path: str) -> int | None:
        """Return the number in a file, None when there is none."""
        text = self.text(path)
        return int(text) if text is not None and text.isascii() and text.isdigit() else None

    def field(self, path: str, label: str) -> str | None:
        """Return what follows "label:" on a line of its own, None when no line begins so."""
        for line in (self.text(path) or "").splitlines():
            name, colon, value = line.partition(":")
            if colon and name.strip() == label:
                return value.strip()
        return None

    def kib(self, label: str) -> int | None:
        """Return a line of /proc/meminfo in bytes."""
        value = (self.field("proc/meminfo", label) or "").removesuffix("kB").strip()
        return int(value) * 1024 if value.isascii() and value.isdigit() else None


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _scratch(pages: int = 1) -> tuple[mmap.mmap, int]:
    """Return a private mapping with every page written, and its address."""
    area = mmap.mmap(-1, pages * mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    area[:] = b"x" * len(area)
    return area, ctypes.addressof(ctypes.c_char.from_buffer(area))


def _pagemap_scan() -> int:
    """Ask for the present pages of one page that is present."""
    area, address = _scratch()
    found = (ctypes.c_uint64 * 3)()
    request = bytearray(
        struct.pack(
            "=12Q",
            96,  # size of this structure
            0,
            address,
            address + len(area),
            0,
            ctypes.addressof(found),
            1,
            0,
            0,
            _PRESENT,
            0,
            _PRESENT,
        )
    )
    try:
        pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        return error.errno or errno.EIO
    try:
        count = fcntl.ioctl(pagemap, _PAGEMAP_SCAN, request)
    except OSError as error:
        return error.errno or errno.EIO
    finally:
        os.close(pagemap)
    return 0 if count == 1 and found[0] == address else errno.EIO


def _process_madvise() -> int:
    area, address = _scratch(2)
    half = len(area) // 2
    ranges = (ctypes.c_uint64 * 4)(address, half, address + half, half)
    libc = _libc()
    libc.syscall.restype = ctypes.c_long
    arguments = (_PROCESS_MADVISE, _PIDFD_SELF, ctypes.addressof(ranges), 2, _MADV_DONTNEED, 0)
    done = libc.syscall(*(ctypes.c_long(argument) for argument in arguments))
    if done < 0:
        return ctypes.get_errno()
    return 0 if done == len(area) and not any(area[:]) else _KEPT


def _give_back() -> int:
    area, address = _scratch()
    libc = _libc()
    if libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(len(area)), _MADV_DONTNEED):
        return ctypes.get_errno()
    return _KEPT if any(area[:]) else 0


def _give_back_lazily() -> int:
    area, address = _scratch()
    libc = _libc()
    if libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(len(area)), _MADV_FREE):
        return ctypes.get_errno()
    return 0


def _seal_memfd() -> int:
    try:
        file = os.memfd_create("sandhost-doctor", os.MFD_CLOEXEC | _MFD_ALLOW_SEALING)
    except OSError as error:
        return error.errno or errno.EIO
    try:
        os.truncate(file, mmap.PAGESIZE)
        fcntl.fcntl(file, _ADD_SEALS, _SEALS)
        os.write(file, b"x")
    except PermissionError:  # what a sealed file answers to a write
        return 0
    except OSError as error:
        return error.errno or errno.EIO
    finally:
        os.close(file)
    return _KEPT


def _reserve(size: int) -> int:
    libc = _libc()
    libc.mmap.restype = ctypes.c_void_p
    base = libc.mmap(
        None,
        ctypes.c_size_t(size),
        _PROT_NONE,
        _PRIVATE_ANONYMOUS_NORESERVE,
        -1,
        ctypes.c_long(0),
    )
    if base == ctypes.c_void_p(-1).value:
        return ctypes.get_errno()
    libc.munmap(ctypes.c_void_p(base), ctypes.c_size_t(size))
    return 0


def _limit(number: int) -> int | None:
    soft = resource.getrlimit(number)[0]
    return None if soft == resource.RLIM_INFINITY else soft


def _cpus() -> int:
    return len(os.sched_getaffinity(0))


REAL_PROBES = Probes(
    pagemap_scan=_pagemap_scan,
    process_madvise=_process_madvise,
    give_back=_give_back,
    give_back_lazily=_give_back_lazily,
    seal_memfd=_seal_memfd,
    reserve=_reserve,
    limit=_limit,
    cpus=_cpus,
)

if sys.maxsize < 2**32:  # pragma: no cover - the wheel does not install there
    raise ImportError("sandhost runs on 64-bit machines")
