"""Programs that only Debian packages: unpacked into the cache, installed nowhere."""

import os
import shutil
from pathlib import Path

from .places import CACHE
from .processes import Failed, alone, output_of, quietly

PROMETHEUS = ("prometheus", "promtool")
"""Of the package `prometheus`; tests/helpers/prometheus.py looks for them in this variable."""
VARIABLE = "SANDHOST_TEST_PROMETHEUS"


def prometheus() -> dict[str, str]:
    """Return the environment in which tests find Prometheus: the machine's own, or Debian's.

    Where neither is to be had, it is empty: then these tests say that they skip, and fail in CI.
    """
    found = [shutil.which(program) for program in PROMETHEUS]
    if all(found):
        return {VARIABLE: str(Path(str(found[0])).parent)}
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        return {}
    try:
        return {VARIABLE: str(unpacked("prometheus") / "usr/bin")}
    except Failed:
        if os.environ.get("CI"):
            raise
        print("  tests with a real Prometheus are skipped")
        return {}


def unpacked(package: str) -> Path:
    """Return the folder in which the files of a Debian package are."""
    folder = CACHE / "debian" / package
    with alone(f"debian-{package}"):
        if not folder.is_dir():
            making = folder.with_suffix(".making")
            shutil.rmtree(making, ignore_errors=True)
            making.mkdir(parents=True)
            download(package, making)
            quietly(f"unpack {package}", ["dpkg-deb", "-x", next(making.glob("*.deb")), making])
            next(making.glob("*.deb")).unlink()
            making.rename(folder)
    return folder


def download(package: str, folder: Path) -> None:
    """Download a Debian package, by lists of our own where the machine has none or old ones."""
    command = ["apt-get", "--quiet", "download", package]
    if output_of(command, cwd=folder).returncode == 0:
        return
    lists, archives = CACHE / "debian/lists", CACHE / "debian/archives"
    for place in (lists, archives):
        (place / "partial").mkdir(parents=True, exist_ok=True)
    ours = ["-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={archives}"]
    quietly("ask which Debian packages there are", ["apt-get", "--quiet", *ours, "update"])
    quietly(f"download {package}", [command[0], *ours, *command[1:]], cwd=folder)
