"""The package, built once for each state of its sources, and environments to install it in."""

import hashlib
import os
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from .machine import check_headers, compiler, version_of
from .places import CACHE, CONSTRAINTS, ROOT
from .processes import Failed, alone, quietly
from .sdt import sdt_flags

PIP = {
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_CONSTRAINT": str(CONSTRAINTS),
    "PIP_BUILD_CONSTRAINT": str(CONSTRAINTS),
}
"""Pins what is installed, also for builds."""

UNPINNED = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_CONSTRAINT": ""}


def digest(*parts: object) -> str:
    """Return a short name for these values and the contents of these files."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part.read_bytes() if isinstance(part, Path) else repr(part).encode())
        sha.update(b"\0")
    return sha.hexdigest()[:16]


def package_sources() -> Iterable[Path]:
    """Every file that the wheel is made of."""
    yield from (ROOT / name for name in ("pyproject.toml", "LICENSE", "constraints.txt"))
    for pattern in ("sandhost/**/*", "native/*", "guests/built/*.wasm"):
        yield from (
            path for path in sorted(ROOT.glob(pattern)) if path.is_file() and path.suffix != ".pyc"
        )


def wheel(sanitize: str = "") -> Path:
    """Return the package's wheel, built if its sources have changed."""
    kind = sanitize.replace(",", "-") or "release"
    with alone(f"wheel-{kind}"):
        return build_wheel(CACHE / "wheels" / kind, sanitize)


def build_wheel(shelf: Path, sanitize: str) -> Path:
    """Return the wheel on this shelf; an older one makes room."""
    compiler()
    sources = list(package_sources())
    flags = sdt_flags()
    name = digest(
        sanitize, flags is not None, [str(path.relative_to(ROOT)) for path in sources], *sources
    )
    ready = list(shelf.glob(f"{name}/*.whl"))
    if ready:
        return ready[0]
    check_headers()
    shutil.rmtree(shelf, ignore_errors=True)
    making = shelf / f"{name}.making"
    builder = environment("builder", [])
    options = [f"-Ccmake.define.SANDHOST_SANITIZE={sanitize}"] if sanitize else []
    quietly(
        f"build the package{f' with -fsanitize={sanitize}' if sanitize else ''}",
        [builder / "bin/python", "-m", "pip", "wheel", "--no-deps", "-w", making, *options, ROOT],
        env={**PIP, "CFLAGS": f"{os.environ.get('CFLAGS', '')} {flags or ''}".strip()},
    )
    making.rename(shelf / name)
    return next((shelf / name).glob("*.whl"))


def environment(
    name: str,
    requirements: Sequence[str],
    *,
    package: Path | None = None,
    extras: str = "",
    python: str | None = None,
    pip: dict[str, str] | None = None,
) -> Path:
    """Return a virtual environment with the package and the requirements installed.

    Args:
        name: ".venv" stands in the source tree, all others in the cache.
        package: the wheel to install.
        extras: its extras, for example "demo,peers".
        python: the interpreter; by default the one that runs this.
    """
    folder = (CACHE / "envs" / name) if name != ".venv" else demo_folder()
    with alone(name):
        install(folder, requirements, package, extras, python or sys.executable, pip or PIP)
    return folder


def install(
    folder: Path,
    requirements: Sequence[str],
    package: Path | None,
    extras: str,
    python: str,
    pip: dict[str, str],
) -> None:
    """Make the environment in this folder what `environment` is asked for, if it is not yet."""
    stamp = folder / "sandhost-run.stamp"
    version = version_of(python)
    if version is None:
        raise Failed(
            f"{python} cannot make virtual environments (Debian, Ubuntu: apt install python3-venv)"
        )
    made_of = digest(python, version, *requirements, extras, CONSTRAINTS, ROOT / "pyproject.toml")
    state = f"{made_of} {package.parent.name if package else '-'}"
    before = stamp.read_text() if stamp.is_file() else ""
    if before == state:
        return
    stamp.unlink(missing_ok=True)
    installer = [folder / "bin/python", "-m", "pip", "install", "--quiet"]
    if before.split(" ")[0] != made_of:
        title = f"make the environment {folder.name} (Python {version})"
        quietly(title, [python, "-m", "venv", "--clear", folder])
        wanted = [*requirements, *([f"{package}[{extras}]"] if package and extras else [])]
        wanted += [str(package)] if package and not extras else []
        if wanted:
            quietly(f"install into {folder.name}", [*installer, *wanted], env=pip)
    elif package:
        again = [*installer, "--no-deps", "--force-reinstall", package]
        quietly(f"install the package into {folder.name}", again, env=pip)
    stamp.write_text(state)


def demo_folder() -> Path:
    """Where demo and bench are installed: where people and editors look for it."""
    return ROOT / ".venv" if CACHE == ROOT / ".cache" else CACHE / "envs" / "demo"


def requirements_of(*names: str) -> list[str]:
    """Read dependency lists out of pyproject.toml (tomllib is in Python from 3.11 on only)."""
    text = (ROOT / "pyproject.toml").read_text()
    found: list[str] = []
    for name in names:
        match = re.search(rf"^{name} = \[(.*?)\]\s*(?:#.*)?$", text, re.MULTILINE | re.DOTALL)
        assert match is not None, name
        found += re.findall(r'"([^"]+)"', re.sub(r"(?m)#.*$", "", match[1]))
    return [word for word in found if not word.startswith("sandhost[")]


def tools_path() -> dict[str, str]:
    """Return an environment in which cmake and a build tool are found: the machine's, or PyPI's."""
    wanted = [] if shutil.which("cmake") else ["cmake"]
    if not shutil.which("ninja"):
        wanted.append("ninja")
    if not wanted:
        return {"CMAKE_GENERATOR": "Ninja"}
    folder = environment("build-tools", wanted)
    return {"CMAKE_GENERATOR": "Ninja", "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
