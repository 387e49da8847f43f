"""USDT probes: the shipped module has them all, where <sys/sdt.h> was there to build it with."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers import ROOT

from sandhost import _native

HEADER = (ROOT / "native/probes.h").read_text()


@pytest.fixture(scope="module")
def noted() -> dict[str, set[int]]:
    """The probes in the notes of the compiled module, and with how many arguments each."""
    if not shutil.which("readelf"):
        pytest.skip("readelf is not installed (binutils)")
    command = ["readelf", "--notes", "--wide", _native.__file__]
    notes = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, set[int]] = {}
    pattern = r"Provider: sandhost\s+Name: (\w+)\s+Location: .*\s+Arguments: (.*)"
    for name, arguments in re.findall(pattern, notes):
        found.setdefault(name, set()).add(len(arguments.split()))
    if not found:
        pytest.skip(
            "the module was built without <sys/sdt.h>, and so without probes "
            "(Debian: apt install systemtap-sdt-dev; ./run fetches it where it can)"
        )
    return found


def documented() -> dict[str, int]:
    """What native/probes.h says: each probe's name, and how many arguments it has."""
    rows = re.findall(r"^ \*   (\w+) +((?:\w+ )*\w+)(?:  .*)?$", HEADER, re.MULTILINE)
    return {name: len(arguments.split()) for name, arguments in rows}


def test_every_probe_is_there_with_the_arguments_that_the_header_names(noted):
    assert len(documented()) == 16
    assert noted == {name: {count} for name, count in documented().items()}


def test_no_probe_has_more_arguments_than_bpftrace_reads():
    assert max(documented().values()) <= 6


@pytest.mark.parametrize(
    "script", sorted((ROOT / "deploy/bpftrace").glob("*.bt")), ids=lambda p: p.stem
)
def test_a_script_uses_probes_and_arguments_that_there_are(script: Path):
    text = script.read_text()
    assert f"bpftrace -p PID deploy/bpftrace/{script.name}" in text
    probes = re.split(r"^usdt:\*:sandhost:(\w+)$", text, flags=re.MULTILINE)[1:]
    assert probes
    for name, body in zip(probes[::2], probes[1::2]):
        block = body[: body.index("\n}")]
        used = {int(number) for number in re.findall(r"\barg(\d)\b", block)}
        assert max(used) < documented()[name], name
