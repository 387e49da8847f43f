"""A real Prometheus and promtool, which `./run` fetches, and where else they are on PATH."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from . import wait_until


def program(name: str) -> str:
    """Return where a program of Prometheus is; skip without one, but in CI fail."""
    found = shutil.which(name, path=os.environ.get("SANDHOST_TEST_PROMETHEUS")) or shutil.which(
        name
    )
    if found is None:
        assert not os.environ.get("CI"), f"CI has to have {name}"
        pytest.skip(f"there is no {name} here: Debian's package prometheus has it")
    return found


def own_environment() -> dict[str, str]:
    """What another program is started with: without what is preloaded into this one."""
    return {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}


def promtool(*arguments: object, given: bytes = b"", cwd: Path | None = None) -> str:
    """Run promtool; return what it prints, which fails the test that it does not succeed in."""
    command = [program("promtool"), *map(str, arguments)]
    done = subprocess.run(
        command,
        input=given,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=own_environment(),
        cwd=cwd,
        timeout=60,
        check=False,
    )
    printed = done.stdout.decode()
    assert done.returncode == 0, printed
    return printed


class Server:
    """A running Prometheus."""

    def __init__(self, url: str) -> None:
        self._url = url

    def get(self, path: str, **parameters: str) -> Any:
        """Return the data of one answer of its API."""
        url = f"{self._url}{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> dict[tuple[str, ...], float]:
        """Return the values of an instant query, by the values of their labels in order of names."""
        rows = self.get("/api/v1/query", query=expression)["result"]
        return {
            tuple(
                value
                for name, value in sorted(row["metric"].items())
                if name not in ("__name__", "instance", "job")
            ): float(row["value"][1])
            for row in rows
        }

    def is_ready(self) -> bool:
        """Return whether it answers queries."""
        try:
            with urllib.request.urlopen(f"{self._url}/-/ready", timeout=10):
                return True
        except (urllib.error.URLError, ConnectionError):
            return False


def free_port() -> int:
    """Return a port that nobody listens on just now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextlib.contextmanager
def prometheus(config: str, folder: Path) -> Iterator[Server]:
    """Run a Prometheus with this configuration."""
    (folder / "prometheus.yml").write_text(config)
    address = f"127.0.0.1:{free_port()}"
    command = [
        program("prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=own_environment())
        try:
            server = Server(f"http://{address}")
            wait_until(lambda: process.poll() is not None or server.is_ready())
            assert process.poll() is None, (folder / "log").read_text()
            yield server
        finally:
            process.terminate()
            process.wait(30)
