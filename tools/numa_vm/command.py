"""`./run numa`: boot it, show what it says, keep that in docs/numa-vm.log."""

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ..debian import qemu
from ..install import environment, wheel
from ..places import CACHE, ROOT
from ..processes import Failed, output_of, quietly
from . import archive

LOG = ROOT / "docs/numa-vm.log"
NODES, CPUS_EACH, MEMORY_EACH = 2, 2, "768M"
PATIENCE_S = 600


def numa(words: Sequence[str] = ()) -> int:
    """`./run numa`: see that guests' pages lie on the node that they should, on two real nodes.

    Real for the kernel: the machine is emulated, so that a far node is as near as a near one.
    """
    parser = argparse.ArgumentParser(prog="./run numa", description=(numa.__doc__ or "").strip())
    parser.add_argument(
        "--kernel",
        metavar="FILE",
        type=Path,
        help="boot this one (default: Debian's newest for clouds, fetched with apt-get download)",
    )
    given = parser.parse_args(words)
    folder = CACHE / "numa"
    folder.mkdir(parents=True, exist_ok=True)
    kernel = given.kernel or debian_kernel(folder)
    installed = environment("numa", [], package=wheel())
    image = folder / "initramfs"
    archive.write(image, installed, Path(__file__).with_name("inside.py"))
    return boot(kernel, image)


def debian_kernel(folder: Path) -> Path:
    """Return Debian's newest kernel for virtual machines, from its package."""
    ready = sorted(folder.glob("boot/vmlinuz-*"))
    if ready:
        return ready[-1]
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise Failed("this is no Debian: name a kernel for x86-64 with --kernel FILE")
    pattern = re.compile(r"linux-image-(\d+)\.(\d+)\.(\d+)\S*-cloud-amd64")
    names = output_of(["apt-cache", "pkgnames", "linux-image-"]).stdout.split()
    found = [match for match in map(pattern.fullmatch, names) if match]
    if not found:
        raise Failed("apt-cache knows no linux-image-…-cloud-amd64: apt-get update, or --kernel")
    newest = max(found, key=lambda match: [int(number) for number in match.groups()])
    fetch = f"cd {folder} && apt-get download {newest[0]} && dpkg-deb -x {newest[0]}_*.deb ."
    quietly(f"fetch {newest[0]}", ["sh", "-c", fetch])
    return next(folder.glob("boot/vmlinuz-*"))


def boot(kernel: Path, image: Path) -> int:
    """Run the machine until it turns itself off; return 0 if it found all pages where they belong."""
    nodes: list[str] = []
    for node in range(NODES):
        first = node * CPUS_EACH
        nodes += ["-object", f"memory-backend-ram,id=memory{node},size={MEMORY_EACH}"]
        nodes += [
            "-numa",
            f"node,nodeid={node},cpus={first}-{first + CPUS_EACH - 1},memdev=memory{node}",
        ]
    program = qemu()
    command = [
        program,
        *(
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "max",
        ),  # works everywhere, and time is not measured
        *("-smp", str(NODES * CPUS_EACH), "-m", f"{NODES * int(MEMORY_EACH[:-1])}M", *nodes),
        *("-numa", "dist,src=0,dst=1,val=21", "-display", "none", "-serial", "stdio"),
        *("-nic", "none", "-no-reboot", "-kernel", str(kernel), "-initrd", str(image)),
        *("-append", "console=ttyS0 quiet loglevel=0 panic=-1"),
    ]
    lines: list[str] = []
    with subprocess.Popen(
        ["timeout", str(PATIENCE_S), *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as machine:
        assert machine.stdout is not None
        for raw in machine.stdout:
            line = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\x1bc|\r", "", raw).rstrip()
            if lines or line.startswith("Linux "):  # before it the firmware speaks
                print(line, flush=True)
                lines.append(line)
    if not lines:
        raise Failed("the machine did not come up; see what it says without `quiet loglevel=0`")
    version = output_of([program, "--version"]).stdout.splitlines()[0]
    LOG.parent.mkdir(exist_ok=True)
    LOG.write_text("\n".join(["./run numa", version.split(" (")[0], *lines]) + "\n")
    if lines[-1] != "all pages are where they belong":
        print(f"./run numa: {lines[-1]}", file=sys.stderr)
        return 1
    return 0
