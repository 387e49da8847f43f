"""The server of overload.py: the process of `sandhost serve`, with a watch at the wire."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from serving_process import ADMIN, processor_s


class Server:
    """A service in a process of its own."""

    def __init__(self, pipe: Connection, pid: int) -> None:
        self._pipe, self.pid = pipe, pid
        self.port: int = pipe.recv()

    def refusals_ms(self) -> list[float]:
        """Return how long each refusal took since this was last asked, from the request's last byte
        that was read to the answer's first that was written."""
        self._pipe.send(None)
        times: list[float] = self._pipe.recv()
        return times

    def resident_bytes(self) -> int:
        """Return what it has resident."""
        words = Path(f"/proc/{self.pid}/statm").read_text().split()
        return int(words[1]) * os.sysconf("SC_PAGESIZE")

    def cpu_s(self) -> float:
        """Return the processor time it has used."""
        return processor_s(self.pid)

    def ask(self, method: str, path: str, body: bytes = b"", token: str = ADMIN) -> bytes:
        """Return the answer to a request."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            body or None,
            {"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            content: bytes = answer.read()
        return content

    def metric(self, name: str) -> float:
        """Return the sum of a metric over its labels."""
        text = self.ask("GET", "/metrics").decode()
        return sum(
            float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (.*)$", text, re.MULTILINE)
        )


def _run(folder: str, settings: dict[str, Any], pipe: Connection) -> None:
    from sandhost.serve import app
    from sandhost.serve.config import Settings
    from sandhost.serve.wire import GatedProtocol

    refused: list[float] = []

    class Watched(GatedProtocol):
        """Notes when a request was read, and when a refusal of it was written."""

        def connection_made(self, transport: Any) -> None:
            self.watched = _Transport(transport)
            super().connection_made(self.watched)

        def data_received(self, data: bytes) -> None:
            self.watched.read_s = time.perf_counter()
            super().data_received(data)

    class _Transport:
        """Does not lead back to its protocol: a cycle for each connection would have Python's collector at work."""

        read_s = 0.0

        def __init__(self, transport: Any) -> None:
            self._transport = transport
            self.writes = transport.write
            for name in ("close", "is_closing", "get_extra_info", "pause_reading", "write_eof"):
                setattr(self, name, getattr(transport, name))
            self.resume_reading = transport.resume_reading

        def write(self, data: bytes) -> None:
            self.writes(data)
            if data.startswith(b"HTTP/1.1 429"):
                refused.append((time.perf_counter() - self.read_s) * 1e3)

    app.GatedProtocol = Watched  # type: ignore[misc]

    def answer() -> None:
        while True:
            pipe.recv()
            times = refused[:]
            del refused[: len(times)]
            pipe.send(times)

    def say(words: str) -> None:
        if words.startswith("listening on http:"):
            pipe.send(int(words.rpartition(":")[2]))
            threading.Thread(target=answer, daemon=True).start()

    # In the background, and before all else itself, as the units in deploy/ have it.
    wanted = Settings(
        data=folder,
        http_port=0,
        grpc_port=0,
        admin_token=ADMIN,
        background=True,
        realtime=True,
        **settings,
    )
    raise SystemExit(app.serve(wanted, say))


@contextlib.contextmanager
def served(**settings: Any) -> Iterator[Server]:
    """Have a server; it must have drained itself, with nothing left, at the end."""
    here, there = multiprocessing.Pipe()
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("spawn")
        process = context.Process(target=_run, args=(folder, settings, there))
        process.start()
        there.close()  # so that its end is seen
        assert process.pid is not None
        yield Server(here, process.pid)
        os.kill(process.pid, signal.SIGTERM)
        process.join()
        assert process.exitcode == 0, process.exitcode
