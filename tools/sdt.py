"""<sys/sdt.h>, which the package's probes are made with: the system's, or Debian's, unpacked into the cache."""

import functools
import shutil
import tempfile
from pathlib import Path

from .machine import compiler
from .places import CACHE
from .processes import alone, output_of

PACKAGE = "systemtap-sdt-dev"


@functools.cache
def sdt_flags() -> str | None:
    """Return what tells a compiler where the header is; "": it knows. None: there is none, so no probes."""
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, "try.c")
        source.write_text("#include <sys/sdt.h>\n")
        if output_of([compiler(), "-fsyntax-only", source]).returncode == 0:
            return ""
    folder = CACHE / "sdt"
    with alone("sdt"):
        if not folder.is_dir() and not fetch(folder):
            print(
                f"  built without probes: <sys/sdt.h> is not here (Debian: apt install {PACKAGE})"
            )
            return None
    header = next(folder.glob("usr/include/**/sys/sdt.h"))
    return f"-isystem {header.parents[1]}"


def fetch(folder: Path) -> bool:
    """Unpack Debian's package there, without being root. False: this is no Debian, or it is offline."""
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        return False
    making = folder.with_suffix(".making")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    quick = ["-o", "Acquire::Retries=0", "-o", "Acquire::http::Timeout=10"]
    if output_of(["env", "-C", making, "apt-get", *quick, "download", PACKAGE]).returncode:
        return False
    for archive in making.glob("*.deb"):
        if output_of(["dpkg-deb", "-x", archive, making]).returncode:
            return False
        archive.unlink()
    making.rename(folder)
    return True
