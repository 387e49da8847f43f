"""Checks of a machine: what is there, why it matters to sandhost, what to do. Nothing is printed.

findings    what a check returns
machine     where a check looks: files below a root, and probes of the kernel; both replaceable
kernel, memory, software, trial      the checks, each a function from a machine to findings
"""

from __future__ import annotations

from collections.abc import Iterator

from .findings import Finding, Status
from .kernel import kernel_findings
from .machine import REAL_PROBES, Machine, Probes
from .memory import memory_findings
from .software import software_findings
from .trial import trial_findings

__all__ = ["REAL_PROBES", "Finding", "Machine", "Probes", "Status", "examine"]


def examine(machine: Machine | None = None) -> Iterator[Finding]:
    """Yield what there is to say about a machine, None for this one; costs some milliseconds."""
    machine = machine or Machine()
    yield from kernel_findings(machine)
    yield from memory_findings(machine)
    yield from software_findings()
    yield from trial_findings()
