"""Where a process that serves says so, for `sandhost leaks --pid`: a file that only its user can read."""

from __future__ import annotations

import json
import os
import stat
import tempfile
from pathlib import Path

from ..errors import SandhostError

__all__ = ["announce", "find"]


def _folder() -> Path:
    """Return the user's own folder for what lives as long as a process."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime:
        return Path(runtime) / "sandhost"
    return Path(tempfile.gettempdir()) / f"sandhost-{os.getuid()}"


def _is_own(folder: Path) -> bool:
    """Whether nobody else can have put a file there, or exchange one."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    return mine and not found.st_mode & 0o077


def announce(base: str, token: str) -> Path | None:
    """Write address and token; return the file. None: there is no place for it, and `--pid` finds nothing."""
    folder = _folder()
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if not _is_own(folder):
            return None
        descriptor, name = tempfile.mkstemp(dir=folder)  # mode 0600
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump({"url": base, "token": token}, file)
        place = folder / f"{os.getpid()}.json"
        os.replace(name, place)
    except OSError:
        return None
    return place


def find(pid: int) -> tuple[str, str]:
    """Return address and token of a process.

    Raises:
        SandhostError: it does not serve, or is another user's.
    """
    folder = _folder()
    try:
        if not _is_own(folder):
            raise FileNotFoundError
        record = json.loads((folder / f"{pid}.json").read_text(encoding="utf-8"))
        return str(record["url"]), str(record["token"])
    except (OSError, ValueError, KeyError, TypeError):
        raise SandhostError(
            f"process {pid} does not serve profiles to you: it has to call sandhost.observe.serve(host), "
            "and to run as the same user, with the same XDG_RUNTIME_DIR"
        ) from None
