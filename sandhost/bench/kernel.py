"""What the kernel says about this process's memory: the counts that reclaim is held against.

Nothing here asks sandhost. Private pages of an address range are read from /proc/self/pagemap (one
64-bit entry a page), all of the process's from /proc/self/smaps_rollup, which walks the page tables
and is exact, where statm's counters are batched per CPU.
"""

from __future__ import annotations

import array
import ctypes
import fcntl
import os
from pathlib import Path

__all__ = ["PAGEMAP", "ROLLUP", "private_pages", "process_private_bytes", "resident_bytes"]

PAGEMAP, ROLLUP = "/proc/self/pagemap", "/proc/self/smaps_rollup"

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_PRESENT, _SWAPPED, _FILE = 1 << 63, 1 << 62, 1 << 61  # Documentation/admin-guide/mm/pagemap.rst
_CHUNK_PAGES = 1 << 16


class _ScanArguments(ctypes.Structure):
    """`struct pm_scan_arg` of linux/fs.h."""

    _fields_ = (
        ("size", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
        ("start", ctypes.c_uint64),
        ("end", ctypes.c_uint64),
        ("walk_end", ctypes.c_uint64),
        ("vec", ctypes.c_uint64),
        ("vec_len", ctypes.c_uint64),
        ("max_pages", ctypes.c_uint64),
        ("category_inverted", ctypes.c_uint64),
        ("category_mask", ctypes.c_uint64),
        ("category_anyof_mask", ctypes.c_uint64),
        ("return_mask", ctypes.c_uint64),
    )


_PAGEMAP_SCAN = 0xC0606610
_IS_ZERO_PAGE = 1 << 5


def private_pages(address: int, length: int) -> int:
    """Count OS pages in a range that hold data of this process alone, in memory or swapped out.

    Pages of a file or image that were only read, and reads of untouched memory (which show the
    kernel's one zero page), do not count.
    """
    first, pages = address // _PAGE_BYTES, -(-length // _PAGE_BYTES)
    with Path(PAGEMAP).open("rb", buffering=0) as pagemap:
        found = 0
        pagemap.seek(first * 8)
        while pages > 0:
            data = pagemap.read(min(pages, _CHUNK_PAGES) * 8)
            if not data:
                break
            entries = array.array("Q", data)
            pages -= len(entries)
            found += sum(
                1 for entry in entries if entry & (_PRESENT | _SWAPPED) and not entry & _FILE
            )
        return found - _zero_pages(pagemap.fileno(), address, length) if found else 0


def _zero_pages(pagemap: int, address: int, length: int) -> int:
    """Count mappings of the zero page, which a pagemap entry cannot tell from a private page."""
    found = 0
    regions = (ctypes.c_uint64 * (3 * 512))()  # start, end, categories
    wanted = _ScanArguments(
        size=ctypes.sizeof(_ScanArguments),
        start=address,
        end=address + -(-length // _PAGE_BYTES) * _PAGE_BYTES,
        vec=ctypes.addressof(regions),
        vec_len=512,
        category_mask=_IS_ZERO_PAGE,
        return_mask=_IS_ZERO_PAGE,
    )
    while wanted.start < wanted.end:
        try:
            count = fcntl.ioctl(pagemap, _PAGEMAP_SCAN, wanted)
        except OSError:
            return 0  # before Linux 6.7
        found += sum(regions[3 * k + 1] - regions[3 * k] for k in range(count)) // _PAGE_BYTES
        if wanted.walk_end <= wanted.start:
            break
        wanted.start = wanted.walk_end
    return found


def process_private_bytes() -> int:
    """Return the bytes of anonymous memory of this process, resident or swapped out."""
    total = 0
    for line in Path(ROLLUP).read_text().splitlines():
        key, _, value = line.partition(":")
        if key in ("Anonymous", "Swap"):
            total += int(value.split()[0]) * 1024
    return total


def resident_bytes() -> int:
    """Return the process's resident memory by /proc/self/statm: cheap, and a little late."""
    return int(Path("/proc/self/statm").read_bytes().split()[1]) * _PAGE_BYTES
