"""Programs that only Debian packages: unpacked into the cache, installed nowhere."""

import ctypes.util
import os
import shlex
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from .places import CACHE
from .processes import Failed, alone, output_of, quietly

PROMETHEUS = ("prometheus", "promtool")
"""Of the package `prometheus`; tests/helpers/prometheus.py looks for them in this variable."""
VARIABLE = "SANDHOST_TEST_PROMETHEUS"

CHROMIUM = ("chromium-headless-shell", "chromium")
"""Either will do; tests/helpers/browser.py looks for the program in this variable."""
CHROMIUM_VARIABLE = "SANDHOST_TEST_CHROMIUM"

SYSTEMD_ANALYZE_VARIABLE = "SANDHOST_TEST_SYSTEMD_ANALYZE"
"""Of the package `systemd`; tests/integration/test_systemd.py looks for the program in this variable."""

LIBSECCOMP_VARIABLE = "SANDHOST_TEST_LIBSECCOMP"
"""Where confined.py looks for the library, if it is not where libraries are."""

QEMU = "qemu-system-x86_64"


def prometheus() -> dict[str, str]:
    """Return the environment in which tests find Prometheus: the machine's own, or Debian's."""
    found = [shutil.which(program) for program in PROMETHEUS]
    if all(found):
        return {VARIABLE: str(Path(str(found[0])).parent)}
    return had("Prometheus", lambda: {VARIABLE: str(unpacked("prometheus") / "usr/bin")})


def chromium() -> dict[str, str]:
    """Return the environment in which tests find a Chromium: the machine's own, or Debian's."""
    found = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if found:
        return {CHROMIUM_VARIABLE: found}
    return had("Chromium", lambda: {CHROMIUM_VARIABLE: str(unpacked_chromium())})


def systemd_analyze() -> dict[str, str]:
    """Return the environment in which tests find systemd-analyze: the machine's own, or Debian's."""
    found = shutil.which("systemd-analyze")
    if found:
        return {SYSTEMD_ANALYZE_VARIABLE: found}
    return had("systemd", lambda: {SYSTEMD_ANALYZE_VARIABLE: str(unpacked_systemd())})


def libseccomp() -> dict[str, str]:
    """Return the environment in which confined.py finds libseccomp."""
    if ctypes.util.find_library("seccomp"):
        return {}
    return had("libseccomp", lambda: {LIBSECCOMP_VARIABLE: str(unpacked_libseccomp())})


def had(what: str, get: Callable[[], dict[str, str]]) -> dict[str, str]:
    """Return what `get` does. Where it cannot be had, nothing: then tests say that they skip, and fail in CI."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        return {}
    try:
        return get()
    except Failed:
        if os.environ.get("CI"):
            raise
        print(f"  tests with a real {what} are skipped")
        return {}


def unpacked(package: str, *beside: str, needs: bool = False) -> Path:
    """Return the folder in which the files of a Debian package are.

    Args:
        beside: other packages, of which files have to lie beside it.
        needs: with those of the packages that it needs and this machine has not installed.
    """
    folder = CACHE / "debian" / package
    with alone(f"debian-{package}"):
        if not folder.is_dir():
            making = folder.with_suffix(".making")
            shutil.rmtree(making, ignore_errors=True)
            (making / "partial").mkdir(parents=True)
            download([package, *beside], making, needs=needs)
            script = 'for deb; do dpkg-deb -x "$deb" . && rm "$deb" || exit; done'
            quietly(
                f"unpack {package}", ["sh", "-c", script, "sh", *making.glob("*.deb")], cwd=making
            )
            making.rename(folder)
    return folder


def download(packages: Sequence[str], folder: Path, *, needs: bool) -> None:
    """Download Debian packages, by lists of our own where the machine has none or old ones."""
    command = ["apt-get", "--quiet", "download", *packages]
    if needs:
        here = ["-o", f"Dir::Cache::Archives={folder}", "-o", "Debug::NoLocking=true"]
        command = ["apt-get", "--quiet", *here, "--yes", "--no-install-recommends"]
        command += ["--download-only", "--reinstall", "install", *packages]
    if output_of(command, cwd=folder).returncode == 0:
        return
    lists, archives = CACHE / "debian/lists", CACHE / "debian/archives"
    for place in (lists, archives):
        (place / "partial").mkdir(parents=True, exist_ok=True)
    ours = ["-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={archives}"]
    quietly("ask which Debian packages there are", ["apt-get", "--quiet", *ours, "update"])
    quietly(f"download {packages[0]}", [command[0], *ours, *command[1:]], cwd=folder)


def unpacked_chromium() -> Path:
    """Return a program that starts Debian's Chromium with the libraries and fonts beside it."""
    folder = unpacked("chromium-headless-shell", "chromium-common", needs=True)
    fonts = folder / "fonts.conf"
    fonts.write_text(
        f"<fontconfig><dir>/usr/share/fonts</dir><dir>{folder}/usr/share/fonts</dir>"
        f"<cachedir>{folder}/fonts</cachedir></fontconfig>\n"
    )
    program = "usr/lib/chromium/chromium-headless-shell"
    return starter(folder, program, "pulseaudio", FONTCONFIG_FILE=str(fonts))


def unpacked_systemd() -> Path:
    """Return a program that starts Debian's systemd-analyze with the libraries and units beside it."""
    folder = unpacked("systemd", needs=True)
    units = f"{folder}/usr/lib/systemd/system:{folder}/lib/systemd/system:"  # and where they are usually
    return starter(folder, "usr/bin/systemd-analyze", "systemd", SYSTEMD_UNIT_PATH=units)


def qemu() -> str:
    """Return a program that emulates x86-64: the machine's own, or Debian's."""
    found = shutil.which(QEMU)
    if found:
        return found
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise Failed(f"there is no {QEMU} here, and this is no Debian, which packages it")
    return str(unpacked_qemu())


def unpacked_qemu() -> Path:
    """Return a program that starts Debian's QEMU, which finds its firmware beside itself."""
    beside = ("qemu-system-common", "qemu-system-data", "seabios")
    return starter(unpacked("qemu-system-x86", *beside, needs=True), f"usr/bin/{QEMU}")


def unpacked_libseccomp() -> Path:
    """Return Debian's libseccomp."""
    folder = unpacked("libseccomp2")
    return next(folder.glob("**/*-linux-gnu/libseccomp.so.2"))


def starter(folder: Path, program: str, *beside: str, **environment: str) -> Path:
    """Return a script that starts an unpacked program with the libraries unpacked with it.

    Args:
        beside: folders beneath those of the libraries, where there are some more.
    """
    places = ["lib/*-linux-gnu", "usr/lib/*-linux-gnu"]
    places += [f"{place}/{name}" for place in places for name in beside]
    libraries = [str(path) for place in places for path in folder.glob(place)]
    variables = {"LD_LIBRARY_PATH": ":".join(libraries), **environment}
    script = folder / Path(program).name
    exports = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
    script.write_text(
        f'#!/bin/sh\nexport {exports}\nexec {shlex.quote(f"{folder}/{program}")} "$@"\n'
    )
    script.chmod(0o755)
    return script
