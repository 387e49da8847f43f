"""`sandhost doctor`: print what the checks of `sandhost.doctor` find."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..doctor import Finding, Status

__all__ = ["doctor"]

_TOPICS = {
    "kernel": "Kernel",
    "memory": "Memory and CPUs",
    "software": "Software",
    "trial": "A guest, for real",
}
_STYLES: dict[Status, tuple[str, str]] = {
    "ok": ("✓", "green"),
    "note": ("!", "yellow"),
    "problem": ("✗", "bold red"),
}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON record.")
def doctor(as_json: bool) -> int:
    """Check this machine and explain what it finds.

    A note costs speed, room or convenience; a problem keeps sandhost from working as it promises.
    The exit status is 1 when there is a problem.
    """
    from ..doctor import examine

    findings = list(examine())
    problems = sum(finding.status == "problem" for finding in findings)
    if as_json:
        from .output import print_json

        print_json({"problems": problems, "findings": [asdict(f) for f in findings]})
    else:
        from .output import show

        for part in _render(findings):
            show(part)
    return 1 if problems else 0


def _render(findings: Sequence[Finding]) -> Iterator[RenderableType]:
    from rich.table import Table
    from rich.text import Text

    from .output import visible
    from .version import version_lines

    yield Text(", ".join(version_lines().splitlines()), "bold")
    names = max(len(finding.name) for finding in findings)
    for topic, group in groupby(findings, lambda finding: finding.topic):
        yield Text(f"\n{_TOPICS[topic]}", "bold cyan")
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), show_header=False)
        table.add_column(width=9, no_wrap=True)
        table.add_column(width=names + 1, no_wrap=True)
        table.add_column(ratio=1, overflow="fold")
        for finding in group:
            sign, style = _STYLES[finding.status]
            said = Text(visible(finding.found))
            said.append(f"  · {finding.why}", "dim")
            if finding.advice:
                said.append(f"\n→ {visible(finding.advice)}", style)
            table.add_row(Text(f"{sign} {finding.status}", style), Text(finding.name), said)
        yield table
    yield _summary(findings)


def _summary(findings: Sequence[Finding]) -> RenderableType:
    from rich.text import Text

    counts = {status: sum(f.status == status for f in findings) for status in _STYLES}
    text = Text("\n")
    if counts["problem"]:
        count = counts["problem"]
        text.append(f"{count} problem{'s' * (count != 1)}: see the lines with ✗.", "bold red")
    elif counts["note"]:
        text.append("sandhost works here", "bold green")
        text.append(f"; {counts['note']} note{'s' * (counts['note'] != 1)}, marked with !.")
    else:
        text.append("sandhost works here.", "bold green")
    return text
