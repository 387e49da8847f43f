"""The kernel: its version, and whether it does what the region pool asks of it."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from functools import partial

from ..units import format_bytes
from .findings import Finding
from .machine import Machine

__all__ = ["kernel_findings"]

_kernel = partial(Finding, "kernel")
_OLDEST = (4, 5)  # MADV_FREE; the rest has a way round
_SECCOMP = {"0": "off", "1": "strict", "2": "filters system calls"}


def kernel_findings(machine: Machine) -> Iterator[Finding]:
    """Yield what there is to say about the kernel."""
    yield _version(machine)
    yield _kernel(
        "OS page", "ok", format_bytes(mmap.PAGESIZE), "Memory is committed and given back by it."
    )
    yield _give_back(machine)
    yield _give_back_lazily(machine)
    yield _process_madvise(machine)
    yield _pagemap_scan(machine)
    yield _memfd(machine)
    yield _seccomp(machine)


def _said(error: int) -> str:
    if error < 0:
        return "has no effect"
    return f"not available ({errno.errorcode.get(error, error)}: {os.strerror(error)})"


def _version(machine: Machine) -> Finding:
    release = machine.text("proc/sys/kernel/osrelease") or "unknown"
    numbers = tuple(int(n) for n in release.split("-")[0].split(".")[:2] if n.isdigit())
    why = "sandhost runs on Linux 4.5 and later, and uses what later ones add."
    if not numbers:
        return _kernel("version", "note", release, why)
    if numbers < _OLDEST:
        return _kernel("version", "problem", release, why, "Run a newer kernel.")
    return _kernel("version", "ok", f"Linux {release}", why)


def _give_back(machine: Machine) -> Finding:
    name, why = "madvise(DONTNEED)", "It is how a guest's memory goes back to the system."
    error = machine.ask.give_back()
    if error:
        advice = "Allow madvise in the seccomp profile, or leave this sandbox (gVisor?)."
        return _kernel(name, "problem", _said(error), why, advice)
    return _kernel(name, "ok", "gives pages back at once", why)


def _give_back_lazily(machine: Machine) -> Finding:
    name, why = "madvise(FREE)", 'The policy "lazy" lets the kernel take pages when it needs them.'
    error = machine.ask.give_back_lazily()
    if error:
        return _kernel(name, "note", _said(error), why, 'Use reclaim="warm" or "immediate".')
    return _kernel(name, "ok", "works", why)


def _process_madvise(machine: Machine) -> Finding:
    name, why = "process_madvise", "It gives many regions back in one system call."
    error = machine.ask.process_madvise()
    if error:
        advice = "Nothing breaks: each region costs a call of its own. Linux 6.14 brings it."
        return _kernel(name, "note", _said(error), why, advice)
    return _kernel(name, "ok", "works on the own process", why)


def _pagemap_scan(machine: Machine) -> Finding:
    name, why = "PAGEMAP_SCAN", "It tells which pages a guest wrote, so that only they are reset."
    error = machine.ask.pagemap_scan()
    if not error:
        return _kernel(name, "ok", "works", why)
    if machine.text("proc/self/status") is not None and error in (errno.ENOTTY, errno.EINVAL):
        advice = "Nothing breaks: /proc/self/pagemap is read, more slowly. Linux 6.7 brings it."
    else:
        advice = "Mount /proc and allow /proc/self/pagemap; until then all pages are given back."
    return _kernel(name, "note", _said(error), why, advice)


def _memfd(machine: Machine) -> Finding:
    name, why = "sealed memfd", "A plugin's initial data is a file in memory that nobody can alter."
    error = machine.ask.seal_memfd()
    if error:
        advice = "Allow memfd_create and fcntl(F_ADD_SEALS) in the seccomp profile."
        return _kernel(name, "problem", _said(error), why, advice)
    return _kernel(name, "ok", "works", why)


def _seccomp(machine: Machine) -> Finding:
    mode = machine.field("proc/self/status", "Seccomp")
    filters = machine.field("proc/self/status", "Seccomp_filters") or "0"
    found = "unknown" if mode is None else _SECCOMP.get(mode, mode)
    if mode == "2":
        found += f" ({filters} filter{'s' * (filters != '1')})"
    why = "What it forbids shows in the lines above."
    return _kernel("seccomp", "ok", found, why)
