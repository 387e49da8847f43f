"""What `sandhost --version` prints."""

from __future__ import annotations

import platform

__all__ = ["version_lines"]


def version_lines() -> str:
    """Return one line for each part whose version matters in a report of a bug."""
    from .. import __version__
    from .._ffi import WASMTIME_VERSION

    return "\n".join(
        [
            f"sandhost {__version__}",
            f"wasmtime {WASMTIME_VERSION}",
            f"{platform.python_implementation()} {platform.python_version()}",
            f"{platform.system()} {platform.release()} {platform.machine()}",
        ]
    )
