"""Who holds what: the way from a root to a handle of a capture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .capture import Capture, CapturedHandle

__all__ = ["Path", "path_to"]


class Path(NamedTuple):
    """The shortest way from a root to a handle, both ends included."""

    root: str
    """What keeps the first of them: "pinned", "not released" (by its owner), "in a call", "in guest memory" (that is
    scanned, of a plugin that does not release by hand), or "garbage"."""
    steps: Sequence[CapturedHandle]
    """From the one that the root keeps to the one asked for; each refers to the next."""
    skipped: int = 0
    """Steps left out in the middle, of a way that is very long."""

    def __str__(self) -> str:
        first = self.steps[0]
        owner = "the host" if not first.guest else f"guest {first.guest:#x}"
        shown = [_shown(step) for step in self.steps]
        if self.skipped:
            shown.insert(len(shown) // 2, f"… {self.skipped} more …")
        return f"{self.root}, of {owner}: {' > '.join(shown)}"


def _shown(step: CapturedHandle) -> str:
    title = f"{step.kind} [{step.label}]" if step.label else step.kind
    return f"{title} {step.handle:#x}"


def path_to(capture: Capture, cell: int, *, most: int = 64) -> Path:
    """Return the way to a handle, by its place in the capture (`Capture.find`, `Group.oldest`).

    Args:
        most: of a longer way, so many steps are shown, half of them from each end.
    """
    cells = [cell]
    root, before = capture.holder(cell)
    while before is not None:
        cells.append(before)
        root, before = capture.holder(before)
    cells.reverse()
    skipped = max(0, len(cells) - most)
    if skipped:
        cells = cells[: most // 2] + cells[len(cells) - (most - most // 2) :]
    return Path(root, [capture.handle(each) for each in cells], skipped)
