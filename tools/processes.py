"""Running things: what they print, and what happens when they fail."""

import contextlib
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from .places import CACHE, ROOT


class Failed(Exception):
    """A step failed; what it printed has been shown."""


def seconds(since: float) -> str:
    """Time since, as it stands at the end of a line."""
    return f"{time.monotonic() - since:.1f} s"


def quietly(title: str, command: Sequence[object], **options: object) -> None:
    """Run a command of which one line is enough while it succeeds, and everything when it fails."""
    began = time.monotonic()
    print(f"  {title} …", end=" ", flush=True)
    result = output_of(command, **options)
    print(seconds(began) if result.returncode == 0 else "failed", flush=True)
    if result.returncode != 0:
        print(result.stdout)
        raise Failed(f"{title}: exit status {result.returncode}")


def output_of(command: Sequence[object], **options: object) -> "subprocess.CompletedProcess[str]":
    """Run a command; return its status, with standard output and error as one text."""
    environment = {**os.environ, **dict(options.pop("env", None) or {})}  # type: ignore[call-overload]
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
        env=environment,
        **{"cwd": ROOT, **options},
    )


def shown(command: Sequence[object], env: dict[str, str]) -> None:
    """Run a command that shows what it does itself."""
    sys.stdout.flush()
    result = subprocess.run(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        check=False,
        cwd=ROOT,
        env={**os.environ, **env},
    )
    if result.returncode:
        raise Failed(f"{Path(str(command[0])).name}: exit status {result.returncode}")


@contextlib.contextmanager
def alone(name: str) -> Iterator[None]:
    """Keep other processes from making the same thing in the cache meanwhile."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
