"""The installed package with another native module: without probes, or without histograms as well."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from common import HERE

import sandhost

INSTALLED = Path(sandhost.__file__).parent
_NAME = "_native.abi3.so"
_RECORD = "void shi_histogram_record(shi_histogram *histogram, uint64_t ns) {\n"
_NO_HISTOGRAMS = (  # neither the records nor the looks at the clock that only they need
    ("histogram.c", _RECORD, f"{_RECORD}  return;\n"),
    ("guest.c", "uint64_t now = shi_now_ns();", "uint64_t now = begun;"),
    ("guest.c", "uint64_t begun = shi_now_ns();\n  sh_plugin", "uint64_t begun = 0;\n  sh_plugin"),
    ("call.c", "shi_now_ns() - begun", "begun"),
)


def has_probes() -> bool:
    """Whether the installed module has probes; False where nobody can tell."""
    readelf = shutil.which("readelf")
    if readelf is None:
        return False
    command = [readelf, "-n", INSTALLED / _NAME]
    notes = subprocess.run(command, capture_output=True, text=True, check=False)
    return "Provider: sandhost" in notes.stdout


def package(folder: Path, *, histograms: bool) -> Path:
    """Make the package there, with a module built without probes; return what to put on the path. Needs cmake."""
    native, build = folder / "native", folder / "build"
    shutil.copytree(INSTALLED, folder / "sandhost")
    shutil.copytree(HERE.parent / "native", native)
    for name, text, instead in () if histograms else _NO_HISTOGRAMS:
        source = (native / name).read_text()
        assert text in source, f"{name} has changed: {text}"
        (native / name).write_text(source.replace(text, instead))
    options = ["-DCMAKE_C_FLAGS=-DSANDHOST_NO_PROBES", f"-DPython_EXECUTABLE={sys.executable}"]
    for command in (
        ["cmake", "-S", native, "-B", build, *options],
        ["cmake", "--build", build, "--parallel"],
    ):
        subprocess.run(command, check=True, capture_output=True)
    shutil.copy(build / _NAME, folder / "sandhost" / _NAME)
    return folder


def in_process(path: Path, call: str) -> Callable[[], list[float]]:
    """Return what runs a benchmark's `module.function(...)` with that package; it returns the numbers printed."""
    module = call.partition(".")[0]
    code = f"import sys; sys.path.append({str(HERE)!r}); import {module}; {call}"
    environment = {**os.environ, "PYTHONPATH": str(path), "PYTHONSAFEPATH": "1"}

    def run() -> list[float]:
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        return [float(word) for word in done.stdout.split()]

    return run
