"""The machine itself: emulated, so that it needs no rights and no help of the processor; it starts in a minute."""

import contextlib
import json
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ..debian import qemu
from ..processes import Failed
from .image import disk

MEMORY = "3G"
PATIENCE_S = 900.0
"""For the start, and for one order."""


class Machine:
    """A machine that runs, and does what it is told as root."""

    def __init__(self, port: socket.socket, answers: BinaryIO, console: Path) -> None:
        self._port, self._answers, self._console = port, answers, console
        self._line()  # it is up

    def run(self, script: str, status: int | None = 0) -> str:
        """Run a script of the shell; return what it says. A status that is not this one raises Failed."""
        self._port.sendall(json.dumps(script).encode() + b"\n")
        found, said = json.loads(self._line())
        if status is not None and found != status:
            raise Failed(f"{script}\nexit status {found}\n{said}")
        return str(said)

    def _line(self) -> bytes:
        try:
            line = self._answers.readline()
        except TimeoutError:
            line = b""
        if not line:
            said = self._console.read_text(errors="replace")[-5000:]
            raise Failed(f"the machine does not answer; its console says\n{said}")
        return line


@contextlib.contextmanager
def machine() -> Iterator[Machine]:
    """Have a machine with a new copy of the disk, which is forgotten at the end."""
    program, made = qemu(), disk()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [
            program,
            *("-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", MEMORY),
            *(
                "-display",
                "none",
                "-nic",
                "none",
                "-no-reboot",
                "-serial",
                f"file:{folder}/console",
            ),
            *("-drive", f"file={made}/disk,format=raw,if=virtio,snapshot=on"),
            *("-kernel", f"{made}/vmlinuz", "-initrd", f"{made}/initrd.img"),
            *("-append", "root=/dev/vda rw console=ttyS0 panic=-1"),
            *("-chardev", f"socket,id=orders,path={folder}/orders,server=on,wait=off"),
            *("-device", "virtio-serial", "-device", "virtserialport,chardev=orders"),
        ]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, cwd=folder) as process:
            try:
                with connected(folder / "orders") as port, port.makefile("rb") as answers:
                    yield Machine(port, answers, folder / "console")
            finally:
                process.kill()


@contextlib.contextmanager
def connected(path: Path) -> Iterator[socket.socket]:
    """Have a connection to a socket that will be there in a moment."""
    until_s = time.monotonic() + 30
    while not path.exists() and time.monotonic() < until_s:
        time.sleep(0.05)
    with socket.socket(socket.AF_UNIX) as port:
        port.settimeout(PATIENCE_S)
        port.connect(str(path))
        yield port
