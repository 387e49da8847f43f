"""What the machine has: compilers and Pythons."""

import functools
import os
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path

from .processes import Failed, output_of

PYTHONS = ("3.10", "3.11", "3.12", "3.13")
OTHER_PYTHONS = [v for v in PYTHONS if v != f"{sys.version_info[0]}.{sys.version_info[1]}"]


@functools.cache
def compiler() -> str:
    """Return the C compiler, which can build programs."""
    named = os.environ.get("CC", "").split()
    candidates = [named[0]] if named else ["cc", "gcc", "clang"]
    found = next(filter(None, map(shutil.which, candidates)), None)
    if found is None:
        raise Failed(
            "no C compiler: install one (Debian, Ubuntu: apt install gcc libc6-dev; "
            "Fedora: dnf install gcc) or name it in CC"
        )
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "try.c")
        source.write_text("#include <pthread.h>\nint main(void) { return 0; }\n")
        result = output_of([found, source, "-o", Path(folder, "try")])
    if result.returncode:
        first = (result.stdout.splitlines() or ["it says nothing"])[0]
        raise Failed(
            f"the C compiler {found} cannot build a program ({first}); "
            "on Debian and Ubuntu: apt install libc6-dev"
        )
    return found


def check_headers() -> None:
    """Python.h is part of Python, and Linux distributions still ship it apart."""
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        raise Failed(
            f"Python {version}'s C headers are missing (Debian, Ubuntu: apt install "
            f"python{version}-dev; Fedora: dnf install python3-devel)"
        )


def version_of(python: str) -> str | None:
    """Return the version of an interpreter that runs and can make environments."""
    try:
        code = "import sys, venv, ensurepip; print('%d.%d.%d' % sys.version_info[:3])"
        result = output_of([python, "-c", code])
    except OSError:
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def find_python(version: str) -> str | None:
    """Return a CPython of this version ("3.12"): from PATH, else one that pyenv keeps."""
    name = f"python{version}"
    if version == f"{sys.version_info[0]}.{sys.version_info[1]}":
        return sys.executable
    candidates = [path for path in [shutil.which(name)] if path]
    keepers = {Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()}
    keepers |= {Path(path).parent.parent for path in candidates}  # a shim: what it stands for
    for keeper in sorted(keepers):
        candidates += map(str, sorted(keeper.glob(f"versions/{version}*/bin/{name}")))
    return next((path for path in candidates if version_of(path)), None)
